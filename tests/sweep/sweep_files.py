"""Sweep files to test with."""

from pathlib import Path

import yaml

HEAD = {
    "program": "tdmpc-prune",
    "command": ["${program}", "train", "cartpole-swingup", "--preset", "debug", "${args}"],
    "method": "grid",
    "metric": {"name": "eval/return", "goal": "maximize"},
    "parameters": {"seed": {"values": [1, 2]}},
}
"""A sweep that is right."""


def written(path: Path, **changes) -> Path:
    """A sweep file: the right one with changes; None takes a key away."""
    content = {key: value for key, value in (HEAD | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return path
