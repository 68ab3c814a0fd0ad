"""Settings of the autoencoder. Free of heavy imports, so that a command line can show them quickly."""

from __future__ import annotations

from dataclasses import dataclass

LARGEST = 1e30
"""Of other numbers: float32, in which all is computed, ends at 3e38."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Networks and learning of one autoencoder: input -> hidden -> code -> hidden -> output."""

    hidden_dim: int = 128
    """Hidden width of encoder and decoder."""
    code_dim: int = 16
    """Width of the code between them."""
    batch_size: int = 64
    """Inputs per update."""
    lr: float = 1e-3
    """Adam's learning rate."""
    grad_clip: float = 10.0
    """Largest gradient norm."""

    def __post_init__(self) -> None:
        for name, most in (("hidden_dim", 8_192), ("code_dim", 8_192), ("batch_size", 65_536)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; choose 1 to {most:,}")
        for name in ("lr", "grad_clip"):
            if not 0 < getattr(self, name) < LARGEST:
                raise ValueError(f"{name} is {getattr(self, name)}; choose a finite number above 0")
