"""One run at a time in a folder."""

import shutil
import signal
import subprocess
import sys

import pytest
from small_runs import PENDULUM, STATE, assert_same_run, checkpoints, train_small, tree

from tdmpc_prune.cli import main, parse
from tdmpc_prune.run_folder import LOCK, RunFolder
from tdmpc_prune.training import Training


def beside(monkeypatch, act) -> None:
    """Calls `act` once, while a run makes its tenth update."""
    real, count = Training.update, iter(range(10**6))

    def update(self):
        if next(count) == 9:
            act()
        real(self)

    monkeypatch.setattr(Training, "update", update)


def test_a_second_run_in_a_folder_is_refused(undisturbed, folder, monkeypatch, no_plot, capfd):
    """In one line and before it has written anything; the first one does not even notice."""
    codes = []

    def second_run():
        before = tree(folder)
        capfd.readouterr()
        codes.append(main(["train", *PENDULUM, "--run-dir", str(folder)]))
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("tdmpc-prune: ")
        assert err.count("\n") == 1
        assert f"another run is at work in {folder}" in err
        assert "--run-dir" in err
        assert tree(folder) == before

    beside(monkeypatch, second_run)
    train_small(PENDULUM, folder)
    assert codes == [2]
    assert_same_run(folder, undisturbed["pendulum"].path)
    assert not (folder / LOCK).exists()


def test_readers_need_no_lock(folder, monkeypatch, no_plot, capfd):
    codes = []

    def read():
        assert checkpoints(folder)
        codes.append(main(["evaluate", str(folder), "--episodes", "1", "--threads", "1", "--json"]))

    real = Training.evaluate

    def evaluate(self, check):
        if self.finished:
            read()
        return real(self, check)

    monkeypatch.setattr(Training, "evaluate", evaluate)
    train_small(PENDULUM, folder)
    assert codes == [0]


HOLD = """
import os, signal, sys
from pathlib import Path
from tdmpc_prune.cli import parse
from tdmpc_prune.run_folder import RunFolder
config = parse(sys.argv[1:])
with RunFolder(config.folder).locked(config):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_no_lock(undisturbed, folder, no_plot):
    arguments = ["train", *PENDULUM, "--run-dir", str(folder)]
    killed = subprocess.run([sys.executable, "-c", HOLD, *arguments], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in folder.iterdir()] == [LOCK]  # a file, which nobody holds
    train_small(PENDULUM, folder)
    assert_same_run(folder, undisturbed["pendulum"].path)


def test_a_folder_that_another_run_has_begun_meanwhile(finished, folder, tmp_path):
    """Between the first look and the lock: it is looked at again."""
    config = parse(["train", *PENDULUM, "--run-dir", str(folder)])
    run = RunFolder(folder)
    run.check(config)
    shutil.copytree(finished, folder)
    with pytest.raises(Exception, match="holds a run with other settings"), run.locked(config):
        pytest.fail("locked")
    assert not (folder / LOCK).exists()


@pytest.mark.parametrize("name", ["poetry.lock", "locked", STATE])
def test_no_other_file_passes_for_a_lock(name, folder):
    folder.mkdir()
    (folder / name).touch()
    with pytest.raises(Exception, match="holds something that is no run"):
        RunFolder(folder).check(parse(["train", *PENDULUM, "--run-dir", str(folder)]))
