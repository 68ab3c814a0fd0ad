"""Whether a controller still holds an equilibrium: a Lyapunov function, violated or not, from many starts.

V(x) = (x - x*)' P (x - x*) comes from one linearised loop, the reference's, and judges all controllers.
What is found is empirical evidence, and no certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from envs import make_env
from envs.equilibria import Equilibrium, NoEquilibriumError, equilibrium
from envs.state import Simulator
from tdmpc_prune.analysis.lyapunov import (
    Floats,
    Lyapunov,
    distance,
    lyapunov_function,
    safe_boundary,
    spectral_radius,
    violation_rate,
)
from tdmpc_prune.analysis.statistics import Estimate, bootstrap, mean
from tdmpc_prune.checkpoint import load_alike
from tdmpc_prune.errors import UserError
from tdmpc_prune.evaluate import Act, Controller, act_with

NUDGE = 0.01
"""Of the policy's differences, in half-widths of the region: well above the rounding of float32."""
UNFIT = 0.25
"""A reference with more violations than this is warned of: a heuristic."""
NOTE = "empirical evidence from sampled starts, no certificate: it says nothing about any other start"


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
        paths, left = simulate(self.simulator, self.equilibrium, act, self.starts, self.steps, tick)
        rates = [violation_rate(path, self.lyapunov, half_widths, self.alpha, self.ball) for path in paths]
        return Verdict(
            # Every start weighs the same: one that falls at once has few steps to violate anything in.
            violation=bootstrap([rates], mean, seed=self.seed),
            left=float(left.mean()),
            distance=float(np.median([distance(path[-1], half_widths) for path in paths])),
        )


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
) -> tuple[list[Floats], NDArray[np.bool_]]:
    """Deviations [1 + steps, D] from every start [D] on, and which starts [N] left the region or were ended.

    The deviations of those are fewer: they end there.
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
    left = np.ones(len(starts), dtype=bool)
    left[running] = False
    return [np.stack(path) for path in paths], left


def stability(
    runs: Sequence[Path],
    *,
    reference: Path | None,
    controller: Controller,
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
        delta: how much more than the reference a run may violate V, or leave the region, and still be safe.
        seed: of the starts, the planner and the bootstrap.
        device: where the agents compute.

    Returns:
        JSON values by name. Those of a run, under `runs`, in the order of sparsity: `violation_rate`, `left`
        and `distance` as in `Verdict`; `spectral_radius` of its policy's linearised loop; `policy_offset`,
        the policy's largest action at x*, where the linearisation takes it for 0. `boundary` is None where the
        least sparse run is not safe, and where the reference leaves the region itself.

    Raises:
        UserError: a run cannot be loaded, they do not belong together, or their task has no equilibrium.
    """
    agents = load_alike([*runs, *([reference] if reference else [])], device)
    judged = list(dict.fromkeys(runs))
    if reference is None:
        reference = min(agents, key=lambda path: agents[path].sparsity)
    first = agents[reference]
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
            act = act_with(stored.agent, stored.agent_step, controller, range(seed, seed + starts))
            verdicts[path] = judge(act, bar.update)
            bar.update(len(verdicts) * steps - bar.n)  # what remained when all starts had left
    dense = verdicts[reference]
    # A controller that leaves the region is not safe either, however seldom V rises on its way out.
    excess = {
        path: max(verdicts[path].violation.value - dense.violation.value, verdicts[path].left - dense.left)
        for path in judged
    }
    # "Leaves no more often" says nothing beside a reference that does not hold the equilibrium itself.
    holds = dense.left == 0
    boundary = (
        safe_boundary([(agents[path].sparsity, excess[path]) for path in judged], delta) if holds else None
    )
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
            f" {reference.violation.value:.0%} of the steps, so it is no controller to compare with: read the rows, "
            + ("for a boundary means nothing" if reference.left > 0 else "not the boundary")
        )
    return warnings
