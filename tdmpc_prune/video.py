"""Frames to an mp4 file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from tdmpc_prune.errors import UserError
from tdmpc_prune.places import check_file

CAPTION_HEIGHT = 32


def check_video(path: Path) -> None:
    """Refuses, before anything is run, what could not be written after it.

    Raises:
        UserError: the extra `video` is not installed, or there is no place for the file.
    """
    check_file("--video", path)
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise UserError("--video needs the extra `video`: pip install 'tdmpc-prune[video]'") from error


def caption(frames: Iterable[np.ndarray], text: str) -> Iterator[np.ndarray]:
    """The frames [H, W, 3] with a line of text above them [H + 32, W, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    for frame in frames:
        strip = Image.new("RGB", (frame.shape[1], CAPTION_HEIGHT), "white")
        ImageDraw.Draw(strip).text((8, 5), text, fill="black", font=ImageFont.load_default(size=18))
        yield np.concatenate([np.asarray(strip), frame])


def side_by_side(films: Sequence[Iterable[np.ndarray]]) -> Iterator[np.ndarray]:
    """Films [H, W, 3] of one size beside each other; one that ends early stands still."""
    last: list[np.ndarray] = []
    for frames in zip_longest(*films):
        last = [last[i] if frame is None else frame for i, frame in enumerate(frames)]
        yield np.concatenate(last, axis=1)


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes frames [H, W, 3] (uint8) at `fps` frames per second, one at a time."""
    import imageio.v2 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    with imageio.get_writer(path, fps=fps, macro_block_size=8) as writer:
        for frame in frames:
            writer.append_data(frame)  # type: ignore[attr-defined]
