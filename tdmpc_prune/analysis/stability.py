"""Whether a controller still holds an equilibrium: a Lyapunov function, violated or not, from many starts.

V(x) = (x - x*)' P (x - x*) comes from one linearised loop, the reference's, and judges all controllers.
What is found is empirical evidence, and no certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from tqdm import tqdm

from agents.tdmpc.agent import TDMPC
from envs import make_env
from envs.equilibria import Equilibrium, NoEquilibriumError, equilibrium
from envs.state import Simulator
from tdmpc_prune.analysis.statistics import Estimate, bootstrap, mean
from tdmpc_prune.checkpoint import StoredAgent, load_agent
from tdmpc_prune.errors import UserError

Floats = NDArray[np.float64]
Act = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Actions [N, A] for observations [N, O] and the mask of the last call's rows that are still there."""

NUDGE = 0.01
"""Of the policy's differences, in half-widths of the region: well above the rounding of float32."""
UNFIT = 0.25
"""A reference with more violations than this is warned of: a heuristic."""
NOTE = "empirical evidence from sampled starts, no certificate: it says nothing about any other start"


@dataclass(frozen=True)
class Lyapunov:
    """V(d) = d' P d of deviations d = x - x*, and what it promises for the linear loop it comes from."""

    matrix: Floats
    """P [D, D]."""
    source: Literal["closed loop", "LQR"]
    """The reference's own loop; or that of an LQR, where the reference's own is not stable."""
    decrease: float
    """The linear loop has V(d') <= (1 - decrease) V(d) for every d."""
    level: float
    """V on the surface of the largest ellipsoid of V within the region."""

    def __call__(self, deviations: Floats) -> Floats:
        """V [...] of deviations [..., D]."""
        return np.einsum("...i,ij,...j->...", deviations, self.matrix, deviations)


@dataclass(frozen=True)
class Verdict:
    """What a controller did with all starts."""

    violation: Estimate
    """Mean over the starts of their share of violations, and its interval over starts."""
    left: float
    """Share of the starts that left the region, or were ended by the task."""
    distance: float
    """Median over the starts of the last distance from x*: the largest coordinate, in half-widths."""


@dataclass(frozen=True)
class Judge:
    """Judges controllers from the same starts with the same Lyapunov function."""

    simulator: Simulator
    equilibrium: Equilibrium
    lyapunov: Lyapunov
    starts: Floats
    """Deviations from x* to start from [N, D]."""
    steps: int
    """Control steps from each, at most."""
    alpha: float
    """V must fall by this share of itself in every step."""
    ball: float
    """V at the surface of the ball around x* where nothing is counted, as a share of `Lyapunov.level`."""
    seed: int
    """Of the bootstrap."""

    def __call__(self, act: Act, tick: Callable[[], object] = lambda: None) -> Verdict:
        """Judges a controller; `tick` is called at every step."""
        half_widths = np.array(self.equilibrium.half_widths)
        paths = simulate(self.simulator, self.equilibrium, act, self.starts, self.steps, tick)
        rates = [violation_rate(path, self.lyapunov, half_widths, self.alpha, self.ball) for path in paths]
        return Verdict(
            # Every start weighs the same: one that falls at once has few steps to violate anything in.
            violation=bootstrap([rates], mean, seed=self.seed),
            left=float(
                np.mean([len(path) <= self.steps or distance(path[-1], half_widths) > 1 for path in paths])
            ),
            distance=float(np.median([distance(path[-1], half_widths) for path in paths])),
        )


