"""What is checked before W&B gets a sweep."""

import pytest
from sweep_files import written

from tdmpc_prune.cli import main
from tdmpc_prune.sweep import wandb_engine

EARLY = ["${program}", "train", "cartpole-swingup", "--prune.end", "0.5", "${args}"]


@pytest.fixture
def given(monkeypatch):
    """What would have gone to W&B."""
    calls = []
    monkeypatch.setattr(wandb_engine, "run", lambda raw, **options: calls.append((raw, options)))
    return calls


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": {"prune.sparsty": {"values": [0.8]}}}, "--prune.sparsity"),
        ({"command": EARLY, "early_terminate": {"type": "hyperband", "min_iter": 3}}, "min_iter: 8"),
        ({"parameters": {"seed": {"min": 1, "max": 1_000_000}}}, "1,000,000 trials"),
    ],
)
def test_refused(changes, said, given, tmp_path, capfd):
    file = written(tmp_path / "sweep.yaml", **changes)
    assert main(["sweep", str(file), "--engine", "wandb"]) == 2
    _, err = capfd.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert given == []


def test_taken(given, tmp_path):
    changes = {"command": EARLY, "early_terminate": {"type": "hyperband", "min_iter": 8}}
    file = written(tmp_path / "sweep.yaml", **changes)
    assert main(["sweep", str(file), "--engine", "wandb", "--count", "3"]) == 0
    (raw, options), *rest = given
    assert rest == []
    assert raw["early_terminate"]["min_iter"] == 8
    assert options == {"join": None, "count": 3}


def test_who_is_logged_in_goes_to_wandb(given, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert main(["sweep", str(written(tmp_path / "sweep.yaml"))]) == 0
    assert len(given) == 1
