"""Settings of TD-MPC, with the symbols of the paper where it has one."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST = {
    "latent_dim": 8_192,
    "encoder_dim": 8_192,
    "hidden_dim": 8_192,
    "num_q": 64,
    "batch_size": 65_536,
    "horizon": 1_000,
    "target_every": 10**9,
    "random_steps": 10**9,
    "schedule_steps": 10**9,
    "capacity": 10**8,
    "iterations": 1_000,
    "num_samples": 1_000_000,
    "num_elites": 1_000_000,
}
"""Larger numbers are slips of a finger or of a stranger: what they ask for fits into no memory."""
LARGEST = 1e30
"""Of other numbers: float32, in which all is computed, ends at 3e38."""
LARGEST_PLAN, LARGEST_BATCH = 1 << 22, 1 << 26
"""Numbers that a layer holds at once, 16 MB and 256 MB: some 14 and 40 times those of the paper's sizes."""
SCHEDULE_STEPS = 3_000
"""Agent steps of exploring less and less, where nothing is known of the task."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_count(name: str, value: int, least: int = 1) -> None:
    whole = isinstance(value, int) and least <= value <= MOST[name]
    _require(whole, f"{name} is {value!r}; choose a whole number, {least:,} to {MOST[name]:,}")


@dataclass(frozen=True)
class PlannerConfig:
    """MPPI/CEM over latent action sequences."""

    iterations: int = 4
    """Refinements of the sampling distribution per control step."""
    num_samples: int = 128
    """Action sequences sampled per iteration."""
    policy_fraction: float = 0.05
    """Sequences proposed by the policy, as a share of `num_samples`."""
    num_elites: int = 16
    """Best sequences that the distribution is refitted to."""
    temperature: float = 0.5
    """Sharpness of the elites' weights exp(temperature * (value - best))."""
    momentum: float = 0.1
    """Share of the old mean kept at each refit."""
    start_std: float = 0.5
    """Lower bound of the sampling standard deviation at the first agent step."""
    max_std: float = 2.0
    """Standard deviation that every plan starts from, and its upper bound."""

    @property
    def num_policy_samples(self) -> int:
        """Sequences proposed by the policy."""
        return int(self.policy_fraction * self.num_samples)

    def __post_init__(self) -> None:
        for name in ("iterations", "num_samples", "num_elites"):
            _require_count(name, getattr(self, name))
        _require(0 <= self.policy_fraction <= 1, f"policy_fraction is {self.policy_fraction}; choose 0 to 1")
        candidates = self.num_samples + self.num_policy_samples
        _require(
            self.num_elites <= candidates,
            f"num_elites is {self.num_elites}, but there are only {candidates} sequences to choose from",
        )
        _require(0 <= self.momentum < 1, f"momentum is {self.momentum}; choose 0 or more and less than 1")
        _require(
            0 < self.temperature < LARGEST,
            f"temperature is {self.temperature}; choose a finite number above 0",
        )
        _require(
            0 < self.start_std <= self.max_std < LARGEST,
            f"start_std is {self.start_std}; choose more than 0 and at most max_std ({self.max_std})",
        )


@dataclass(frozen=True)
class ReplayConfig:
    """Prioritised sequence replay."""

    capacity: int = 1_000_000
    """Agent steps kept; the oldest go first."""
    alpha: float = 0.6
    """Exponent on the priorities (0: uniform)."""
    beta: float = 0.4
    """Exponent of the importance weights (1: the full correction)."""

    def __post_init__(self) -> None:
        _require_count("capacity", self.capacity)
        _require(0 <= self.alpha <= 1, f"alpha is {self.alpha}; choose 0 to 1")
        _require(0 <= self.beta <= 1, f"beta is {self.beta}; choose 0 to 1")


