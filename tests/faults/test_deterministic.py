"""`--deterministic`: the same bits, whatever the machine."""

import pytest
import torch
from small_runs import CARTPOLE, PENDULUM, assert_same_run, train_small

from tdmpc_prune.cli import parse
from tdmpc_prune.device import set_deterministic
from tdmpc_prune.train import train


@pytest.fixture(autouse=True)
def restored():
    threads = torch.get_num_threads()
    yield
    set_deterministic(False)
    torch.set_num_threads(threads)


def test_on_the_cpu_it_changes_no_number(undisturbed, folder, no_plot):
    train_small(PENDULUM, folder, "--deterministic")
    assert torch.are_deterministic_algorithms_enabled()
    assert_same_run(folder, undisturbed["pendulum"].path)


@pytest.mark.parametrize(("words", "threads"), [([], 1), (["--threads", "2"], 2)])
def test_threads(words, threads, folder, monkeypatch):
    """One, unless another number is asked for."""
    seen = []
    monkeypatch.setattr("tdmpc_prune.train.choose_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr("tdmpc_prune.train._train", lambda *_: seen.append(torch.get_num_threads()) or {})
    command = ["train", "cartpole-swingup", "--preset", "debug", "--run-dir", str(folder), "--deterministic"]
    train(parse([*command, *words]))
    assert seen == [threads]


def test_the_next_run_of_a_process_is_not_forced(folder, no_plot):
    set_deterministic(True)
    train_small(PENDULUM, folder, "--steps", "20")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_two_runs_on_a_gpu_are_equal(tmp_path, no_plot):
    for name in ("a", "b"):
        train_small(CARTPOLE, tmp_path / name, "--device", "cuda", "--deterministic")
    assert_same_run(tmp_path / "a", tmp_path / "b")