def lyapunov_function(a: Floats, b: Floats, gain: Floats, half_widths: Floats) -> Lyapunov:
    """V of the closed loop d' = (A + B K) d; of an LQR's, if that loop is not stable.

    P solves (A + B K)' P (A + B K) - P = -Q with Q = diag(1 / half_widths^2): V sums the squares of all
    future deviations, each in half-widths of the region, so that no unit outweighs another.

    Args:
        a: A [D, D].
        b: B [D, A].
        gain: K = d action / d x [A, D].
        half_widths: of the region [D].

    Raises:
        ValueError: not even an LQR can hold it.
    """
    cost = np.diag(half_widths**-2)
    source: Literal["closed loop", "LQR"] = "closed loop"
    closed = a + b @ gain
    if spectral_radius(closed) >= 1:
        source, closed = "LQR", a + b @ lqr_gain(a, b, cost)
    matrix = linalg.solve_discrete_lyapunov(closed.T, cost)
    matrix = (matrix + matrix.T) / 2
    kept = linalg.eigvalsh(closed.T @ matrix @ closed, matrix).max()
    # V = c touches the plane d_i = h_i of the box where c = h_i^2 / inv(P)_ii.
    level = (half_widths**2 / np.diag(np.linalg.inv(matrix))).min()
    return Lyapunov(matrix, source, decrease=float(1 - kept), level=float(level))


def lqr_gain(a: Floats, b: Floats, cost: Floats) -> Floats:
    """K [A, D] of the action K d that minimises the sum of d' cost d + |action|^2, actions in [-1, 1] units.

    Raises:
        ValueError: nothing stabilises the system.
    """
    p = linalg.solve_discrete_are(a, b, cost, np.eye(b.shape[1]))
    return -np.linalg.solve(np.eye(b.shape[1]) + b.T @ p @ b, b.T @ p @ a)


def spectral_radius(matrix: Floats) -> float:
    """The largest modulus of a matrix's eigenvalues; a discrete linear system is stable below 1."""
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def policy_gain(
    policy: Callable[[np.ndarray], np.ndarray], simulator: Simulator, around: Equilibrium
) -> Floats:
    """K = d action / d x [A, D] at x* of a policy, from observations [N, O] to actions [N, A]."""
    state, half_widths = np.array(around.state), np.array(around.half_widths)
    nudges = NUDGE * np.diag(half_widths)
    sides = [policy(np.stack([simulator.observe(state + n) for n in sign * nudges])) for sign in (1, -1)]
    return (sides[0] - sides[1]).T.astype(np.float64) / (2 * NUDGE * half_widths)


def sample_starts(lyapunov: Lyapunov, count: int, ball: float, seed: int) -> Floats:
    """Deviations [N, D], uniform in the largest ellipsoid of V within the region, the ball left out.

    Not in all of the box: from its corners even the best controller has to leave it.
    """
    size = len(lyapunov.matrix)
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, size))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radii = rng.uniform(ball ** (size / 2), 1, size=(count, 1)) ** (1 / size)
    factor = np.linalg.cholesky(lyapunov.matrix)
    return np.sqrt(lyapunov.level) * np.linalg.solve(factor.T, (radii * directions).T).T


def simulate(
    simulator: Simulator,
    around: Equilibrium,
    act: Act,
    starts: Floats,
    steps: int,
    tick: Callable[[], object] = lambda: None,
) -> list[Floats]:
    """Deviations [1 + steps, D] from every start [D] on; fewer where one leaves the region or is ended.

    All starts go on side by side, so that the controller is asked once for each step.
    """
    origin, half_widths = np.array(around.state), np.array(around.half_widths)
    paths = [[start] for start in starts]
    states = list(origin + starts)
    obs = np.stack([simulator.observe(state) for state in states])
    running, keep = np.arange(len(starts)), np.ones(len(starts), dtype=bool)
    for _ in range(steps):
        if len(running) == 0:
            break
        moves = [simulator.step(s, a) for s, a in zip(states, act(obs, keep), strict=True)]
        for i, move in zip(running, moves, strict=True):
            paths[i].append(simulator.difference(move.state, origin))
        inside = [distance(paths[i][-1], half_widths) <= 1 for i in running]
        keep = np.array(inside) & ~np.array([move.ended for move in moves])
        states = [move.state for move, kept in zip(moves, keep, strict=True) if kept]
        obs = np.stack([move.observation for move in moves])[keep]
        running = running[keep]
        tick()
    return [np.stack(path) for path in paths]


