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
    [
        *((0, said, min(CORES, MOST_THREADS)) for said in (None, "", "many", "0")),
        *((0, "2", 2), (0, "1,2", 1), (2, "1", 2)),
    ],
)
def test_threads(asked, variable, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(3)
    set_threads(asked)
    assert torch.get_num_threads() == threads
