"""Random numbers borrowed from a generator that others draw from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(generator: torch.Generator, seed: int) -> Iterator[None]:
    """A generator starts from a seed, and afterwards goes on where it was."""
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)
