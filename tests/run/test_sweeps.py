"""The sweeps under sweeps/ issue command lines that are understood."""

from itertools import product
from pathlib import Path

import pytest
import yaml

from tdmpc_prune.cli import parse

SWEEPS = sorted(Path(__file__).parents[2].glob("sweeps/*.yaml"))


def test_there_are_sweeps():
    assert SWEEPS


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_trial_is_accepted(file):
    sweep = yaml.safe_load(file.read_text())
    assert sweep["program"] == "tdmpc-prune"
    words = [w for w in sweep["command"] if w not in ("${program}", "${args}")]
    names, choices = zip(*((n, p["values"]) for n, p in sweep["parameters"].items()), strict=True)
    trials = list(product(*choices))
    folders = set()
    for values in trials:
        arguments = [f"--{name}={value}" for name, value in zip(names, values, strict=True)]
        config = parse([*words, *arguments])
        folders.add(config.folder)
        for name, value in zip(names, values, strict=True):
            found = config
            for part in name.split("."):
                found = getattr(found, part)
            assert found == value
    assert len(folders) == len(trials), "two trials would share a run folder"
