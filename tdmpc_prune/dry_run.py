"""What a run would prune, before it is made (`train --dry-run`)."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from agents.autoencoder import Autoencoder
from agents.tdmpc.agent import TDMPC
from envs import make_env
from tdmpc_prune import checkpoint
from tdmpc_prune.config import AnyTrainConfig, AutoencoderTrainConfig
from tdmpc_prune.images import load_images
from tdmpc_prune.origin import check_origin
from tdmpc_prune.pruning.allocation import check_target, reachable
from tdmpc_prune.pruning.groups import Group, find_groups
from tdmpc_prune.pruning.size import SizeModel
from tdmpc_prune.training import check_lengths


def plan(config: AnyTrainConfig) -> dict[str, Any]:
    """Pruning groups, sizes and schedule of the run that these settings would make.

    A weight between two layers that can both lose units belongs to a group on each side, so the groups'
    parameters add up to more than there are.

    Raises:
        SparsityError: the target cannot be reached.
        UserError: the run could not be built.
    """
    agent = _new_agent(config)
    _check_origin(config, agent)
    groups = find_groups(agent)
    size = SizeModel(agent.components(), groups)
    largest, reason = reachable(size, size.widths, config.prune.limits, groups)
    planned: dict[str, Any] = {
        "task": config.task,
        "groups": [_describe(group) for group in groups],
        "components": size.component_parameters(size.widths),
        "parameters": size.parameters(size.widths),
        "macs": size.macs(size.widths),
        "reachable_sparsity": largest,
        "reachable_reason": reason,
        "steps": config.steps,
        "sparsity": None,
        "event_steps": [],
    }
    if config.prune.enabled:
        check_target(config.prune.sparsity, size, size.widths, config.prune.limits, groups)
        schedule = config.schedule
        planned |= {"sparsity": schedule.final, "event_steps": schedule.event_steps()}
    return planned


def check_prunable(config: AnyTrainConfig) -> None:
    """Refuses a sparsity that an agent of these settings cannot be pruned to, whatever run it starts from.

    Raises:
        SparsityError: says why, and how far it can.
        UserError: the agent could not be built.
    """
    agent = _new_agent(config)
    groups = find_groups(agent)
    size = SizeModel(agent.components(), groups)
    check_target(config.prune.sparsity, size, size.widths, config.prune.limits, groups)


def table(planned: dict[str, Any]) -> str:
    """What `plan` returned, for a reader."""
    head = ("group", "kind", "members", "units", "per unit", "parameters")
    rows = [
        (
            group["name"],
            group["kind"],
            str(len(group["members"])),
            *(f"{group[key]:,}" for key in ("units", "unit_parameters", "parameters")),
        )
        for group in planned["groups"]
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    alignments = [f"{'<' if i < 2 else '>'}{width}" for i, width in enumerate(widths)]
    lines = ["  ".join(map(format, row, alignments)) for row in (head, *rows)]
    coupling = [
        f"{group['name']}: {', '.join(group['members'])}"
        for group in planned["groups"]
        if group["kind"] == "coupling"
    ]
    parts = ", ".join(f"{name} {count:,}" for name, count in planned["components"].items())
    return "\n".join(
        [
            *lines,
            "",
            *coupling,
            f"{len(rows)} groups, {planned['parameters']:,} parameters ({parts})",
            f"{planned['macs']:,} multiply-accumulates, one input through every component once",
            f"sparsity reachable: {planned['reachable_sparsity']:.1%} ({planned['reachable_reason']})",
            _schedule(planned),
        ]
    )


def _schedule(planned: dict[str, Any]) -> str:
    steps = planned["event_steps"]
    if not steps:
        return f"nothing is pruned in {planned['steps']:,} steps"
    return (
        f"sparsity {planned['sparsity']:.1%} after {len(steps)} removals in {planned['steps']:,} steps, at "
        f"{', '.join(f'{step:,}' for step in steps)}"
    )


def _describe(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": "coupling" if group.coupling else "component",
        "members": [f"{m.component}.{m.layer} {m.role}" for m in group.members],
        "units": group.units,
        "unit_parameters": group.unit_parameters,
        "parameters": group.units * group.unit_parameters,
    }


def _new_agent(config: AnyTrainConfig) -> TDMPC | Autoencoder:
    """The agent that the run would begin with, untrained."""
    if isinstance(config, AutoencoderTrainConfig):
        return Autoencoder(config.agent, load_images(config.data).train.shape[1])
    env = make_env(config.task, seed=config.seed, action_repeat=config.action_repeat)
    sizes = spaces.flatdim(env.observation_space), spaces.flatdim(env.action_space)
    longest = env.get_wrapper_attr("max_episode_steps")
    env.close()
    check_lengths(config, longest)
    return TDMPC(config.agent, *sizes)


def _check_origin(config: AnyTrainConfig, agent: TDMPC | Autoencoder) -> None:
    if config.init_from is not None:
        source = checkpoint.find(config.init_from)
        with checkpoint.readable(source):
            state = checkpoint.read_state(source)
        own = agent.model.architecture() if isinstance(agent, TDMPC) else agent.architecture()
        check_origin(config, state, own)
