"""What a checkpoint says of itself, checked before anything is built from it: a stranger may have written it.

First its JSON: types and ranges. Then the shapes in the header of its weights, which must be, name by name, those
of the agent that the JSON describes. Both cost nothing; no tensor is read, and no layer is allocated, before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from gymnasium import spaces
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator
from safetensors import safe_open
from torch import Tensor, nn

from agents.autoencoder_config import AutoencoderConfig
from agents.networks import mlp
from agents.tdmpc.config import TDMPCConfig
from agents.tdmpc.world_model import WorldModel, architecture
from envs import make_env, resolve_task
from tdmpc_prune.config import AUTOENCODER
from tdmpc_prune.pruning.allocation import Curve
from tdmpc_prune.reading import LARGEST_COUNT, check_size, memory

HEADER_BYTES = 1 << 20
"""Names and shapes of a run's tensors take some ten kilobytes."""

Count = Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)]
Moment = Annotated[int, Field(strict=True, ge=-1, le=LARGEST_COUNT)]
Width = Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
Widths = Annotated[list[Width], Field(min_length=2, max_length=16)]
Text = Annotated[str, Field(strict=True, max_length=4096)]
Number = Annotated[float, Field(strict=True)]


class _Progress(BaseModel):
    env_step: Count
    agent_step: Count
    evaluated_at: Moment = -1
    saved_at: Count = 0
    kept_at: Count = 0
    logged_at: Count = 0
    logged_episodes: Count = 0
    calibration_episodes: Count = 0
    recovery_updates: Count = 0
    skipped_updates: Count = 0
    skipped_in_a_row: Count = 0
    elapsed: Annotated[FiniteFloat, Field(strict=True, ge=0)] = 0.0
    train_return: Number = 0.0
    eval_return: Number = 0.0
    eval_std: Number = 0.0
    eval_error: Number = 0.0


REMOVAL = {"prune/event", "prune/scheduled", "prune/removed_units", "prune/postponed_units"}
"""What the row of a removal holds that is not logged yet, among others."""


class _Pruner(BaseModel):
    events: Count
    calibrated_at: Annotated[FiniteFloat, Field(strict=True)] | None = None
    initial_widths: dict[str, Width]
    curves: dict[str, Curve] | None


class _State(BaseModel):
    task: Text
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)]
    progress: _Progress
    updates: Count = 0
    criterion: Annotated[str, Field(strict=True, pattern=r"^[a-z-]{1,40}$")] = "none"
    pruner: _Pruner | None
    event_row: dict[str, Number] = {}
    metrics_bytes: Count = 0
    architecture: Annotated[dict[str, Widths], Field(max_length=200)]

    @model_validator(mode="after")
    def _counters_agree(self) -> _State:
        asked = self.progress.agent_step + self.progress.recovery_updates
        if self.updates > asked:
            raise ValueError(f"it made {self.updates} updates where {asked} were asked for")
        if self.event_row and not (self.pruner and self.event_row.keys() >= REMOVAL):
            raise ValueError(f"event_row is of no removal: {', '.join(self.event_row)[:80]}")
        return self


class _Controller(_State):
    agent: TDMPCConfig
    action_repeat: Annotated[int, Field(strict=True, ge=1, le=1000)]
    obs_dim: Width
    action_dim: Width

    def networks(self) -> dict[str, nn.Module]:
        """All networks, without their weights."""
        known = resolve_task(self.task)
        if (self.obs_dim, self.action_dim) != (sizes := dimensions(known)):
            raise ValueError(
                f"it has {self.obs_dim} observations and {self.action_dim} actions, {known} has {sizes}"
            )
        self._check_widths()
        return dict.fromkeys(("online", "target"), WorldModel(self.architecture))

    def _check_widths(self) -> None:
        """Refuses networks that do not fit together, or are wider than unpruned ones."""
        dense = architecture(self.agent, self.obs_dim, self.action_dim)
        if self.architecture.keys() != dense.keys():
            raise ValueError(f"its components are {', '.join(self.architecture)}, not {', '.join(dense)}")
        latent = self.architecture["encoder"][-1]
        ends = {
            "encoder": (self.obs_dim, latent),
            "dynamics": (latent + self.action_dim, latent),
            "policy": (latent, self.action_dim),
        }
        for name, widths in self.architecture.items():
            first, last = ends.get(name, (latent + self.action_dim, 1))
            fits = len(widths) == len(dense[name]) and (widths[0], widths[-1]) == (first, last)
            if not fits or any(now > once for now, once in zip(widths, dense[name], strict=True)):
                raise ValueError(f"the widths of {name} are {widths}, of a dense one {dense[name]}")


