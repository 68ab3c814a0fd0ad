"""Whether a run can begin with what another one has learned (`--init-from`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from envs import resolve_task
from tdmpc_prune.config import AUTOENCODER, AnyTrainConfig, TDMPCTrainConfig
from tdmpc_prune.errors import UserError

SHAPING = ("latent_dim", "encoder_dim", "hidden_dim", "num_q", "horizon", "code_dim")
"""Settings of the agents that stored networks and replay have been made for; any other may change."""


def check_origin(
    config: AnyTrainConfig, state: Mapping[str, Any], architecture: Mapping[str, Sequence[int]]
) -> None:
    """Refuses a checkpoint that a run cannot begin with.

    Args:
        config: the run's settings.
        state: the JSON part of the checkpoint.
        architecture: widths of the agent that the run would build anew.

    Raises:
        UserError: it learned another task, its agent has other sizes, or it was pruned.
    """
    said = f"--init-from {config.init_from}"
    if _task(state["task"]) != _task(config.task):
        raise UserError(f"{said}: it learned {state['task']}, not {config.task}; give a run of this task")
    if isinstance(config, TDMPCTrainConfig) and state["action_repeat"] != config.env_steps_per_action:
        raise UserError(
            f"{said}: its action repeat is {state['action_repeat']}, here {config.env_steps_per_action}; "
            f"add --action-repeat {state['action_repeat']}"
        )
    settings = asdict(config.agent)
    differing = {n: state["agent"][n] for n in SHAPING if n in settings and state["agent"][n] != settings[n]}
    if differing:
        options = " ".join(f"--agent.{name.replace('_', '-')} {value}" for name, value in differing.items())
        raise UserError(
            f"{said}: its agent has other sizes; add {options}, or the --preset that it was made with"
        )
    inputs = state["architecture"]["encoder"][0], architecture["encoder"][0]
    if inputs[0] != inputs[1]:
        raise UserError(
            f"{said}: its inputs have {inputs[0]} numbers, here {inputs[1]}; give one for the same data"
        )
    if {name: list(sizes) for name, sizes in architecture.items()} != state["architecture"]:
        raise UserError(f"{said}: it has lost units already; give a dense run (--prune.criterion none)")


def _task(name: str) -> str:
    return name if name == AUTOENCODER else resolve_task(name)
