"""Images that an autoencoder learns from: scikit-learn's digits, or a folder with MNIST's files."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdmpc_prune.config import DIGITS
from tdmpc_prune.errors import UserError

TEST_SHARE = 0.2
SPLIT_SEED = 0
MOST_BYTES = 1 << 30
IDX_IMAGES = 0x00000803
"""First four bytes of an idx file of unsigned bytes in three dimensions."""


@dataclass(frozen=True)
class Images:
    """Pixels from 0 to 1, an image a row: `train` [N, P], `test` [M, P], no image in both."""

    train: Tensor
    test: Tensor


def load_images(data: str) -> Images:
    """The images that a setting names: `digits`, or a folder with idx files, plain or gzipped.

    MNIST's own test images (`t10k-images...`) are the test split where the folder has them. Otherwise a
    fifth of the images is: the same ones in every run, whatever its seed, so that errors compare and a run
    that starts from another one is not tested on what that one was trained on.

    Raises:
        UserError: they are not there, or not what they should be.
    """
    if data == DIGITS:
        return _split(_digits())
    folder = Path(data)
    train = _find(folder, "train-images")
    if train is None:
        raise UserError(
            f"{folder} holds no train-images-idx3-ubyte (or .gz): give MNIST's folder, or {DIGITS}"
        )
    test = _find(folder, "t10k-images")
    if test is None:
        return _split(_read_idx(train))
    images = Images(_read_idx(train), _read_idx(test))
    if images.train.shape[1] != images.test.shape[1]:
        raise UserError(f"{train.name} and {test.name} in {folder} hold images of different sizes")
    return images


def _digits() -> Tensor:
    """1,797 handwritten digits of 8 x 8 pixels with values from 0 to 16."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "--data digits comes with scikit-learn: pip install 'tdmpc-prune[autoencoder]'"
        ) from None
    return torch.tensor(load_digits().data / 16, dtype=torch.float32)


def _split(images: Tensor) -> Images:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    count = round(TEST_SHARE * len(images))
    if not 0 < count < len(images):
        raise UserError(f"{len(images)} images cannot be split into training and test images: give more")
    return Images(images[order[count:]], images[order[:count]])


def _find(folder: Path, start: str) -> Path | None:
    """The file of a part of MNIST, as `train-images-idx3-ubyte` or `train-images.idx3-ubyte`, or gzipped."""
    names = (f"{start}{separator}idx3-ubyte{end}" for separator in "-." for end in ("", ".gz"))
    return next((path for path in map(folder.joinpath, names) if path.is_file()), None)


def _read_idx(path: Path) -> Tensor:
    """Images [N, P] of an idx file: four big-endian numbers (kind, images, rows, columns), then the pixels."""
    try:
        # A few kilobytes can be gzipped zeros without end: no more than all of MNIST, many times over.
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): download it again") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"{path} holds more than {MOST_BYTES:,} bytes: give MNIST's own files")
    header = np.frombuffer(content[:16], ">u4").tolist() if len(content) >= 16 else [0]
    if header[0] != IDX_IMAGES:
        raise UserError(f"{path} is no idx file of images: give a folder with MNIST's own files")
    count, height, width = header[1:]
    pixels = np.frombuffer(content, np.uint8, offset=16)
    if not len(pixels) or len(pixels) != count * height * width:
        raise UserError(
            f"{path} has {len(pixels)} pixels where {count} images of {height} x {width} should be: download it again"
        )
    return torch.from_numpy(pixels.reshape(count, height * width).astype(np.float32) / 255)
