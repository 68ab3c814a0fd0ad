"""The process of a trial: `python -m tdmpc_prune.sweep.child PARENT train ...` trains as the command would.

Beside that it looks after two things that a command started by hand need not: it saves and leaves when the
process that started it is gone (killed with its machine's Ray node, say), and it waits for a predecessor that
still does so in the same folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from tdmpc_prune.cli import main
from tdmpc_prune.run_folder import LOCK

SECONDS_TO_WAIT = 120
"""For a predecessor to leave the folder."""


def leave_with(parent: int) -> None:
    """From now on, SIGTERM comes when the parent process is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def wait_for(folder: Path) -> None:
    """Waits until no other process trains in the folder; if it never ends, `train` says so."""
    if folder.is_dir():
        with contextlib.suppress(Timeout), FileLock(folder / LOCK, timeout=SECONDS_TO_WAIT):
            pass


if __name__ == "__main__":
    leave_with(int(sys.argv[1]))
    arguments = sys.argv[2:]
    sys.argv[1:] = arguments  # what the run notes as its command
    wait_for(Path(arguments[arguments.index("--run-dir") + 1]))
    sys.exit(main(arguments))
