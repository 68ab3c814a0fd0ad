"""The tasks with an equilibrium: where it is, and how far from it a controller should hold. No simulator needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from envs.tasks import resolve_task


class NoEquilibriumError(ValueError):
    """The task has no equilibrium; the message is one line that names those that have one."""


@dataclass(frozen=True)
class Equilibrium:
    """A state that zero action holds, and the box around it, the stabilisation region.

    A state x is MuJoCo's qpos and qvel one after the other [D]: metres and radians, then m/s and rad/s.
    """

    state: tuple[float, ...]
    """x* [D]."""
    half_widths: tuple[float, ...]
    """Of the region [D]: it holds the states with |x - x*| at most this, in every coordinate."""


def _at_rest(*qpos: float, region: tuple[float, ...]) -> Equilibrium:
    return Equilibrium((*qpos, *(0.0 for _ in qpos)), region)


# The regions are heuristic: small enough that the actuators can hold every state of them that an LQR's
# largest ellipsoid inside reaches (a test does), and for Gymnasium's well inside what ends the episode.
_CARTPOLE = _at_rest(0, 0, region=(0.5, 0.3, 1.0, 1.0))  # cart m, pole rad, m/s, rad/s
_TWO_POLES = _at_rest(
    0, 0, 0, region=(0.5, 0.15, 0.15, 1.0, 1.0, 1.0)
)  # the second angle is to the first pole
_PENDULUM = _at_rest(0, region=(0.1, 0.4))  # rad, rad/s; gravity beats the motor from 0.2 rad on
_ACROBOT = _at_rest(0, 0, region=(0.05, 0.1, 0.2, 0.4))  # shoulder, elbow rad, rad/s
_POINT_MASS = _at_rest(0, 0, region=(0.1, 0.1, 0.1, 0.1))  # x, y m, m/s; nothing falls here: the target

EQUILIBRIA: Mapping[str, Equilibrium] = MappingProxyType(
    {
        "acrobot-swingup": _ACROBOT,
        "acrobot-swingup-sparse": _ACROBOT,
        "cartpole-balance": _CARTPOLE,
        "cartpole-balance-sparse": _CARTPOLE,
        "cartpole-swingup": _CARTPOLE,
        "cartpole-swingup-sparse": _CARTPOLE,
        "cartpole-two-poles": _TWO_POLES,
        "pendulum-swingup": _PENDULUM,
        "pointmass-easy": _POINT_MASS,
        # Cart m, pole rad, m/s, rad/s. The pole's model leans by 1 mm on 60 cm; beyond 0.2 rad it has fallen.
        "InvertedPendulum-v5": _at_rest(0, -0.00166666512, region=(0.5, 0.15, 1.0, 1.0)),
        # Cart m, poles rad (the second to the first), m/s, rad/s.
        "InvertedDoublePendulum-v5": _at_rest(0, 0, 0, region=(0.5, 0.15, 0.15, 1.0, 1.0, 1.0)),
    }
)
"""Upright, or at the target, by the task's canonical name. Left out: tasks that draw their springs or
gains anew (lqr, pointmass-hard), for each draw is another system."""


def equilibrium(task: str) -> Equilibrium:
    """The equilibrium of a task, whichever accepted spelling `task` has.

    Raises:
        UnknownTaskError: no task has this name.
        NoEquilibriumError: it has none.
    """
    name = resolve_task(task)
    if name not in EQUILIBRIA:
        raise NoEquilibriumError(
            f"{name} has no equilibrium to judge; those that have: {', '.join(EQUILIBRIA)}"
        )
    return EQUILIBRIA[name]
