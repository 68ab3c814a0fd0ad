"""The command line of a trial: the words that a W&B agent would run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from tdmpc_prune.sweep.definition import Definition

VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
LAUNCHERS = ("/usr/bin/env", "python", "python3")
PROGRAMS = ("tdmpc-prune", "tdmpc_prune", "__main__.py")
EXAMPLE = '["${program}", train, cartpole-swingup, "${args}"]'


def words(definition: Definition, values: Mapping[str, Any]) -> list[str]:
    """Everything after the program's name in a trial's command line: `train ...`.

    Args:
        definition: the sweep.
        values: of its parameters, by dotted name.

    Raises:
        ValueError: the file's command runs something else.
    """
    command = definition.raw.get("command")
    if not command:
        raise ValueError(f"command is missing; choose for example command: {EXAMPLE}")
    program = str(definition.raw.get("program", ""))
    single = {"env": "/usr/bin/env", "interpreter": "python", "program": program}
    macros = forms(definition.arguments(values)) | {name: [word] for name, word in single.items()}
    line: list[str] = []
    for chunk in map(str, command):
        chunk = VARIABLE.sub(lambda found: os.environ.get(found[1], found[1]), chunk)
        macro = re.fullmatch(r"\$\{(.*)\}", chunk)
        if macro and macro[1] not in macros:
            raise ValueError(f"command has {chunk}, which is not honoured; choose ${{args}}")
        line += macros[macro[1]] if macro else [chunk]
    return _after_program(line)


def forms(arguments: Mapping[str, Any]) -> dict[str, list[str]]:
    """A trial's arguments in all forms that a sweep's command can ask for, as W&B's agents write them."""
    pairs = [(name, f"{name}={value}") for name, value in arguments.items()]
    return {
        "args": [f"--{pair}" for _, pair in pairs],
        "args_no_hyphens": [pair for _, pair in pairs],
        "args_no_equals": [word for name, value in arguments.items() for word in (f"--{name}", str(value))],
        "args_no_boolean_flags": [
            f"--{name}" if arguments[name] is True else f"--{pair}"
            for name, pair in pairs
            if arguments[name] is not False
        ],
        "args_json": [json.dumps(arguments)],
    }


def _after_program(line: list[str]) -> list[str]:
    """The words for our command, whoever starts it."""
    rest = list(line)
    while rest and rest[0] in LAUNCHERS:
        rest.pop(0)
    if rest[:1] == ["-m"]:
        rest.pop(0)
    if not rest or PurePath(rest[0]).name not in PROGRAMS:
        started = "".join(rest[:1]) or "nothing"
        raise ValueError(f"its command runs {started}, not tdmpc-prune; choose program: tdmpc-prune")
    if rest[1:2] != ["train"]:
        raise ValueError(f"its command lacks the verb train; choose for example command: {EXAMPLE}")
    return rest[1:]
