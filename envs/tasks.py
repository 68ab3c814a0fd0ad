"""The table of tasks: their names, aliases, and action repeats. Imports no simulator.

A name that is not in the table may be one that somebody has registered with Gymnasium; see `envs.registered`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


class UnknownTaskError(ValueError):
    """The task name is not in the table; the message is one line that names the nearest ones."""


@dataclass(frozen=True)
class Task:
    """One entry of the table."""

    name: str
    """Canonical name, e.g. `cup-catch`."""
    suite: Literal["dmcontrol", "gymnasium", "registered"]
    """The library that simulates it; `registered`: an environment of one's own."""
    domain: str
    """dm_control's domain (`ball_in_cup`), or an environment's id with Gymnasium (`Ant-v5`)."""
    variant: str
    """dm_control's task (`catch`); empty for Gymnasium."""
    action_repeat: int
    """Base environment steps for each action of the agent, when the caller does not say."""

    @property
    def drawn(self) -> bool:
        """Whether its physics is drawn from the seed of its construction: two seeds are two systems."""
        return self.domain == "lqr"


# As in dm_control.suite.ALL_TASKS (1.0.50), extra tasks included; a test compares the two.
_DMCONTROL: dict[str, tuple[str, ...]] = {
    "acrobot": ("swingup", "swingup_sparse"),
    "ball_in_cup": ("catch",),
    "cartpole": (
        "balance", "balance_sparse", "swingup", "swingup_sparse", "two_poles", "three_poles",
    ),
    "cheetah": ("run",),
    "dog": ("stand", "walk", "trot", "run", "fetch"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("upright", "swim"),
    "hopper": ("stand", "hop"),
    "humanoid": ("stand", "walk", "run", "run_pure_state"),
    "humanoid_CMU": ("stand", "walk", "run"),
    "lqr": ("lqr_2_1", "lqr_6_2"),
    "manipulator": ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
    "pendulum": ("swingup",),
    "point_mass": ("easy", "hard"),
    "quadruped": ("walk", "run", "escape", "fetch"),
    "reacher": ("easy", "hard"),
    "stacker": ("stack_2", "stack_4"),
    "swimmer": ("swimmer6", "swimmer15"),
    "walker": ("stand", "walk", "run"),
}  # fmt: skip

# Domains that TD-MPC2 spells shorter than dm_control does.
_SHORT_DOMAIN = {"ball_in_cup": "cup", "point_mass": "pointmass"}

# TD-MPC's action repeats (Hansen et al. 2022, appendix); every other domain repeats 4 times.
_DMCONTROL_REPEAT = {"cartpole": 8, "walker": 2, "finger": 2, "dog": 2, "humanoid": 2, "humanoid_CMU": 2}

_GYMNASIUM = (
    "Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5", "InvertedPendulum-v5", "Pusher-v5", "Reacher-v5", "Swimmer-v5",
    "Walker2d-v5",
)  # fmt: skip


def _table() -> Iterator[Task]:
    for domain, variants in _DMCONTROL.items():
        for variant in variants:
            name = f"{_SHORT_DOMAIN.get(domain, domain)}-{variant}".replace("_", "-")
            yield Task(name, "dmcontrol", domain, variant, _DMCONTROL_REPEAT.get(domain, 4))
    for env_id in _GYMNASIUM:
        # These environments carry a frame skip of their own.
        yield Task(env_id, "gymnasium", env_id, "", 1)


TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _table()})
"""Every task by its canonical name: DMControl's first, then Gymnasium's MuJoCo v5."""


VARIABLE = "TDMPC_PRUNE_ENVS"
"""Environment variable with modules to import, which register environments: `my_envs` or `my_envs,lab.robots`."""

_VERSIONED = re.compile(r"-v\d+$")
"""How names end that may be registered with Gymnasium."""


def _key(name: str) -> str:
    """Spelling-blind form of a name: dm_control's underscores and any case are accepted."""
    return name.strip().replace("_", "-").lower()


_ALIASES: dict[str, str] = {
    **{_key(f"{task.domain}-{task.variant}"): task.name for task in TASKS.values() if task.variant},
    **{_key(name): name for name in TASKS},
}


def task_names() -> list[str]:
    """Canonical names of all tasks, in the order of `TASKS`."""
    return list(TASKS)


def resolve_task(name: str) -> str:
    """Canonical name of a task, whichever accepted spelling `name` has.

    Accepts dm_control's own spelling (`ball_in_cup-catch`, `point_mass-easy`) and ignores case.

    Raises:
        UnknownTaskError: no task has this name; the message names the nearest.
        SimulatorError: a module of `TDMPC_PRUNE_ENVS` cannot be imported.
    """
    return find_task(name).name


def find_task(name: str) -> Task:
    """What is known of a task: the table's entry, or a new one of an environment that is registered with Gymnasium.

    Raises:
        UnknownTaskError: no task has this name; the message names the nearest.
        SimulatorError: a module of `TDMPC_PRUNE_ENVS` cannot be imported.
    """
    canonical = _ALIASES.get(_key(name))
    if canonical is not None:
        return TASKS[canonical]
    if _VERSIONED.search(name):
        from envs.registered import is_registered  # only now: it takes Gymnasium

        if is_registered(name):
            return Task(name, "registered", name, "", 1)
    close = difflib.get_close_matches(_key(name), _ALIASES, n=5, cutoff=0.5)
    nearest = list(dict.fromkeys([*_own(name), *(_ALIASES[key] for key in close)]))[:3]
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise UnknownTaskError(
        f"unknown task {name!r}: {hint}All {len(TASKS)} are listed by `python -m envs`; "
        f"{VARIABLE}=MODULE adds your own."
    )


def _own(name: str) -> list[str]:
    """An environment of one's own of this name and another version, if modules were named that register some."""
    if not os.environ.get(VARIABLE):
        return []
    from envs.registered import with_version

    own = with_version(_VERSIONED.sub("", name))
    return [own] if own else []
