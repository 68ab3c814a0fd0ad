"""How many threads compute."""

import os

import pytest
import torch

from tdmpc_prune.device import MOST_THREADS, set_threads

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def threads_of_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("asked", "variable", "threads"),
    [(0, "2", 3), (0, None, min(CORES, MOST_THREADS)), (0, "", min(CORES, MOST_THREADS)), (2, "1", 2)],
)
def test_threads(asked, variable, threads, monkeypatch):
    """PyTorch has read OMP_NUM_THREADS long before: where it is set, nothing is changed."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(3)
    set_threads(asked)
    assert torch.get_num_threads() == threads
