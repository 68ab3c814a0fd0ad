"""How much is to be gone by when: sparsity over environment steps, and the events that remove units.

Sparsity is 1 - parameters now / parameters at the start, over the online networks (targets not counted).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["cosine", "cubic", "linear", "geometric", "one-shot"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Sparsity over environment steps; `sparsity` never falls.

    Raises:
        ValueError: a field is out of range; the message says what to choose.
    """

    kind: Kind = "geometric"
    """cosine: slow, fast, slow; cubic: fast first (Zhu & Gupta 2017); linear; geometric: the same share of what is
    left at each event (Frankle & Carbin 2019); one-shot: all at `start`."""
    start: int
    """Environment step from which sparsity rises."""
    end: int
    """Environment step that reaches `final` (one-shot: not used)."""
    events: int
    """Number of removals, evenly spaced, the last one at `end` (one-shot: always one)."""
    initial: float = 0.0
    """Sparsity before `start`."""
    final: float
    """Sparsity from `end` on."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; choose one of {', '.join(get_args(Kind))}")
        for name in ("start", "end", "events"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose a whole number")
        if self.start < 0:
            raise ValueError(f"start is {self.start}; choose 0 or more environment steps")
        if not 0 <= self.initial < 1:
            raise ValueError(f"initial is {self.initial}; choose a sparsity from 0 to below 1")
        if not self.initial <= self.final < 1:
            raise ValueError(f"final is {self.final}; choose a sparsity from {self.initial} to below 1")
        if self.kind == "one-shot":
            return
        if self.end <= self.start:
            raise ValueError(f"end is {self.end}; choose more than start, {self.start}")
        if not 1 <= self.events <= self.end - self.start:
            raise ValueError(f"events is {self.events}; choose 1 to {self.end - self.start} (end - start)")

    def sparsity(self, step: int) -> float:
        """The scheduled sparsity at an environment step: exactly `final` at `end` and after it."""
        if step >= self._event_step(self._events - 1):
            return self.final
        if step <= self.start or self.kind == "one-shot":
            return self.initial
        p = (step - self.start) / (self.end - self.start)
        if self.kind == "geometric":
            left = (1 - self.initial) * ((1 - self.final) / (1 - self.initial)) ** p
            return min(max(1 - left, self.initial), self.final)
        if self.kind == "cosine":
            share = (1 - math.cos(math.pi * p)) / 2
        elif self.kind == "cubic":
            share = 1 - (1 - p) ** 3
        else:
            share = p
        # Rounding may lift the sum past `final` by one bit just before the end.
        return min(self.initial + (self.final - self.initial) * share, self.final)

    def event_steps(self) -> list[int]:
        """The environment step of every event, in order."""
        return [self._event_step(number) for number in range(self._events)]

    def due(self, step: int, done: int) -> bool:
        """Whether the next event, after `done` of them, has been reached."""
        return done < self._events and step >= self._event_step(done)

    @property
    def _events(self) -> int:
        return 1 if self.kind == "one-shot" else self.events

    def _event_step(self, number: int) -> int:
        if self.kind == "one-shot":
            return self.start
        return self.start + (self.end - self.start) * (number + 1) // self.events
