"""The `tdmpc-prune` command. Heavy imports wait until a verb needs them: help must be quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from envs import SimulatorError, check_simulators
from tdmpc_prune import arguments as command_line
from tdmpc_prune.arguments import PROG
from tdmpc_prune.commands import (
    benchmark,
    evaluate,
    export,
    report,
    sensitivity,
    stability,
    sweep,
    train,
    validate,
)
from tdmpc_prune.config import TrainConfig
from tdmpc_prune.errors import Failure, Interrupted, UserError
from tdmpc_prune.pruning.config import SparsityError
from tdmpc_prune.reading import printable

COMMANDS: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "train": (TrainConfig, train.run),
    "sweep": (sweep.SweepConfig, sweep.run),
    "evaluate": (evaluate.EvaluateConfig, evaluate.run),
    "validate": (validate.ValidateConfig, validate.run),
    "sensitivity": (sensitivity.SensitivityConfig, sensitivity.run),
    "stability": (stability.StabilityConfig, stability.run),
    "report": (report.ReportConfig, report.run),
    "export": (export.ExportConfig, export.run),
    "benchmark": (benchmark.BenchmarkConfig, benchmark.run),
}
"""Settings and doing of every verb, in the order that help shows them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 the user's mistake, 1 anything else."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        check_simulators()
        code = next(run for kind, run in COMMANDS.values() if isinstance(config, kind))(config)
        sys.stdout.flush()
        return code
    except (UserError, SimulatorError, SparsityError) as error:
        print(f"{PROG}: {printable(str(error))}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"{PROG}: {printable(str(error))}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt):
        return 1
    except BrokenPipeError:  # who read our output has left, as `head` does; Python would flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parse(arguments: Sequence[str]) -> Any:
    """Settings of any verb from a command line.

    Raises:
        UserError: the command line is wrong; the message is one line.
        SystemExit: help was asked for (code 0).
    """
    return command_line.parse(arguments, {verb: kind for verb, (kind, _) in COMMANDS.items()})