class _Autoencoder(_State):
    agent: AutoencoderConfig
    data: Text

    def networks(self) -> dict[str, nn.Module]:
        """Both networks, without their weights."""
        if self.architecture.keys() != {"encoder", "decoder"}:
            raise ValueError(f"its components are {', '.join(self.architecture)}, not encoder, decoder")
        encoder, decoder = self.architecture["encoder"], self.architecture["decoder"]
        if (encoder[0], encoder[-1]) != (decoder[-1], decoder[0]):
            raise ValueError(f"encoder {encoder} and decoder {decoder} do not fit together")
        return {"encoder": mlp(encoder), "decoder": mlp(decoder)}


def check_state(state: Mapping[str, Any], model: Path) -> None:
    """Refuses a state that no run writes, and weights that are not those of the agent in it.

    Args:
        state: the JSON part of a checkpoint.
        model: its file of weights, of which only the header is read.

    Raises:
        ValueError: says what is wrong.
    """
    kind = _Autoencoder if state.get("task") == AUTOENCODER else _Controller
    try:
        checked = kind.model_validate(state)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {said}" if place else said) from None
    stored = shapes(model)
    with torch.device("meta"):
        networks = checked.networks()
    wanted = {
        f"{name}.{key}": ("F32", tuple(tensor.shape))
        for name, network in networks.items()
        for key, tensor in network.state_dict().items()
    }
    if differing := [
        key for key in sorted(wanted.keys() | stored.keys()) if wanted.get(key) != stored.get(key)
    ]:
        key = differing[0]
        raise ValueError(f"tensor {key} is {_shown(stored.get(key))}, expected {_shown(wanted.get(key))}")


def shapes(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor in a file, from its header alone.

    Raises:
        ValueError: it is no file, larger than what this machine could load, or its header is.
        SafetensorError: it is damaged; the library refuses tensors that overlap, and files with gaps.
    """
    check_size(path, memory() // 2)
    with path.open("rb") as file:
        if (length := int.from_bytes(file.read(8), "little")) > HEADER_BYTES:
            raise ValueError(f"the header of {path.name} has {length:,} bytes, more than {HEADER_BYTES:,}")
    with safe_open(path, "pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuses tensors with numbers that are not finite; raises ValueError."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"tensor {name} holds numbers that are not finite")


def check_shape(name: str, tensor: Tensor, *sizes: int | None) -> None:
    """Refuses a tensor that is not float32, or has other sizes (None: any); raises ValueError."""
    fits = len(tensor.shape) == len(sizes) and all(
        size in (None, now) for size, now in zip(sizes, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype != torch.float32:
        wanted = "x".join("any" if size is None else str(size) for size in sizes) or "a number"
        raise ValueError(f"tensor {name} is {tensor.dtype} {list(tensor.shape)}, expected float32 {wanted}")


@cache
def dimensions(task: str) -> tuple[int, int]:
    """Numbers of an observation and of an action of a task."""
    env = make_env(task)
    try:
        return spaces.flatdim(env.observation_space), spaces.flatdim(env.action_space)
    finally:
        env.close()


def _shown(tensor: tuple[str, Sequence[int]] | None) -> str:
    return "not there" if tensor is None else f"{tensor[0]} {list(tensor[1])}"
