"""The `tdmpc-prune` command. Heavy imports wait until a verb needs them: help must be quick."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import tyro

from envs import SimulatorError, check_simulators
from tdmpc_prune.config import EvaluateConfig, Preset, TrainConfig, preset_defaults
from tdmpc_prune.errors import Interrupted, UserError
from tdmpc_prune.pruning.config import SparsityError

PROG = "tdmpc-prune"
DESCRIPTION = "Trains neural controllers, prunes them while they learn, and shows what is left."
VERBS = ("train", "evaluate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 the user's mistake, 1 anything else."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        check_simulators()
        return _train(config) if isinstance(config, TrainConfig) else _evaluate(config)
    except (UserError, SimulatorError, SparsityError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt):
        return 1


def parse(arguments: Sequence[str]) -> TrainConfig | EvaluateConfig:
    """Settings from a command line.

    Raises:
        UserError: the command line is wrong; the message is one line.
        SystemExit: help was asked for (code 0).
    """
    words = [_as_option(word) for word in arguments]
    if not words:
        words = ["--help"]
    preset = _option(words, "preset") or "laptop"
    if preset not in get_args(Preset):
        raise UserError(f"--preset {preset}: choose one of {', '.join(get_args(Preset))}")
    if words[0] not in (*VERBS, "-h", "--help"):
        raise UserError(f"{words[0]!r} is no verb: choose one of {', '.join(VERBS)}, or ask --help")
    defaults = preset_defaults(preset)  # type: ignore[arg-type]
    train = tyro.conf.subcommand("train", default=defaults)
    evaluate = tyro.conf.subcommand("evaluate")
    commands: Any = Annotated[TrainConfig, train] | Annotated[EvaluateConfig, evaluate]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(commands, prog=PROG, description=DESCRIPTION, args=words)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(said.getvalue())) from None


def _train(config: TrainConfig) -> int:
    from tdmpc_prune.train import train

    summary = train(config)
    _show(summary, as_json=config.json)
    return 0


def _evaluate(config: EvaluateConfig) -> int:
    from tdmpc_prune.device import choose_device, set_threads
    from tdmpc_prune.evaluate import evaluate_run
    from tdmpc_prune.video import check_video

    if config.video is not None:
        check_video()
    set_threads(config.threads)
    result = evaluate_run(
        config.run,
        episodes=config.episodes,
        seed=config.seed,
        controller=config.controller,
        device=choose_device(config.device),
        video=config.video,
    )
    _show(result, as_json=config.json)
    return 0


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    """Prints a result as one JSON object or as a table."""
    if as_json:
        print(json.dumps(result))
        return
    shown = {k: v for k, v in result.items() if v is not None and not isinstance(v, list)}
    width = max(len(k) for k in shown)
    for key, value in shown.items():
        if isinstance(value, float):
            value = f"{value:,.2f}"
        elif isinstance(value, int) and key != "seed":
            value = f"{value:,}"
        print(f"{key.replace('_', ' '):<{width}}  {value}")


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


def _one_line(said: str) -> str:
    """tyro's boxed error message as one line: without its title, the option's help and the advice."""
    lines = [line.strip("│ ") for line in said.splitlines() if line.startswith("│")]
    text = " ".join(" ".join(lines).split())
    text = re.split(r" ?─{3,}| Argument helptext:| For full helptext", text)[0]
    text = re.sub(r"^Error parsing (?:\w+Config|__tyro-dummy-inner__\.?)([\w.]*): ", r"\1: ", text)
    text = re.sub(r"(Perhaps you meant:)(?: │)? (--\S+).*", r"\1 \2", text)
    return text.removeprefix(": ") or "the command line is wrong: ask --help"
