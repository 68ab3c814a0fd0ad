"""Checkpoints: tensors in safetensors, the rest in JSON, nothing that could run code.

A checkpoint is a folder, written beside its final place and renamed into it when it is complete, so that
one that can be seen can be read. The one before the newest is kept.
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import TDMPCConfig
from agents.tdmpc.world_model import WorldModel, architecture
from envs import UnknownTaskError, find_task, resolve_task
from tdmpc_prune.checked import check_finite, check_shape, check_state, shapes
from tdmpc_prune.config import AUTOENCODER
from tdmpc_prune.errors import UserError
from tdmpc_prune.pruning.groups import Prunable
from tdmpc_prune.reading import printable, read_json
from tdmpc_prune.run_folder import write_json

Networks = Mapping[str, nn.Module]
"""All networks of an agent, by name."""

OWN_TASK = re.compile(r"[\w./-]{1,80}-v\d{1,4}", re.ASCII)
"""Tasks that may be somebody's own."""
SCHEMA = 1
KEPT = 2
MODEL, TRAINING, STATE = "model.safetensors", "training.safetensors", "state.json"
GENERATORS = {"cpu": 5056, "cuda": 16}
"""Bytes of the state of a random number generator."""
KEEP = "keep"
"""A file that marks a checkpoint which stays when newer ones come."""


@dataclass(frozen=True)
class StoredAgent:
    """A TD-MPC agent as a checkpoint holds it, with what is needed to put it to work."""

    agent: TDMPC
    task: str
    seed: int
    action_repeat: int
    agent_step: int
    env_step: int
    criterion: str
    """What it was pruned by; `none`: it is dense."""

    @property
    def parameters(self) -> int:
        """Parameters of the online networks."""
        return sum(p.numel() for p in self.agent.model.parameters())

    @property
    def sparsity(self) -> float:
        """Share of the parameters that its settings would give it, and that are gone."""
        agent = self.agent
        with torch.device("meta"):
            dense = WorldModel(architecture(agent.config, agent.obs_dim, agent.action_dim))
        return 1 - self.parameters / sum(p.numel() for p in dense.parameters())


def save(
    folder: Path,
    *,
    networks: Networks,
    training: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: bool = False,
) -> Path:
    """Writes a checkpoint and returns its path; the last two stay, and those to `keep`.

    Args:
        folder: the run's checkpoint folder.
        networks: all networks of the agent, by name.
        training: every other tensor that resuming needs.
        state: JSON values; at least what rebuilds the agent, and its task.
        keep: it stays when newer ones come.

    Raises:
        OSError: it could not be written; those before it are as they were.
    """
    folder.mkdir(exist_ok=True)
    existing = _complete(folder)
    path = folder / f"{int(existing[-1].name) + 1 if existing else 1:06d}"
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    tensors = {k: t for name, net in networks.items() for k, t in prefixed(name, net.state_dict()).items()}
    try:
        partial.mkdir()
        _save_tensors(partial / MODEL, tensors)
        _save_tensors(partial / TRAINING, training)
        if keep:
            (partial / KEEP).touch()
        write_json(partial / STATE, {"schema": SCHEMA, **state})
        _sync(partial)
        partial.rename(path)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # where it lacked room, it takes none
        raise
    _sync(folder)
    for old in existing[: len(existing) + 1 - KEPT]:
        if not (old / KEEP).exists():
            old.rename(partial)  # it goes as it came: at once, to whoever looks
            shutil.rmtree(partial, ignore_errors=True)
    return path


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run's checkpoint folder."""
    existing = _complete(folder)
    return existing[-1] if existing else None


def find(path: Path) -> Path:
    """The checkpoint that a path names: itself, or the newest of a run folder.

    Raises:
        UserError: there is none.
    """
    try:
        checkpoint = path if (path / STATE).is_file() else latest(path / "checkpoints")
    except OSError as error:  # no leave to look, or a name too long
        raise UserError(f"{path} cannot be read ({error.strerror}): give another run folder") from error
    if checkpoint is None:
        raise UserError(f"{path} is no run folder with a checkpoint: give the folder that `train` wrote")
    return checkpoint


def moments(path: Path) -> list[Path]:
    """The checkpoints that a path names: itself, or all of a run folder, oldest first.

    Raises:
        UserError: there is none.
    """
    newest = find(path)
    return [newest] if newest == path else _complete(path / "checkpoints")


def task_of(path: Path) -> str:
    """The task that a run folder or checkpoint has learned.

    Raises:
        UserError: there is no checkpoint, or it is not one of ours.
    """
    checkpoint = find(path)
    with readable(checkpoint):
        return str(_read_own(checkpoint)["task"])


def load_agent(path: Path, device: torch.device) -> StoredAgent:
    """Rebuilds the TD-MPC agent of a run folder or checkpoint at its own widths.

    Raises:
        UserError: there is no checkpoint, it is not one of ours, or it holds an autoencoder.
    """
    checkpoint = find(path)
    with readable(checkpoint):
        task = str(_read_own(checkpoint)["task"])
    if task == AUTOENCODER:
        raise UserError(f"{path} holds an autoencoder: give the run of a control task")
    _check_known(task, path)
    with readable(checkpoint):
        state = read_state(checkpoint)
        agent = TDMPC(
            TypeAdapter(TDMPCConfig).validate_python(state["agent"]),
            state["obs_dim"],
            state["action_dim"],
            device=device,
            widths=state["architecture"],
        )
        load_networks(checkpoint, {"online": agent.model, "target": agent.target})
        return StoredAgent(
            agent=agent,
            task=resolve_task(state["task"]),
            seed=state["seed"],
            action_repeat=state["action_repeat"],
            agent_step=state["progress"]["agent_step"],
            env_step=state["progress"]["env_step"],
            criterion=state.get("criterion", "unknown" if state["pruner"] else "none"),
        )


