"""Command lines, as people and as W&B's agents write them, read into settings by tyro."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args

import tyro

from tdmpc_prune import __version__
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
SWITCHES = ("json", "dry-run", "deterministic", "help")
"""Options that take no value."""
TABLES = ("prune.limits.component",)
"""Options that take names and numbers, a pair each."""
SPECIAL = ("_wandb", "task", *(f"{table}." for table in TABLES))
"""Settings that are no options of their own."""
SETTING = re.compile(r"(?:--|\+{1,2})?([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
"""`--a.b=1`, and as W&B's agents write it also `a.b=1`, `+a.b=1`, `++a.b=1`."""


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
    for previous, word in itertools.pairwise(["", *arguments]):
        _check_word(previous, word)
    if "--version" in arguments:
        print(f"{PROG} {__version__}")
        raise SystemExit(0)
    words = _options(arguments) or ["--help"]
    preset = _option(words, "preset") or "laptop"
    if preset not in get_args(Preset):
        raise UserError(f"--preset {preset}: choose one of {', '.join(get_args(Preset))}")
    if words[0] not in (*verbs, "-h", "--help"):
        raise UserError(f"{words[0]!r} is no verb: choose one of {', '.join(verbs)}, or ask --help")
    autoencoder = _names_task(words, AUTOENCODER)
    if autoencoder:
        if _option(words, "preset"):
            raise UserError("an autoencoder has no presets: leave --preset out")
        training: Any = Annotated[AutoencoderTrainConfig, tyro.conf.subcommand("train")]
    else:
        defaults = preset_defaults(preset)  # type: ignore[arg-type]
        training = Annotated[TDMPCTrainConfig, tyro.conf.subcommand("train", default=defaults)]
    commands = {
        verb: training if verb == "train" else Annotated[settings, tyro.conf.subcommand(verb)]
        for verb, settings in verbs.items()
    }
    prog: str = PROG
    description: str | None = DESCRIPTION
    if words[0] in verbs:  # alone, tyro describes it by its docstring, and suggests no other's options
        prog, description = f"{PROG} {words[0]}{f' {AUTOENCODER}' if autoencoder else ''}", None
        commands, words = {words[0]: commands[words[0]]}, words[1:]
    command: Any = Union[*commands.values()]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(command, prog=prog, description=description, args=words)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(said.getvalue(), prog)) from None


def _check_word(before: str, word: str) -> None:
    """Refuses words that no setting means: `--run-dir "$RUN"` without RUN would be the folder one stands in."""
    name, equals, value = word.partition("=")
    if not word or (equals and not value and name.startswith("-")):
        option = name or (before if before.startswith("--") else "an argument")
        raise UserError(f"{option} is empty: give it a value, or leave it out")
    longest = LONGEST_WORD if "{" not in word else 100 * LONGEST_WORD  # a tree holds many settings
    if "\0" in word or len(word) > longest:
        raise UserError(
            f"{word[:30]!r}... is no word that can be meant: it is too long, or holds a null byte"
        )


def _options(arguments: Sequence[str]) -> list[str]:
    """The words of a command line with all settings as tyro's options, in whatever form they were given."""
    words: list[str] = []
    lists: dict[str, list[Any]] = {}  # these come last: they would take the task that follows for theirs
    task: str | None = None
    for name, value in _settings(arguments):
        table = next((t for t in TABLES if f"{name}.".startswith(f"{t}.")), "")
        if not name:
            words.append(str(value))
        elif name.partition(".")[0] == "_wandb":  # the agents' own, passed along when a trial is resumed
            continue
        elif name == "task":
            task = str(value)
        elif isinstance(value, Mapping):
            _check_one_form(name, arguments)
            lists[name] = lists.get(name, []) + [part for entry in value.items() for part in entry]
        elif table and name != table:
            _check_one_form(table, arguments)
            lists[table] = [*lists.get(table, []), name.removeprefix(f"{table}."), value]
        elif isinstance(value, list):
            lists[name] = value
        elif isinstance(value, bool) and _is_switch(name):
            words.append(f"--{'' if value else 'no-'}{name}")
        else:
            words.append(f"--{name}={value}")
    for name, parts in lists.items():
        if name in TABLES and len(parts) % 2 == 0:  # what is said later counts
            pairs = {str(key): value for key, value in zip(parts[::2], parts[1::2], strict=True)}
            parts = [part for pair in pairs.items() for part in pair]
        if parts:
            words += [f"--{name}", *map(str, parts)]
    for name in TABLES:
        words = _task_first(name, words)
        _check_table(name, words)
    return words if task is None else _with_task(words, task)


def _task_first(table: str, words: list[str]) -> list[str]:
    """The line with a task that stands behind a table's pairs, where tyro would take it for theirs, in its place."""
    if f"--{table}" not in words or not words[1].startswith("-"):
        return words
    first = words.index(f"--{table}") + 1
    said = _said(words[first:])
    if len(said) == 1 or len(said) % 2 == 0:
        return words
    last = first + len(said) - 1
    return [words[0], words[last], *words[1:last], *words[last + 1 :]]


