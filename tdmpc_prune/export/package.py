"""Puts the folder of an exported controller together: complete and checked, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import gymnasium
import onnx
from tqdm import tqdm

from envs import make_env
from tdmpc_prune.checkpoint import StoredAgent
from tdmpc_prune.errors import UserError
from tdmpc_prune.export.check import check_graph
from tdmpc_prune.export.contract import Json, contract, controller_entry
from tdmpc_prune.export.graphs import PlannerGraph, PolicyGraph, to_onnx
from tdmpc_prune.export.runtime import stepper
from tdmpc_prune.latency import measure
from tdmpc_prune.places import check_parent
from tdmpc_prune.reading import read_json
from tdmpc_prune.run_folder import PARTIAL

STAGES = 3
"""Of exporting a controller."""
TIMED_STEPS = 200
CONTRACT, EXAMPLE = "contract.json", "run_controller.py"
FILES = {"planner": "planner.onnx", "policy": "policy.onnx"}
"""File of each controller."""


def check_out(out: Path) -> None:
    """Refuses, before anything is computed, a folder that cannot take the files; an earlier export may be there.

    Raises:
        UserError: it holds something else, or cannot be written to.
    """
    check_parent("--out", out)  # a folder that is there is replaced as a whole
    try:
        taken = out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _is_export(out)))
    except OSError as error:
        raise UserError(f"--out {out} cannot be read ({error.strerror}): choose another folder") from error
    if taken:
        raise UserError(f"--out {out} holds something that is no earlier export: choose another folder")


def export(stored: StoredAgent, out: Path, *, controllers: Sequence[str], seed: int) -> Json:
    """Exports controllers of a stored agent into a folder, and returns their contract.

    Args:
        stored: the agent, on the CPU.
        out: the folder, see `check_out`; it appears when everything in it is done.
        controllers: of `FILES`.
        seed: of the check's episode.

    Raises:
        CheckError: a graph does not compute what PyTorch computes; nothing is written.
        UserError: the folder cannot be written.
    """
    env = make_env(stored.task, seed=stored.seed, action_repeat=stored.action_repeat)
    entries: dict[str, Json] = {}
    contents = {EXAMPLE: Path(__file__).with_name(EXAMPLE).read_bytes()}
    try:
        with tqdm(total=STAGES * len(controllers), unit="stage", disable=None) as bar:
            for name in controllers:
                model, entries[name] = _controller(stored, name, env, seed, bar)
                contents[FILES[name]] = model.SerializeToString()
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        written = contract(stored, env, seed, entries, hashes)
    finally:
        env.close()
    contents[CONTRACT] = (json.dumps(written, indent=2, allow_nan=False) + "\n").encode()
    try:
        _write(out, contents)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write ({error.strerror}); choose another folder") from error
    return written


def _controller(
    stored: StoredAgent, name: str, env: gymnasium.Env, seed: int, bar: tqdm
) -> tuple[onnx.ModelProto, Json]:
    """The graph of one controller, and its entry of the contract."""
    agent = stored.agent
    graph = PlannerGraph(agent, stored.agent_step) if name == "planner" else PolicyGraph(agent)
    bar.set_description(f"{name}: exporting")
    model = to_onnx(graph)
    bar.update()
    bar.set_description(f"{name}: comparing with PyTorch over an episode")
    check = check_graph(graph, model, env, seed)
    bar.update()
    bar.set_description(f"{name}: timing")
    latency = measure(stepper(graph, model), agent.obs_dim, TIMED_STEPS)
    bar.update()
    period = float(env.get_wrapper_attr("control_timestep"))
    entry = controller_entry(graph, agent, FILES[name], check=check, latency=latency, control_period=period)
    return model, entry


def _is_export(out: Path) -> bool:
    """Whether a folder holds an earlier export and nothing else."""
    known = {CONTRACT, EXAMPLE, *FILES.values()}
    try:
        contract = read_json(out / CONTRACT)
        return {p.name for p in out.iterdir()} <= known and {"schema", "how_to", "files"} <= contract.keys()
    except (OSError, ValueError, AttributeError):
        return False


def _write(out: Path, contents: Mapping[str, bytes]) -> None:
    """Makes the folder beside its place, and renames it when it is complete."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.{os.getpid()}{PARTIAL}")
    partial.mkdir()
    try:
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
