"""Real processes, really killed; `python -m benchmarks.faults` does it a hundred times."""

import numpy as np
import pytest

from tests.faults.harness import CASES, Figures, kill_and_restart, undisturbed


@pytest.mark.parametrize(("case", "seed"), [("pruned, checkpoints kept", 1), ("autoencoder", 2)])
def test_killed_and_restarted(case, seed, tmp_path):
    """Whatever a run was doing: nothing is lost, and it ends as if nothing had happened."""
    whole, figures = undisturbed(CASES[case], tmp_path / "whole"), Figures()
    rng = np.random.default_rng(seed)
    for number in range(2):
        kill_and_restart(whole, tmp_path / str(number), rng, 3, figures)
    assert figures.kills >= 3
    assert figures.resumed >= 2
    assert figures.runs == 2
    assert figures.bytes_lost == 0
