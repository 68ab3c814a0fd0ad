"""A disk that is full, or lets nobody write: one line, and the last good checkpoint is as good as before."""

import errno
import itertools
import os
import resource
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from filelock import FileLock
from small_runs import PENDULUM, assert_same_run, checkpoints, rows, train_small, tree

from tdmpc_prune.checkpoint import load_agent
from tdmpc_prune.cli import main
from tdmpc_prune.errors import Interrupted
from tdmpc_prune.logger import MetricsFile
from tdmpc_prune.training import Training

OFTEN = [*PENDULUM, "--checkpoint-every", "20"]


@contextmanager
def largest_file(size):
    """No file can grow beyond so many bytes: the system's own way to break off a write in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_whole(folder: Path, number: int) -> None:
    """So many checkpoints, which can be read, nothing half-written beside them, and no torn line of metrics."""
    assert len(checkpoints(folder)) == number
    assert [path.name for path in (folder / "checkpoints").iterdir() if not path.name.isdigit()] == []
    assert (folder / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert rows(folder)  # all of them are JSON
    if number:
        load_agent(folder, torch.device("cpu"))


def test_full_before_it_begins(folder, failed, monkeypatch):
    def truncate(path, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("tdmpc_prune.logger.os.truncate", truncate)
    assert f"cannot write to {folder} (No space left on device)" in failed(OFTEN)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_full_in_the_middle_of_a_checkpoint(name, undisturbed, folder, failed, monkeypatch, no_plot):
    real, count = Training.save, itertools.count(1)

    def save(self, metrics_bytes):
        if next(count) != 2:
            return real(self, metrics_bytes)
        with largest_file((checkpoints(folder)[-1] / name).stat().st_size - 100):
            return real(self, metrics_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", save)
        line = failed(OFTEN)
    assert f"cannot write to {folder}" in line
    assert "too large" in line  # the system's own word
    assert "make room there" in line
    assert_whole(folder, 1)
    train_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)


CALLS = {
    "the folder is made": ("os.mkdir", -1),
    "the first file is made sure of": ("os.fsync", 1),
    "the second one is": ("os.fsync", 2),
    "the JSON is": ("os.fsync", 3),
    "the folder is": ("os.fsync", 4),
    "it gets its name": ("os.rename", 1),
}


@pytest.mark.parametrize("moment", CALLS)
def test_full_when(moment, undisturbed, folder, failed, monkeypatch, no_plot):
    """At every call of a checkpoint that may fail."""
    target, which = CALLS[moment]
    place, _, name = target.rpartition(".")
    real_save, real, saves = Training.save, getattr(resolve_name(place), name), itertools.count(1)

    def save(self, metrics_bytes):
        if next(saves) != 2:
            return real_save(self, metrics_bytes)
        calls = itertools.count(1)

        def full(*arguments, **named):
            if next(calls) == which or which < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            return real_save(self, metrics_bytes)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", save)
        line = failed(OFTEN)
    assert "No space left on device" in line
    assert_whole(folder, 1)
    train_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)


@pytest.mark.parametrize("row", [1, 3])
def test_full_in_the_middle_of_a_line(row, undisturbed, folder, failed, monkeypatch, no_plot):
    real, count = MetricsFile.write, itertools.count(1)

    def write(self, line):
        if next(count) != row:
            return real(self, line)
        with largest_file((folder / "metrics.jsonl").stat().st_size + 20):
            return real(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "write", write)
        line = failed(OFTEN)
    assert f"cannot write to {folder}" in line
    assert len((folder / "metrics.jsonl").read_bytes().splitlines()) == row - 1
    train_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)


def test_full_when_a_signal_asks_to_save(undisturbed, folder, failed, monkeypatch, no_plot):
    """The line says that it was not saved."""

    def update(self):
        raise Interrupted("SIGTERM")

    def save(self, metrics_bytes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Training, "update", update)
        patch.setattr(Training, "save", save)
        line = failed(PENDULUM)
    assert "No space left" in line
    assert not checkpoints(folder)
    train_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)


def test_a_folder_in_which_no_lock_can_be_made(folder, monkeypatch, capfd):
    """As on a disk that is mounted read-only."""
    folder.mkdir()

    def acquire(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    before = tree(folder.parent)
    capfd.readouterr()
    assert main(["train", *PENDULUM, "--run-dir", str(folder)]) == 2
    _, err = capfd.readouterr()
    assert err.startswith(f"tdmpc-prune: cannot write to {folder} (Read-only file system)")
    assert err.count("\n") == 1
    assert tree(folder.parent) == before
