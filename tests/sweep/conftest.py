import os

import pytest
from sweep_files import written

from tdmpc_prune.sweep.definition import Definition, read


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty folder to stand in, and nobody logged in to W&B."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))  # HOME stays: Ray keeps its token there


@pytest.fixture
def define(tmp_path):
    """Reads a sweep like the right one, with changes."""

    def make(**changes) -> Definition:
        return read(written(tmp_path / "sweep.yaml", **changes))

    return make
