"""Where to compute."""

from __future__ import annotations

import contextlib
import ctypes
import os

import torch

from tdmpc_prune.config import Device
from tdmpc_prune.errors import UserError

MOST_THREADS = 4

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = {M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 256 * 2**20}
"""Bytes, by glibc's option: a block that is kept (it takes no larger threshold), and all that are kept."""


def choose_device(wanted: Device) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises:
        UserError: CUDA was asked for and is not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def set_deterministic(on: bool) -> None:
    """Has PyTorch compute the same bits again for the same numbers, or raise RuntimeError where it cannot.

    On the CPU it does so anyway, as long as the number of threads is the same.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = False
    # Nothing here reads any: only time would be lost.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def set_threads(threads: int) -> None:
    """Prepares the CPU: PyTorch's threads.

    0: as many as OMP_NUM_THREADS says; where it is not set, one per core that this process may use, at most 4: these
    networks are small, and more threads wait for each other more than they compute.
    """
    _keep_memory()
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    threads = threads or (int(said) if said.isdecimal() else 0)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    torch.set_num_threads(threads or min(cores, MOST_THREADS))


def _keep_memory() -> None:
    """Has the C library keep freed blocks for what comes next.

    By default glibc gives large ones back to the system and gets them anew, page by page: a tenth of an update at
    the laptop's sizes, and as much at the paper's.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        for option, most in KEPT.items():
            ctypes.CDLL(None).mallopt(option, most)
