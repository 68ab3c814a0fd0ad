"""Stored controllers side by side: return, deadline and robustness, over the same episodes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from envs import SimulatorError, make_env
from envs.perturb import PHYSICS, broke_down, model_and_data, perturb
from envs.perturbations import STANDARD, Perturbation, PerturbationError
from tdmpc_prune.analysis.statistics import paired, students
from tdmpc_prune.checkpoint import StoredAgent, load_alike
from tdmpc_prune.errors import UserError
from tdmpc_prune.evaluate import Controller, Evaluation, Evaluator
from tdmpc_prune.latency import Latency, plan_latency, policy_latency, threads
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.size import SizeModel
from tdmpc_prune.speed import Subject, multiplications

TIMED_SECONDS = 20.0
"""A slow planner is timed for about this long, and not over all the plans asked for."""
FEWEST_PLANS = 30


@dataclass(frozen=True)
class Protocol:
    """What every controller goes through."""

    episodes: int = 10
    """Number i starts from seed + i, for every run and under every perturbation."""
    seed: int = 0
    """See above; also the planner's."""
    controllers: tuple[Controller, ...] = ("planner", "policy")
    """The first one is what perturbations and the reference are about."""
    perturbations: tuple[Perturbation, ...] = ()
    """What is done to the world, one at a time."""
    plans: int = 100
    """Control steps that are timed; 0: none."""
    film: bool = False
    """Keep the frames of the first episode."""


@dataclass(frozen=True)
class Evaluated:
    """A run, what was found, and the frames of its first episode [H, W, 3], if it was filmed."""

    stored: StoredAgent
    result: dict[str, Any]
    frames: list[np.ndarray]


def compare(
    runs: Sequence[Path], protocol: Protocol, device: torch.device, reference: Path | None = None
) -> list[Evaluated]:
    """Evaluates runs of one task, each against the reference if there is one, which then comes first.

    Raises:
        UserError: a run has no checkpoint, it cannot be read, the runs are of different tasks, or their world does not
            know a perturbation.
    """
    stored = load_alike([*([reference] if reference else []), *runs], device)
    possible = _possible(next(iter(stored.values())), protocol.perturbations)
    protocol = replace(protocol, perturbations=possible)
    work = len(stored) * (len(protocol.controllers) + len(protocol.perturbations))
    with tqdm(total=work, unit="evaluation", disable=None if work > 2 else True) as bar:
        found = [_evaluate(path, agent, protocol, bar) for path, agent in stored.items()]
    if reference is not None:
        for one in found[1:]:
            one.result["versus"] = _versus(one.result, found[0].result)
    return found


def _possible(stored: StoredAgent, perturbations: tuple[Perturbation, ...]) -> tuple[Perturbation, ...]:
    """The perturbations, once they are known to be possible; of the standard ones those that are."""
    if not perturbations:
        return ()
    env = make_env(stored.task, seed=stored.seed, action_repeat=stored.action_repeat)
    try:
        if perturbations == STANDARD and model_and_data(env) is None:
            print(
                f"MuJoCo does not simulate {stored.task}: its masses, damping and gravity stay, noise and delay are "
                "tried",
                file=sys.stderr,
            )
            perturbations = tuple(one for one in perturbations if one.name not in PHYSICS)
        for perturbation in perturbations:
            perturb(env, perturbation)
    except PerturbationError as error:
        raise UserError(str(error)) from None
    finally:
        env.close()
    return perturbations


def _evaluate(path: Path, stored: StoredAgent, protocol: Protocol, bar: tqdm) -> Evaluated:
    """Everything about one run."""
    agent = stored.agent
    main, *others = protocol.controllers
    first = _evaluator(stored, protocol, film=protocol.film)
    evaluation = first.run(agent, stored.agent_step, controller=main)
    first.film = False
    bar.update()
    result: dict[str, Any] = {
        "run": str(path),
        "task": stored.task,
        "env_step": stored.env_step,
        "criterion": stored.criterion,
        "sparsity": stored.sparsity,
        "parameters": stored.parameters,
        **_work(stored),
        "controller": main,
        "episodes": protocol.episodes,
        "seed": protocol.seed,
        **_return(evaluation),
        "returns": evaluation.returns,
        "lengths": evaluation.lengths,
    }
    for controller in others:
        other = first.run(agent, stored.agent_step, controller=controller)
        bar.update()
        result |= {f"{controller}_{k}": v for k, v in (_return(other) | {"returns": other.returns}).items()}
    first.close()
    result["control_ms"] = 1e3 * first.control_timestep
    if protocol.plans:
        result |= _deadline(stored, main, protocol.plans, result["control_ms"])
    if protocol.perturbations:
        result["perturbed"] = {}
    for perturbation in protocol.perturbations:
        result["perturbed"][str(perturbation)] = _under(perturbation, stored, protocol)
        bar.update()
    return Evaluated(stored, result, first.frames)


