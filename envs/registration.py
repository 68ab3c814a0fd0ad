"""Registers every task with Gymnasium. Importing this module registers them:

`gymnasium.make("envs.registration:tdmpc_prune/cartpole-swingup-v0")`
"""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.envs.registration import register, registry

from envs.tasks import TASKS, resolve_task

NAMESPACE = "tdmpc_prune"


def env_id(task: str) -> str:
    """Gymnasium's id of a task: `tdmpc_prune/cartpole-swingup-v0`, `tdmpc_prune/Ant-v5`.

    Raises:
        UnknownTaskError: no task has this name.
    """
    entry = TASKS[resolve_task(task)]
    # Gymnasium's names carry the version of their dynamics; Gymnasium's own ids stay Gymnasium's.
    return f"{NAMESPACE}/{entry.name}" + ("-v0" if entry.suite == "dmcontrol" else "")


def _make(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    from envs import make_env

    return make_env(**kwargs)


def register_all() -> None:
    """Registers every task under `tdmpc_prune/`; may be called again."""
    for name in TASKS:
        if env_id(name) not in registry:
            # No max_episode_steps here: the environment has its time limit, and it counts base steps.
            register(
                env_id(name),
                entry_point="envs.registration:_make",
                kwargs={"task": name},
                order_enforce=False,
            )


register_all()
