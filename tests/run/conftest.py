import itertools
import os
from pathlib import Path

import pytest
from small_runs import ARGUMENTS, Observed, observe, train_small

from tdmpc_prune.errors import Interrupted
from tdmpc_prune.signals import StopSignals

NOWHERE = "http://127.0.0.1:9"  # the discard port: whoever tries the network fails at once
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty folder to stand in, nobody logged in to W&B, and no way to the network."""
    home = tmp_path / "home"
    home.mkdir()
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in PROXIES:
        monkeypatch.setenv(name, NOWHERE)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run folder that does not exist yet."""
    return tmp_path / "run"


@pytest.fixture
def no_plot(monkeypatch):
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("tdmpc_prune.train.plot_run", lambda folder: None)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> dict[str, Observed]:
    """A run of each task that nobody interrupted, and what happened in it, in order."""
    runs = {}
    for name, arguments in ARGUMENTS.items():
        path = tmp_path_factory.mktemp("undisturbed") / name
        with pytest.MonkeyPatch.context() as patch:
            events = observe(patch)
            if name != "cartpole":  # one picture will do
                patch.setattr("tdmpc_prune.train.plot_run", lambda folder: None)
            train_small(arguments, path)
        runs[name] = Observed(path, events)
    return runs


@pytest.fixture(scope="session")
def finished(undisturbed) -> Path:
    """A finished run of cartpole-swingup; copy it to change it."""
    return undisturbed["cartpole"].path


@pytest.fixture
def interrupt(monkeypatch):
    """Makes the n-th check for signals, counted from 1, raise; 0: none."""

    def at(n: int) -> None:
        count = itertools.count(1)

        def check(self):
            if next(count) == n:
                raise Interrupted("SIGTERM")

        monkeypatch.setattr(StopSignals, "check", check)

    return at
