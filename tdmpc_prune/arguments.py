"""Command lines, as people and as W&B's agents write them, read into settings by tyro."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

import tyro

from tdmpc_prune.config import (
    AUTOENCODER,
    AnyTrainConfig,
    AutoencoderTrainConfig,
    Preset,
    TDMPCTrainConfig,
    TrainConfig,
    preset_defaults,
)
from tdmpc_prune.errors import UserError

PROG = "tdmpc-prune"
DESCRIPTION = "Trains neural controllers, prunes them while they learn, and shows what is left."
LONGEST_WORD = 4_096
SWITCHES = ("json", "dry-run", "help")
"""Options that take no value."""


def parse_training(arguments: Sequence[str]) -> AnyTrainConfig:
    """Settings of a training from `train TASK ...`.

    Raises:
        UserError: the command line is wrong; the message is one line.
        SystemExit: help was asked for (code 0).
    """
    return parse(arguments, {"train": TrainConfig})


def parse(arguments: Sequence[str], verbs: Mapping[str, type]) -> Any:
    """Settings from a command line.

    Args:
        arguments: the words after the program's name.
        verbs: the settings of every verb, in the order that help shows them; `train` reads a preset's.

    Raises:
        UserError: the command line is wrong; the message is one line.
        SystemExit: help was asked for (code 0).
    """
    before = ["", *arguments]
    for previous, word in itertools.pairwise(before):
        _check_word(previous, word)
    words = [w if _takes_value(b) else _as_option(w) for b, w in zip(before, arguments, strict=False)]
    # W&B's agents sometimes pass a parameter of their own along.
    words = [w for w in words if not re.match(r"--_wandb\b", w)] or ["--help"]
    preset = _option(words, "preset") or "laptop"
    if preset not in get_args(Preset):
        raise UserError(f"--preset {preset}: choose one of {', '.join(get_args(Preset))}")
    if words[0] not in (*verbs, "-h", "--help"):
        raise UserError(f"{words[0]!r} is no verb: choose one of {', '.join(verbs)}, or ask --help")
    if _names_task(words, AUTOENCODER):
        commands: Any = Annotated[AutoencoderTrainConfig, tyro.conf.subcommand("train")]
    else:
        defaults = preset_defaults(preset)  # type: ignore[arg-type]
        commands = Annotated[TDMPCTrainConfig, tyro.conf.subcommand("train", default=defaults)]
    for verb, settings in verbs.items():
        if verb != "train":
            commands |= Annotated[settings, tyro.conf.subcommand(verb)]
    if len(verbs) == 1 and words[0] in verbs:  # tyro makes no verb of a single command
        words = words[1:]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(commands, prog=PROG, description=DESCRIPTION, args=words)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(said.getvalue())) from None


def _check_word(before: str, word: str) -> None:
    """Refuses words that no setting means: `--run-dir "$RUN"` without RUN would be the folder one stands in."""
    name, equals, value = word.partition("=")
    if not word or (equals and not value and name.startswith("-")):
        option = name or (before if before.startswith("--") else "an argument")
        raise UserError(f"{option} is empty: give it a value, or leave it out")
    if "\0" in word or len(word) > LONGEST_WORD:
        raise UserError(
            f"{word[:30]!r}... is no word that can be meant: it is too long, or holds a null byte"
        )


def _as_option(word: str) -> str:
    """A setting as W&B's agents write it (`a.b=1`, `--flag=True`), as an option."""
    if re.match(r"[A-Za-z_][\w.-]*=", word):
        word = f"--{word}"
    if flag := re.fullmatch(r"--(.*)=(true|false)", word, flags=re.IGNORECASE):
        path, _, name = flag[1].rpartition(".")
        negation = "" if flag[2].lower() == "true" else "no-"
        return f"--{path}{'.' if path else ''}{negation}{name}"
    return word


def _option(words: Sequence[str], name: str) -> str | None:
    """The last value of an option, before the rest of the line is understood."""
    values = [w.partition("=")[2] for w in words if w.startswith(f"--{name}=")]
    values += [after for word, after in itertools.pairwise(words) if word == f"--{name}"]
    return values[-1] if values else None


def _takes_value(word: str) -> bool:
    """Whether a word is an option whose value is the next word."""
    name = re.fullmatch(r"--(?:no-)?([\w.-]+)", word)
    return name is not None and name[1].replace("_", "-") not in SWITCHES


def _names_task(words: Sequence[str], task: str) -> bool:
    """Whether a word of the line is the task, and not the value of an option."""
    return any(word == task and not _takes_value(before) for before, word in itertools.pairwise(words))


def _one_line(said: str) -> str:
    """tyro's boxed error message as one line: without its title, the option's help and the advice."""
    lines = [line.strip("│ ") for line in said.splitlines() if line.startswith("│")]
    if not lines:  # a terminal that is not UTF-8: title and rule in ASCII, no box
        lines = [re.sub("-{20,}", "───", line) for line in said.splitlines()[2:]]
    text = " ".join(" ".join(lines).split())
    text = re.sub(r" ?─{3,} (?=Perhaps you meant:)", ". ", text)
    text = re.split(r" ?─{3,}| Argument helptext:| For full helptext", text)[0]
    text = re.sub(r"^Error parsing (?:\w+Config|__tyro-dummy-inner__\.?)([\w.]*): ", r"\1: ", text)
    text = re.sub(r"(Perhaps you meant:)(?: │)? (--\S+).*", r"\1 \2", text)
    return text.removeprefix(": ") or "the command line is wrong: ask --help"
