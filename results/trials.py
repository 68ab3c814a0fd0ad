"""A training that is evidence: its command, its settings, and the name that these give it."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from results.revisions import Revision, overtaken
from tdmpc_prune.arguments import parse_training
from tdmpc_prune.config import AUTOENCODER, AnyTrainConfig, AutoencoderTrainConfig, preset_defaults
from tdmpc_prune.run_folder import FREE_ON_RESUME, RunFolder, earlier, flatten, to_json
from tdmpc_prune.sweep.command import words
from tdmpc_prune.sweep.definition import read
from tdmpc_prune.sweep.search import search

ROOT = Path(__file__).parents[1]
FOLDER = Path("runs", "results")
"""Where run folders lie while trials are made; what they came to goes to `results/`."""
LONGEST = 120
"""Characters of a folder's name."""
EARLY = 3_000
"""Agent steps that laptop agents explored for, whatever the task, before it went by environment steps."""
OWN = (*(name for name in FREE_ON_RESUME if name != "steps"), "task")
"""Settings that make no other trial, and the one that every name begins with."""
SAID = ("prune.criterion", "prune.allocation", "prune.sparsity")
"""Settings that the name of every pruned trial has."""


@dataclass(frozen=True)
class Trial:
    """One training, by the words of its command line after `tdmpc-prune train`."""

    words: tuple[str, ...]
    config: AnyTrainConfig
    scores: bool = False
    """Whether importance over time is kept, too."""
    after: Trial | None = None
    """The training that it starts from, whose checkpoints must be there."""

    @property
    def name(self) -> str:
        """Task, criterion, allocation, sparsity, what else is set differently from the preset, seed."""
        return name_of(to_json(self.config))

    @property
    def folder(self) -> RunFolder:
        """Where it is trained; one that keeps its checkpoints has a folder of its own."""
        kept = " kept" if self.config.keep_every else ""
        name = re.sub(r"[^\w.]+", "-", self.name + kept)
        if len(name) > LONGEST:
            name = f"{name[: LONGEST - 9]}-{zlib.crc32(name.encode()):08x}"
        return RunFolder(FOLDER / name)

    @property
    def made(self) -> bool:
        """Whether its folder holds it, finished and with its checkpoints; another default's run may lie there."""
        folder = self.folder
        if not folder.finished_summary(self.config) or not folder.checkpoints.is_dir():
            return False
        return name_of(json.loads(folder.config.read_text())["config"]) == self.name

    @property
    def overtaken(self) -> Revision | None:
        """The change of the code that what lies in its folder was made before; None if it is of today's."""
        if not self.folder.config.is_file():
            return None
        about = json.loads(self.folder.config.read_text())
        return overtaken(about["config"], about.get("commit"))

    @property
    def command(self) -> list[str]:
        """The whole command line but for `tdmpc-prune`."""
        keep = ("--threads", "1", "--wandb.mode", "disabled", "--run-dir", str(self.folder.path))
        return ["train", *self.words, *keep]


def trial(*line: object, scores: bool = False, after: Trial | None = None) -> Trial:
    """A trial from `TASK --setting value ...`."""
    start = ("--init-from", str(after.folder.path)) if after else ()
    said = tuple(map(str, (*line, *start)))
    return Trial(said, _settings(said), scores, after)


@cache
def _settings(words: tuple[str, ...]) -> AnyTrainConfig:
    """Read once: a study's thousand lines are asked for again and again, and each takes tyro a while."""
    return parse_training(["train", *words])


def of_sweep(name: str) -> list[Trial]:
    """All trials of a grid under sweeps/."""
    definition = read(ROOT / "sweeps" / f"{name}.yaml")
    grid = search(definition, 1)
    assert grid.size is not None, f"{name} is no grid"
    return [trial(*words(definition, grid.propose(n).values)[1:]) for n in range(1, grid.size + 1)]


def name_of(config: Mapping[str, Any]) -> str:
    """The name of a training with these settings; settings unknown to an older version had their default.

    Args:
        config: as a run's config.json holds it.
    """
    task = str(config["task"])
    default = (
        AutoencoderTrainConfig(task=task)
        if task == AUTOENCODER
        else preset_defaults(config.get("preset", "laptop"), task)
    )
    usual = flatten(to_json(default))
    if task != AUTOENCODER and config.get("preset", "laptop") == "laptop":
        usual["agent.schedule_steps"] = EARLY  # what it was when names were given
    own = usual | earlier(flatten(dict(config)))
    dense = own["prune.criterion"] == "none"
    said = ["dense"] if dense else [f"{own[key]}" for key in SAID]
    for key, value in own.items():
        if value == usual.get(key) or key in (*SAID, "seed") or key.split(".")[0] in OWN:
            continue
        if key == "prune.ridge" and own["prune.compensation"] == "none":  # decides nothing
            continue
        if key.startswith("prune.importance.guard") and not own["prune.criterion"].startswith("bayesian"):
            continue
        if key == "init_from":
            said.append(f"{key}={Path(value).name}")
        elif not (dense and key.startswith("prune.")):
            said.append(f"{key}={value}")
    preset = [] if config.get("preset", "laptop") == "laptop" else [config["preset"]]
    return " ".join([task, *preset, *said, f"seed={own['seed']}"])