def _said(words: Sequence[str]) -> list[str]:
    """The words before the next option."""
    return list(itertools.takewhile(lambda word: not word.startswith("--"), words))


def _check_table(name: str, words: Sequence[str]) -> None:
    """Refuses a table that is not of names, each once, and numbers."""
    for place, word in enumerate(words):
        option, _, value = word.partition("=")
        if option != f"--{name}":
            continue
        said = [*([value] if value else []), *_said(words[place + 1 :])]
        names, numbers = said[::2], said[1::2]
        pairs = len(names) == len(numbers) == len(set(names)) > 0
        if value or not pairs or not all(map(_is_number, numbers)):
            raise UserError(
                f"--{name} {' '.join(said)[:80]}: give names, each once, and a number after each, for example "
                f"--{name} dynamics 0.5 encoder 0"
            )


def _check_one_form(table: str, arguments: Sequence[str]) -> None:
    """Refuses a table that is given word by word and as settings, too: one of both would not count."""
    if table in TABLES and f"--{table}" in arguments:
        raise UserError(f"--{table} is given in two forms: choose one of them")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _settings(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a command line; what tyro can read as it stands comes without a name."""
    training = arguments[:1] == ["train"]
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name = word.removeprefix("--") if re.fullmatch(r"--[\w.-]+", word) else ""
        if setting := SETTING.fullmatch(word):
            yield from _flat(setting[1], _value(setting[1], setting[2]))
        elif name and rest and not rest[0].startswith("--"):  # its value, if it has one, is the next word
            value = _value(name, rest[0])
            if not isinstance(value, str) or name.startswith(SPECIAL):
                rest.pop(0)
                yield from _flat(name, value)
            else:
                yield "", word
                if _takes_value(word):
                    yield "", rest.pop(0)
        elif training and (word.startswith("{") or word.endswith(".json")):
            yield from _flat("", _tree(word))
        else:
            yield "", word


def _value(name: str, text: str) -> Any:
    """A setting's value: of a switch a truth value, of a tree or a list what it says; else the text."""
    if _is_switch(name):
        return {"true": True, "false": False}.get(text.lower(), text)
    if text[:1] in ("{", "["):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                if isinstance(value := read(text), dict | list):
                    return value
    return text


def _tree(word: str) -> Mapping[str, Any]:
    """Settings as one JSON object, or in a file that holds one."""
    try:
        tree = json.loads(word if word.startswith("{") else Path(word).read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "no JSON"
        raise UserError(f"{word[:80]!r} cannot be read ({reason}): give a JSON object of settings") from error
    if not isinstance(tree, Mapping):
        raise UserError(f"{word[:80]!r} holds no settings: give a JSON object")
    return tree


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A tree of settings as its leaves, with dotted names."""
    if isinstance(value, Mapping) and name not in TABLES:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, value


def _with_task(words: Sequence[str], task: str) -> list[str]:
    """The line with the task of `task=...` in its place, in place of another one."""
    after = words[2:] if len(words) > 1 and not words[1].startswith("-") else words[1:]
    named = zip(["", *after], after, strict=False)
    return [*words[:1], task, *(word for before, word in named if word != task or _takes_value(before))]


def _option(words: Sequence[str], name: str) -> str | None:
    """The last value of an option, before the rest of the line is understood."""
    values = [w.partition("=")[2] for w in words if w.startswith(f"--{name}=")]
    values += [after for word, after in itertools.pairwise(words) if word == f"--{name}"]
    return values[-1] if values else None


def _takes_value(word: str) -> bool:
    """Whether a word is an option whose value is the next word."""
    name = re.fullmatch(r"--(?:no-)?([\w.-]+)", word)
    return name is not None and not _is_switch(name[1])


def _is_switch(name: str) -> bool:
    return name.replace("_", "-") in SWITCHES


def _names_task(words: Sequence[str], task: str) -> bool:
    """Whether a word of the line is the task, and not the value of an option."""
    return any(word == task and not _takes_value(before) for before, word in itertools.pairwise(words))


def _one_line(said: str, prog: str) -> str:
    """tyro's boxed error message as one line: without its title, the option's help and the advice."""
    lines = [line.strip("│ ") for line in said.splitlines() if line.startswith("│")]
    if not lines:  # a terminal that is not UTF-8: title and rule in ASCII, no box
        lines = [re.sub("-{20,}", "───", line) for line in said.splitlines()[2:]]
    text = " ".join(" ".join(lines).split())
    text = re.sub(r" ?─{3,} (?=Perhaps you meant:)", ". ", text)
    text = re.split(r" ?─{3,}| Argument helptext:| For full helptext", text)[0]
    text = re.sub(r"^Error parsing (?:\w+Config|__tyro-dummy-inner__\.?)([\w.]*): ", r"\1: ", text)
    text = re.sub(r"(Perhaps you meant:)(?: │)? (--\S+).*", r"\1 \2", text)
    if text.startswith("Unrecognized options") and "Perhaps you meant" not in text:
        text += f". {prog} --help lists those that there are"
    return text.removeprefix(": ") or "the command line is wrong: ask --help"
