"""Frames to an mp4 file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tdmpc_prune.errors import UserError

CAPTION_HEIGHT = 32


def check_video(path: Path) -> None:
    """Refuses, before anything is run, what could not be written after it.

    Raises:
        UserError: the extra `video` is not installed, or there is no place for the file.
    """
    nearest = next(p for p in path.absolute().parents if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK) or path.is_dir():
        raise UserError(f"--video {path}: cannot write there; choose another place")
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise UserError("--video needs the extra `video`: pip install 'tdmpc-prune[video]'") from error


def caption(frames: Sequence[np.ndarray], text: str) -> list[np.ndarray]:
    """The frames [H, W, 3] with a line of text above them [H + 32, W, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (frames[0].shape[1], CAPTION_HEIGHT), "white")
    ImageDraw.Draw(strip).text((8, 5), text, fill="black", font=ImageFont.load_default(size=18))
    return [np.concatenate([np.asarray(strip), frame]) for frame in frames]


def side_by_side(films: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Films [H, W, 3] of one size beside each other; one that ends early stands still."""
    length = max(len(film) for film in films)
    return [np.concatenate([film[min(i, len(film) - 1)] for film in films], axis=1) for i in range(length)]


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Writes frames [H, W, 3] (uint8) at `fps` frames per second."""
    import imageio.v2 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.mimwrite(path, list(frames), fps=fps, macro_block_size=8)