@dataclass(frozen=True)
class TDMPCConfig:
    """Networks, learning and planning of one TD-MPC agent. Defaults: the `laptop` preset."""

    latent_dim: int = 32
    """Width of the latent state z."""
    encoder_dim: int = 128
    """Hidden width of the encoder h."""
    hidden_dim: int = 128
    """Hidden width of dynamics d, reward R, policy pi and every Q."""
    num_q: int = 2
    """Q-functions; the value is the minimum over all of them."""
    batch_size: int = 256
    """Sequences per update."""
    horizon: int = 5
    """H: steps of a training sequence, and of a plan once the schedule has ended."""
    discount: float = 0.99
    """gamma, per agent step."""
    rho: float = 0.5
    """Weight of step t of a sequence: rho^t."""
    consistency_coef: float = 2.0
    """Weight of the latent consistency loss."""
    reward_coef: float = 0.5
    """Weight of the reward loss."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    lr: float = 1e-3
    """Adam's learning rate, model and policy."""
    grad_clip: float = 10.0
    """Largest gradient norm, model and policy apart."""
    tau: float = 0.01
    """Step of the target network's moving average."""
    target_every: int = 2
    """Updates between two steps of the target network."""
    policy_std: float = 0.05
    """Policy noise in targets and plans, and the planner's final standard deviation."""
    random_steps: int = 1_000
    """Agent steps with uniform random actions, before the first update; then as many updates at once."""
    schedule_steps: int | None = None
    """Agent steps over which the planner's horizon grows to H and its standard deviation falls; if none, what suits the
    task: in runs on DMControl as many as make 24,000 environment steps, else 3,000."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)

    def __post_init__(self) -> None:
        for name in (
            "latent_dim",
            "encoder_dim",
            "hidden_dim",
            "batch_size",
            "horizon",
            "target_every",
            "random_steps",
        ):
            _require_count(name, getattr(self, name))
        _require(self.num_q >= 2, f"num_q is {self.num_q}; TD-MPC needs at least 2 Q-functions")
        _require_count("num_q", self.num_q, least=2)
        if self.schedule_steps is not None:
            _require_count("schedule_steps", self.schedule_steps, least=0)
        _require(0 < self.discount < 1, f"discount is {self.discount}; choose more than 0 and less than 1")
        _require(0 < self.rho <= 1, f"rho is {self.rho}; choose more than 0 and at most 1")
        _require(0 < self.tau <= 1, f"tau is {self.tau}; choose more than 0 and at most 1")
        for name in ("lr", "grad_clip", "policy_std"):
            value = getattr(self, name)
            _require(0 < value < LARGEST, f"{name} is {value}; choose a finite number above 0")
        for name in ("consistency_coef", "reward_coef", "value_coef"):
            value = getattr(self, name)
            _require(0 <= value < LARGEST, f"{name} is {value}; choose a finite number, 0 or more")
        _require(
            self.replay.capacity > 2 * self.horizon,
            f"replay.capacity is {self.replay.capacity}, too small for sequences of {self.horizon} steps",
        )
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Refuses plans and batches that no memory holds."""
        planner, widest = self.planner, max(self.latent_dim, self.encoder_dim, self.hidden_dim)
        candidates = planner.num_samples + planner.num_policy_samples
        _require(
            candidates * (planner.iterations * self.horizon + widest) <= LARGEST_PLAN,
            f"a plan of {candidates:,} sequences of {self.horizon} steps, {planner.iterations} times, with "
            f"layers {widest:,} wide is too large: lower planner.num_samples, horizon or the widths",
        )
        _require(
            self.batch_size * (self.horizon + 1) * widest <= LARGEST_BATCH,
            f"batch_size is {self.batch_size}, too large with sequences of {self.horizon} steps and layers "
            f"{widest:,} wide: lower it",
        )

    def std_at(self, agent_step: int) -> float:
        """The planner's lowest standard deviation: linear from `start_std` to `policy_std`."""
        return linear(self.planner.start_std, self.policy_std, self._schedule_steps, agent_step)

    def horizon_at(self, agent_step: int) -> int:
        """Planning horizon: linear from 1 to `horizon`, rounded down."""
        return int(linear(1, self.horizon, self._schedule_steps, agent_step))

    @property
    def _schedule_steps(self) -> int:
        return SCHEDULE_STEPS if self.schedule_steps is None else self.schedule_steps


def linear(start: float, end: float, duration: int, step: int) -> float:
    """Linear from `start` at step 0 to `end` at `duration`, constant after it."""
    mix = min(step / duration, 1.0) if duration else 1.0
    return (1 - mix) * start + mix * end


LAPTOP = TDMPCConfig()

PAPER = TDMPCConfig(
    latent_dim=50,
    encoder_dim=256,
    hidden_dim=512,
    batch_size=512,
    random_steps=5_000,
    schedule_steps=25_000,
    planner=PlannerConfig(iterations=6, num_samples=512, num_elites=64),
)

DEBUG = TDMPCConfig(
    latent_dim=8,
    encoder_dim=16,
    hidden_dim=16,
    batch_size=16,
    random_steps=50,
    schedule_steps=100,
    planner=PlannerConfig(iterations=2, num_samples=32, num_elites=4),
)