def distance(deviation: Floats, half_widths: Floats) -> float:
    """The largest coordinate of a deviation [D], in half-widths: at most 1 within the region."""
    return float((np.abs(deviation) / half_widths).max())


def violation_rate(path: Floats, lyapunov: Lyapunov, half_widths: Floats, alpha: float, ball: float) -> float:
    """Share of the steps d -> d' of a path [T + 1, D] with V(d') - V(d) > -alpha V(d).

    Only steps from within the region and from outside the ball count.

    Raises:
        ValueError: no step counts.
    """
    values = lyapunov(path)
    inside = np.all(np.abs(path) <= half_widths, axis=1)
    counts = np.logical_and(inside[:-1], values[:-1] > ball * lyapunov.level)
    if not counts.any():
        raise ValueError("no step starts between the ball and the end of the region")
    return float((np.diff(values) > -alpha * values[:-1])[counts].mean())


def safe_boundary(rates: Sequence[tuple[float, float]], reference: float, delta: float) -> float | None:
    """The largest sparsity up to which all violation rates stay within `delta` of the reference's.

    What lies beyond the first that does not is not safe, whatever a lucky run shows there; nor is its own
    whole percent, for runs of one target seldom hit it to the digit. None: the least sparse is not safe.

    Args:
        rates: sparsity and violation rate of every run, in any order.
        reference: the reference's rate.
        delta: how much more is still safe.
    """
    unsafe = min((round(s, 2) for s, rate in rates if rate > reference + delta), default=np.inf)
    return max((s for s, _ in rates if round(s, 2) < unsafe), default=None)


