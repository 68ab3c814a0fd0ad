"""Small runs that are measured, and none that takes more than one thread."""

from pathlib import Path

import pytest
import torch

from tdmpc_prune.cli import parse
from tdmpc_prune.train import train

TINY = [
    *("train", "cartpole-swingup", "--preset", "debug", "--threads", "1", "--device", "cpu"),
    *("--wandb.mode", "disabled", "--action-repeat", "50", "--steps", "4000", "--keep-every", "1000"),
    *("--agent.latent-dim", "5", "--agent.encoder-dim", "6", "--agent.hidden-dim", "7"),
    *("--agent.random-steps", "20", "--agent.planner.num-samples", "8", "--eval-episodes", "1"),
    *("--prune.sparsity", "0.3", "--prune.importance.warmup", "30", "--prune.eval-episodes", "0"),
]
"""Four episodes of 20 agent steps, a checkpoint after each; the tracker is warm from the second one on."""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A pruned and a dense run, with four checkpoints each."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdmpc_prune.train.plot_run", lambda folder: None)
        train(parse([*TINY, "--run-dir", str(folder / "pruned")]))
        train(parse([*TINY, "--prune.criterion", "none", "--run-dir", str(folder / "dense")]))
    return {"pruned": folder / "pruned", "dense": folder / "dense"}
