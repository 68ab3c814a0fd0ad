"""A sweep at W&B: its server chooses the trials, and an agent in this process runs them one after the other."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tdmpc_prune.config import WandbConfig
from tdmpc_prune.errors import Interrupted, UserError
from tdmpc_prune.wandb_sink import logged_in, reason

SWEEP_ID = re.compile(r"(?:(?:[\w.-]+/)?[\w.-]+/)?[\w-]+")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


def run(definition: Mapping[str, Any], *, join: str | None, count: int | None) -> None:
    """Creates the sweep at W&B, or joins one, and runs its trials.

    Args:
        definition: the content of the sweep file.
        join: the existing sweep, `[[ENTITY/]PROJECT/]ID`.
        count: trials that this agent makes; as many as there are if none.

    Raises:
        UserError: nobody is logged in, the server is away or refuses, there is no such sweep.
        Interrupted: a signal came; the trial was saved, and goes on with the sweep's next agent.
    """
    if join is not None and not SWEEP_ID.fullmatch(join):
        raise UserError(f"--join {join}: give the sweep as its page names it, [[ENTITY/]PROJECT/]ID")
    if not logged_in():
        raise UserError("W&B's sweeps need a login: wandb login, or choose --engine ray")
    import wandb

    entity = definition.get("entity")
    project = definition.get("project") or os.environ.get("WANDB_PROJECT") or WandbConfig.project
    # What the agent starts is this environment's, whether it was activated or not.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    sweep = join
    try:
        with contextlib.redirect_stdout(sys.stderr), _stoppable():
            if sweep is None:  # W&B says the sweep's address
                sweep = wandb.sweep(dict(definition), entity=entity, project=project)
            wandb.agent(sweep, entity=entity, project=project, count=count)
    except Interrupted:
        raise
    except Exception as error:
        said = reason(error)
        if "not found" in said.lower():
            raise UserError(
                f"W&B: {said}: give the sweep as its page names it, [[ENTITY/]PROJECT/]ID"
            ) from error
        raise UserError(
            f"W&B: {said}: is it there, and is the login right (wandb login)? Else choose --engine ray"
        ) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Around an agent: SIGINT and SIGTERM let its trial save itself, and raise Interrupted.

    W&B's agent only waits for its trial when it is interrupted first, and ends it when that happens again.
    """
    came: list[int] = []

    def stop(number: int, _: Any) -> None:
        if not came:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
        came.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise Interrupted
