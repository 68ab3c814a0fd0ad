"""What goes wrong around a run, put into one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from envs import SimulatorError
from tdmpc_prune.errors import Failure, Stopped

AGAIN = "the same command goes on from there"
FROM_LAST = "the same command goes on from the last checkpoint"


@contextmanager
def measuring(place: str, memory: str) -> Iterator[None]:
    """Around what leaves a run as it is, however it ends.

    Args:
        place: where the run is.
        memory: settings by which it takes more memory.

    Raises:
        Stopped: the simulator fails, or the memory is full.
    """
    try:
        yield
    except SimulatorError as error:
        raise Stopped(simulator_line(f"{place}, while evaluating", error)) from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise Stopped(f"{place}: out of memory while evaluating: {_free(AGAIN, memory)}") from error


@contextmanager
def running(folder: object, memory: str) -> Iterator[None]:
    """Around all that a run does: what it cannot be saved after. `memory` as above.

    Raises:
        Failure: the folder cannot be written to any longer (a full disk, say), or the memory is full.
    """
    try:
        with building(memory):
            yield
    except ConnectionError:  # a reader of our output has left: nothing that the folder could help
        raise
    except OSError as error:
        raise Failure(
            f"cannot write to {folder} ({error.strerror or error}): make room there, or let it be written to, "
            f"and {FROM_LAST}"
        ) from error


@contextmanager
def building(memory: str) -> Iterator[None]:
    """Around what takes memory; `memory` as above. Raises Failure if it is full."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise Failure(f"out of memory: {_free(FROM_LAST, memory)}") from error


def simulator_line(place: str, error: SimulatorError) -> str:
    """Says what the simulator did, and what can be done about it."""
    return (
        f"{place}: {error}; {AGAIN}. If it comes back, mend the environment if it is your own, or choose "
        "another --seed, and a --run-dir for it"
    )


def _free(then: str, memory: str) -> str:
    return f"free some, and {then}; or begin another run (--run-dir), with a lower {memory}"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is about memory; on the CPU, PyTorch says so in words alone."""
    words = ("can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(w in str(error) for w in words)