def _under(perturbation: Perturbation, stored: StoredAgent, protocol: Protocol) -> dict[str, Any] | None:
    """The return under a perturbation; None where the simulation did not survive it."""
    evaluator = _evaluator(stored, protocol, perturbation=perturbation)
    try:
        found = evaluator.run(stored.agent, stored.agent_step, controller=protocol.controllers[0])
        broken = any(broke_down(env) for env in evaluator.envs)
    except SimulatorError:
        broken = True
    finally:
        evaluator.close()
    return None if broken else _return(found) | {"returns": found.returns}


def _evaluator(
    stored: StoredAgent, protocol: Protocol, *, film: bool = False, perturbation: Perturbation | None = None
) -> Evaluator:
    return Evaluator(
        stored.task,
        env_seed=stored.seed,
        episodes=protocol.episodes,
        seed=protocol.seed,
        action_repeat=stored.action_repeat,
        film=film,
        perturbation=perturbation,
    )


def _return(evaluation: Evaluation) -> dict[str, float | None]:
    """Mean return over episodes with Student's 95% interval (None of one), and the standard deviation."""
    estimate = students(evaluation.returns)
    several = len(evaluation.returns) > 1
    return {
        "return": estimate.value,
        "return_low": estimate.low if several else None,
        "return_high": estimate.high if several else None,
        "return_std": evaluation.std,
    }


def _work(stored: StoredAgent) -> dict[str, Any]:
    """Multiply-accumulates: of one input through every component, and of one control step of the planner."""
    agent = stored.agent
    size = SizeModel(agent.components(), find_groups(agent))
    plan = Subject(agent, stored.agent_step).plan
    return {"macs": size.macs(size.widths), "plan_macs": multiplications(plan)}


def _deadline(stored: StoredAgent, controller: Controller, plans: int, control_ms: float) -> dict[str, Any]:
    """Milliseconds per control step, with one thread and with as many as are set, and whether that will do.

    The deadline is met if the 99th percentile with one thread is within the control period.
    """
    rows: dict[str, dict[str, float]] = {}
    for count in dict.fromkeys((1, torch.get_num_threads())):
        with threads(count):
            steps = _affordable(stored, controller, plans)
            found = _timed(stored, controller, steps)
        rows[str(count)] = {"p50": found.p50, "p95": found.p95, "p99": found.p99, "steps": steps}
    return {
        "plan_ms": rows[str(torch.get_num_threads())]["p50"],
        "latency_ms": rows,
        "meets_deadline": rows["1"]["p99"] <= control_ms,
    }


def _affordable(stored: StoredAgent, controller: Controller, plans: int) -> int:
    """As many control steps as are asked for, or fewer of a slow controller."""
    once = _timed(stored, controller, 3).p50
    return min(plans, max(FEWEST_PLANS, int(1e3 * TIMED_SECONDS / once)))


def _timed(stored: StoredAgent, controller: Controller, steps: int) -> Latency:
    if controller == "policy":
        return policy_latency(stored.agent, steps=steps)
    return plan_latency(stored.agent, stored.agent_step, plans=steps)


def _versus(result: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """The return against the reference's, episode by episode: its mean difference, and share of it."""
    difference = paired(result["returns"], reference["returns"])
    return {
        "reference": reference["run"],
        "difference": difference.value,
        "difference_low": difference.low if len(result["returns"]) > 1 else None,
        "difference_high": difference.high if len(result["returns"]) > 1 else None,
        "share": result["return"] / reference["return"] if reference["return"] > 0 else None,
    }
