"""`tdmpc-prune export`: a stored controller as ONNX files, with a contract and an example."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tdmpc_prune.commands.common import CommandConfig, Result, show, show_table
from tdmpc_prune.config import check_seed
from tdmpc_prune.errors import UserError
from tdmpc_prune.places import check_parent

CONTROLLERS = ("planner", "policy")


@dataclass(frozen=True)
class ExportConfig(CommandConfig):
    """Exports a stored controller for ONNX Runtime, once it has shown that it acts as in PyTorch.

    The folder gets policy.onnx, planner.onnx (the whole planner), contract.json and run_controller.py.
    Everything is computed on the CPU, whatever the device.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, or one of its checkpoints."""
    out: Path
    """Folder for the files: a new or an empty one, or an earlier export, which is replaced."""
    controller: Literal["planner", "policy", "both"] = "both"
    """planner: plan at every step; policy: the policy network alone."""
    seed: int = 0
    """Seed of the episode of the check, and of its noise."""
    threads: int = field(default=1, kw_only=True)
    """PyTorch's threads on the CPU; 0: OMP_NUM_THREADS where it is set, else one per core, at most 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)


def run(config: ExportConfig) -> int:
    """Exports the controllers of a run and shows what was found."""
    check_extra()
    check_parent("--out", config.out)
    import torch

    from tdmpc_prune.checkpoint import load_agent
    from tdmpc_prune.device import set_threads

    stored = load_agent(config.run, torch.device("cpu"))
    # Only now: importing onnxruntime leaves a cache in the home folder.
    from tdmpc_prune.export.check import CheckError
    from tdmpc_prune.export.package import check_out, export

    check_out(config.out)
    set_threads(config.threads)
    controllers = CONTROLLERS if config.controller == "both" else (config.controller,)
    try:
        contract = export(stored, config.out, controllers=controllers, seed=config.seed)
    except CheckError as error:
        print(f"tdmpc-prune: {error}", file=sys.stderr)
        return 1
    rows = [_row(name, entry) for name, entry in contract["controllers"].items()]
    result = {"out": str(config.out), "task": contract["task"], **contract["network"], "seed": config.seed}
    if config.json:
        show({**result, "controllers": rows}, as_json=True)
        return 0
    show(result, as_json=False)
    print()
    show_table(rows)
    return 0


def check_extra() -> None:
    """Refuses to begin without what the export needs.

    Raises:
        UserError: the extra `export` is not installed.
    """
    if not all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")):
        raise UserError("export needs the extra `export`: pip install 'tdmpc-prune[export]'")


def _row(name: str, entry: Result) -> Result:
    """One controller in a line."""
    check, ms = entry["check"], entry["ms_per_step"]
    return {
        "controller": name,
        "steps": check["steps"],
        "return_onnx": check["return_onnx"],
        "return_torch": check["return_torch"],
        "action_difference": check["action_difference"],
        "mean_difference": check["mean_difference"],
        "rounding_steps": check["rounding_steps"],
        "p50_ms": ms["p50"],
        "p99_ms": ms["p99"],
        "control_ms": ms["control_period"],
    }