def stability(
    runs: Sequence[Path],
    *,
    reference: Path | None,
    controller: Literal["planner", "policy"],
    starts: int,
    steps: int,
    alpha: float,
    ball: float,
    delta: float,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Judges stored runs by the Lyapunov function of one of them.

    Args:
        runs: run folders or checkpoints of one task, at least one.
        reference: the run to compare with; the least sparse of `runs` if None.
        controller: who acts. K is the policy's either way, for a planner has no derivative.
        starts: states to start from, the same for every run.
        steps: control steps from each.
        alpha: V must fall by this share of itself in every step.
        ball: V where counting ends, as a share of V where the largest ellipsoid touches the region's end.
        delta: how much more violations than the reference's are still safe.
        seed: of the starts, the planner and the bootstrap.
        device: where the agents compute.

    Returns:
        JSON values by name. Those of a run, under `runs`, in the order of sparsity: `violation_rate`, `left`
        and `distance` as in `Verdict`; `spectral_radius` of its policy's linearised loop; `policy_offset`,
        the policy's largest action at x*, where the linearisation takes it for 0.

    Raises:
        UserError: a run cannot be loaded, they do not belong together, or their task has no equilibrium.
    """
    agents = {path: load_agent(path, device) for path in dict.fromkeys(runs)}
    judged = [*agents]
    if reference is None:
        reference = min(agents, key=lambda path: agents[path].sparsity)
    elif reference not in agents:
        agents[reference] = load_agent(reference, device)
    first = agents[reference]
    _check_alike(agents, reference)
    try:
        around = equilibrium(first.task)
    except NoEquilibriumError as error:
        raise UserError(str(error)) from None
    simulator = Simulator(make_env(first.task, seed=first.seed, action_repeat=first.action_repeat))
    a, b = simulator.linearise(np.array(around.state))
    at_rest = simulator.observe(np.array(around.state))[None]
    gains = {path: policy_gain(s.agent.policy_action, simulator, around) for path, s in agents.items()}
    for path, gain in gains.items():
        if not np.isfinite(gain).all():
            raise UserError(f"the policy of {path} gives no finite actions: leave it out")
    try:
        lyapunov = lyapunov_function(a, b, gains[reference], np.array(around.half_widths))
    except ValueError as error:  # LinAlgError is one; scipy has others
        raise UserError(
            f"{first.task} with an action repeat of {first.action_repeat} has no stable loop to compare with:"
            " its actions come too seldom"
        ) from error
    where = sample_starts(lyapunov, starts, ball, seed)
    judge = Judge(simulator, around, lyapunov, where, steps, alpha, ball, seed)
    verdicts = {}
    with tqdm(total=len(agents) * steps, desc="stability", unit="step", disable=None) as bar:
        for path, stored in agents.items():
            verdicts[path] = judge(_controller(stored, controller, seed, starts), bar.update)
            bar.update(len(verdicts) * steps - bar.n)  # what remained when all starts had left
    rates = [(agents[path].sparsity, verdicts[path].violation.value) for path in judged]
    boundary = safe_boundary(rates, verdicts[reference].violation.value, delta)
    rows = [
        {
            "run": str(path),
            "reference": path == reference,
            "sparsity": stored.sparsity,
            "parameters": stored.parameters,
            "violation_rate": verdicts[path].violation.value,
            "violation_low": verdicts[path].violation.low,
            "violation_high": verdicts[path].violation.high,
            "left": verdicts[path].left,
            "distance": verdicts[path].distance,
            "spectral_radius": spectral_radius(a + b @ gains[path]),
            "policy_offset": float(np.abs(stored.agent.policy_action(at_rest)).max()),
        }
        for path, stored in sorted(agents.items(), key=lambda item: item[1].sparsity)
    ]
    simulator.env.close()
    return {
        "task": first.task,
        "controller": controller,
        "starts": starts,
        "steps": steps,
        "seed": seed,
        "reference": str(reference),
        "lyapunov": lyapunov.source,
        "linear_decrease": lyapunov.decrease,
        "alpha": alpha,
        "ball": ball,
        "delta": delta,
        "boundary": boundary,
        "note": NOTE,
        "warnings": _warnings(lyapunov, alpha, verdicts[reference]),
        "runs": rows,
    }


def _warnings(lyapunov: Lyapunov, alpha: float, reference: Verdict) -> list[str]:
    """What makes the result mean less than it seems to."""
    warnings = []
    if alpha > lyapunov.decrease:
        warnings.append(
            f"not even the linear loop that V comes from falls by alpha everywhere: {lyapunov.decrease:.2g} at most"
        )
    if reference.left > 0 or reference.violation.value > UNFIT:
        warnings.append(
            f"the reference itself leaves the region from {reference.left:.0%} of the starts and violates in"
            f" {reference.violation.value:.0%} of the steps: a boundary compares with a controller that fails"
        )
    return warnings


def _check_alike(agents: dict[Path, StoredAgent], reference: Path) -> None:
    """Refuses runs of different systems."""
    first = agents[reference]
    for path, stored in agents.items():
        for name in ("task", "action_repeat"):
            one, other = getattr(first, name), getattr(stored, name)
            if one != other:
                raise UserError(
                    f"{reference} and {path} differ in {name.replace('_', ' ')} ({one}, {other}):"
                    " give runs of one task with the same action repeat"
                )


def _controller(stored: StoredAgent, kind: str, seed: int, starts: int) -> Act:
    """A controller whose random numbers depend on the number of the start alone."""
    agent: TDMPC = stored.agent
    if kind == "policy":
        return lambda obs, keep: agent.policy_action(obs)
    generators = [torch.Generator(agent.device).manual_seed(seed + i) for i in range(starts)]
    planner = agent.make_planner(generators)

    def act(obs: np.ndarray, keep: np.ndarray) -> np.ndarray:
        planner.keep(torch.from_numpy(keep).to(agent.device))
        return agent.plan(obs, planner, stored.agent_step)

    return act
