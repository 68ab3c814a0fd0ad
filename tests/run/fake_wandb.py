"""W&B's side of a sweep: the words that its agent runs."""

import os
from typing import Any
from unittest import mock

from wandb import wandb_agent


def agent_command(definition: dict[str, Any], parameters: dict[str, Any], folder: str = "/tmp") -> list[str]:
    """The words that W&B's own agent runs for a trial with these parameters (nested ones as dicts).

    `${args_json_file}` and the parameters' own file are written below the folder.
    """
    started: list[list[str]] = []

    def process(command, **_):
        started.append(command)
        return mock.Mock()

    with (
        mock.patch.dict(os.environ, {"WANDB_DIR": folder, "WANDB_SWEEP_ID": "sweep123"}),
        mock.patch.object(wandb_agent, "AgentProcess", process),
    ):
        agent = wandb_agent.Agent(api=None, queue=None, sweep_id="sweep123")
        agent._sweep_command = list(definition.get("command") or [])
        arguments = {name: {"value": value} for name, value in parameters.items()}
        agent._command_run(
            {"type": "run", "run_id": "trial123", "program": definition.get("program"), "args": arguments}
        )
    return started[0]
