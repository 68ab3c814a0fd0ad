"""What can be different from training, and by how much. Imports no simulator; `perturb` does it."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass


class PerturbationError(ValueError):
    """One that does not exist, an amount that it cannot have, or a world without it; the message is one line."""


@dataclass(frozen=True)
class Perturbation:
    """One change of the world and how large it is."""

    name: str
    """A key of `KINDS`."""
    amount: float
    """In the unit that `KINDS` says."""

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            close = difflib.get_close_matches(self.name, KINDS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise PerturbationError(
                f"unknown perturbation {self.name!r}: {hint}choose {', '.join(KINDS)}, as in mass=1.5"
            )
        low, high = LIMITS[self.name]
        whole = self.name != "delay" or self.amount % 1 == 0
        if not (low <= self.amount <= high and whole):
            raise PerturbationError(f"{self.name}={self.amount:g}: {KINDS[self.name]}")

    def __str__(self) -> str:
        return f"{self.name}={self.amount:g}"


KINDS = {
    "noise": "standard deviation of Gaussian noise on every observation, in its own units, 0 to 1e6",
    "delay": "agent steps from an action to its effect, a whole number, 0 to 1000",
    "mass": "factor on all masses and inertias, 0.01 to 100",
    "damping": "factor on the damping of all joints, 0 to 100",
    "gravity": "factor on gravity, 0 to 100",
}
"""Every kind of perturbation, and what its amount means."""

LIMITS = {
    "noise": (0, 1e6),
    "delay": (0, 1000),
    "mass": (0.01, 100),
    "damping": (0, 100),
    "gravity": (0, 100),
}
"""Smallest and largest amount: beyond them simulators break, and nothing is learned of a controller."""

STANDARD = tuple(
    Perturbation(name, amount)
    for name, amounts in {
        "noise": (0.01, 0.05),
        "delay": (1, 2),
        "mass": (0.7, 1.3),
        "damping": (0.5, 2),
        "gravity": (0.8, 1.2),
    }.items()
    for amount in amounts
)
"""A few of each kind, from mild to hard."""


def parse_perturbations(text: str) -> tuple[Perturbation, ...]:
    """Perturbations from `mass=1.5,delay=1`, or the `STANDARD` ones from the word `standard`.

    Raises:
        PerturbationError: it is written otherwise, or asks for what there is not.
    """
    if text.strip() == "standard":
        return STANDARD
    found = []
    for part in text.split(","):
        name, equals, amount = part.strip().partition("=")
        try:
            number = float(amount)
        except ValueError:
            number = math.nan
        if not equals or math.isnan(number):
            raise PerturbationError(
                f"perturbation {part.strip()!r}: write NAME=AMOUNT, as in mass=1.5, or the word standard"
            )
        found.append(Perturbation(name, number))
    return tuple(found)