def _check_known(task: str, path: Path) -> None:
    """Says what is missing where a run of an environment of one's own is read without its module."""
    if not OWN_TASK.fullmatch(task):
        return
    try:
        find_task(task)
    except UnknownTaskError:
        raise UserError(
            f"{path} learned {task}, which is no task here: if it is an environment of your own, name the module that "
            "registers it, TDMPC_PRUNE_ENVS=MODULE"
        ) from None


def load_alike(paths: Sequence[Path], device: torch.device) -> dict[Path, StoredAgent]:
    """The TD-MPC agents of runs that can be compared: of one task, with one action repeat, of one physics.

    Raises:
        UserError: as `load_agent`, or they differ.
    """
    stored = {path: load_agent(path, device) for path in dict.fromkeys(paths)}
    first_path, first = next(iter(stored.items()))
    for path, other in stored.items():
        if (other.task, other.action_repeat) != (first.task, first.action_repeat):
            raise UserError(
                f"{path} learned {other.task} (action repeat {other.action_repeat}), {first_path} learned "
                f"{first.task} (action repeat {first.action_repeat}): give runs of one task"
            )
        if other.seed != first.seed and find_task(first.task).drawn:
            raise UserError(
                f"{path} is of seed {other.seed}, {first_path} of seed {first.seed}: {first.task} draws its physics "
                "from the seed, so they learned two systems: give runs of one seed"
            )
    return stored


@contextmanager
def readable(checkpoint: Path) -> Iterator[None]:
    """Turns what goes wrong while a checkpoint is read into one line.

    Raises:
        UserError: it is damaged, or another version's.
    """
    try:
        yield
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        SafetensorError,
    ) as error:
        reason = printable(" ".join(str(error).split()))
        raise UserError(f"{checkpoint} cannot be loaded ({reason[:200]})") from error


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint; whoever builds what it describes builds what the file of weights holds.

    Raises:
        ValueError: it was written by a version with another format, or by no run at all.
    """
    state = _read_own(checkpoint)
    check_state(state, checkpoint / MODEL)
    return state


def _read_own(checkpoint: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint of this version, unchecked."""
    state = read_json(checkpoint / STATE)
    if (schema := state.get("schema")) != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        remedy = "install the version that wrote it" if newer else "no version wrote that"
        raise ValueError(f"its format is {schema!r}, this version reads {SCHEMA}: {remedy}")
    return state


def load_networks(checkpoint: Path, networks: Networks) -> None:
    """Loads networks, which have the stored widths already, by their names; raises ValueError if one diverged."""
    tensors = load_file(checkpoint / MODEL)
    check_finite(tensors)
    for name, network in networks.items():
        network.load_state_dict(select(name, tensors))


def load_training(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor that `save` got as `training`."""
    shapes(checkpoint / TRAINING)
    return load_file(checkpoint / TRAINING)


def load_generator(generator: torch.Generator, state: Tensor) -> None:
    """Goes on drawing where `state` was taken.

    On a GPU others are drawn than on a CPU: what comes from one begins on the other with a seed made of it.

    Raises:
        ValueError: it is no state of a generator.
    """
    if state.dtype != torch.uint8 or list(state.shape) not in [[size] for size in GENERATORS.values()]:
        raise ValueError(f"{state.dtype} {list(state.shape)} is no state of random numbers")
    if len(state) == GENERATORS[generator.device.type]:
        generator.set_state(state)
    else:
        generator.manual_seed(zlib.crc32(state.numpy().tobytes()))


def optimizer_tensors(agent: Prunable) -> dict[str, Tensor]:
    """Adam's moments, by number of the optimiser, number of the parameter, and name."""
    return {
        f"{n}.{i}.{key}": value
        for n, optimizer in enumerate(agent.optimizers())
        for i, moments in optimizer.state_dict()["state"].items()
        for key, value in moments.items()
    }


def load_optimizers(agent: Prunable, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`.

    Raises:
        ValueError: they are not those of this agent's parameters; a fused optimiser would read past their ends.
    """
    check_finite(tensors)
    for n, optimizer in enumerate(agent.optimizers()):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in select(str(n), tensors).items():
            index, _, field = key.partition(".")
            moments.setdefault(int(index), {})[field] = value
        for i, stored in moments.items():
            sizes = {"step": (), **dict.fromkeys(("exp_avg", "exp_avg_sq"), parameters[i].shape)}
            if stored.keys() != sizes.keys():
                raise ValueError(f"optimizer {n} has {', '.join(sorted(stored))} of parameter {i}")
            for field, size in sizes.items():
                check_shape(f"optimizer.{n}.{i}.{field}", stored[field], *size)
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def select(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix`, without it."""
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with `prefix` before their names."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    numbered = (p for p in folder.glob("[0-9]*") if p.name.isascii() and p.name.isdigit())
    # A pipe, say, is there as well: no older checkpoint is taken for the newest, and reading it is refused.
    return sorted(p for p in numbered if os.path.lexists(p / STATE))


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:  # what the operating system said, put into words
        raise OSError(str(error)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
