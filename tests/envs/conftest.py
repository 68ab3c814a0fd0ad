import os
import subprocess
import sys
from pathlib import Path

import pytest

import envs
from envs import SimulatorError


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    """MuJoCo writes MUJOCO_LOG.TXT where the process stands (HalfCheetah-v5's model warns)."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def gl():
    """Skips where no frame can be drawn."""
    from envs.gl import enable_gl

    try:
        enable_gl()
    except SimulatorError as error:
        pytest.skip(str(error))


@pytest.fixture
def python():
    """Runs code in a fresh interpreter, `variables` set (None: unset); returns what it printed."""

    def run(code: str, **variables: str | None) -> str:
        wanted = {"PYTHONPATH": str(Path(envs.__file__).parents[1]), **variables}
        environ = {key: value for key, value in os.environ.items() if key not in wanted}
        environ |= {key: value for key, value in wanted.items() if value is not None}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
