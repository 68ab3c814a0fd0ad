"""Whether something can be written where it is asked for: known before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

from tdmpc_prune.errors import UserError


def check_folder(option: str, folder: Path) -> None:
    """Refuses a folder that is none, or that neither is there nor can be made.

    Raises:
        UserError: one line that names the option.
    """
    _check(f"{option} {folder}", folder)


def check_file(option: str, path: Path) -> None:
    """Refuses a file that cannot be written; folders on the way may be missing.

    Raises:
        UserError: one line that names the option.
    """
    check_parent(option, path)
    try:
        folder, there = path.is_dir(), path.exists()
    except OSError as error:
        raise UserError(
            f"{option} {path}: cannot write there ({error.strerror}); choose another name"
        ) from error
    if folder:
        raise UserError(f"{option} {path}: that is a folder, choose another name")
    if there and not os.access(path, os.W_OK):
        raise UserError(f"{option} {path}: cannot write to that file, choose another name")


def check_parent(option: str, path: Path) -> None:
    """Refuses what cannot be made, whatever is there already; folders on the way may be missing.

    Raises:
        UserError: one line that names the option.
    """
    _check(f"{option} {path}", path.absolute().parent)


def _check(asked: str, folder: Path) -> None:
    place = folder.absolute()
    try:
        nearest = next(path for path in (place, *place.parents) if path.exists())
    except OSError as error:  # no leave to look, or a name too long
        raise UserError(f"{asked}: cannot write there ({error.strerror}); choose another place") from error
    if not nearest.is_dir():
        raise UserError(f"{asked}: cannot write there, {nearest} is a file; choose another place")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{asked}: cannot write to {nearest}; choose another place")
