"""How well an autoencoder gives images back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from agents.autoencoder import Autoencoder
from agents.autoencoder_config import AutoencoderConfig
from tdmpc_prune import checkpoint
from tdmpc_prune.errors import UserError
from tdmpc_prune.images import load_images

SMALLEST_ERROR = 1e-12
"""So that a perfect reconstruction has a finite signal-to-noise ratio, 120 dB."""


@dataclass(frozen=True)
class Reconstruction:
    """What an evaluation of an autoencoder found."""

    error: float
    """Mean squared error per pixel; pixels run from 0 to 1."""

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB, 0 where every pixel is wrong by all it can be."""
        return -10 * math.log10(max(self.error, SMALLEST_ERROR))


@torch.no_grad()
def reconstruct(agent: Autoencoder, images: Tensor) -> Reconstruction:
    """Measures the reconstruction of images [N, P]."""
    return Reconstruction(float(torch.nn.functional.mse_loss(agent.reconstruct(images), images)))


def evaluate_autoencoder(run: Path, device: torch.device) -> dict[str, Any]:
    """Evaluates a stored run on its test split.

    Raises:
        UserError: there is no checkpoint, it cannot be read, or the images are not there.
    """
    path = checkpoint.find(run)
    with checkpoint.readable(path):
        state = checkpoint.read_state(path)
        widths = state["architecture"]
        config = TypeAdapter(AutoencoderConfig).validate_python(state["agent"])
        agent = Autoencoder(config, widths["encoder"][0], device=device, architecture=widths)
        checkpoint.load_networks(path, agent.components())
        result = {"run": str(run), "task": state["task"], "data": state["data"]}
        result |= {"env_step": state["progress"]["env_step"]}
    test = load_images(result["data"]).test.to(device)
    if test.shape[1] != agent.input_dim:
        raise UserError(
            f"{run} learned images of {agent.input_dim} pixels, {result['data']} has {test.shape[1]}"
        )
    found = reconstruct(agent, test)
    return result | {
        "images": len(test),
        "error": found.error,
        "psnr": found.psnr,
        "parameters": sum(p.numel() for c in agent.components().values() for p in c.parameters()),
    }
