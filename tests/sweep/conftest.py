import os
from pathlib import Path

import pytest
import yaml

from tdmpc_prune.sweep.definition import Definition, read

HEAD = {
    "program": "tdmpc-prune",
    "command": ["${program}", "train", "cartpole-swingup", "--preset", "debug", "${args}"],
    "method": "grid",
    "metric": {"name": "eval/return", "goal": "maximize"},
    "parameters": {"seed": {"values": [1, 2]}},
}
"""A sweep that is right."""


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty folder to stand in, and nobody logged in to W&B."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))  # HOME stays: Ray keeps its token there


def written(path: Path, **changes) -> Path:
    """A sweep file: the right one with changes; None takes a key away."""
    content = {key: value for key, value in (HEAD | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def define(tmp_path):
    """Reads a sweep like the right one, with changes."""

    def make(**changes) -> Definition:
        return read(written(tmp_path / "sweep.yaml", **changes))

    return make
