"""Real processes with real signals. Each start costs seconds of imports, so there are few."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import CARTPOLE, PENDULUM, assert_same_run, checkpoints, rows, train_small

import tdmpc_prune

ROOT = str(Path(tdmpc_prune.__file__).parents[1])


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ROOT}


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tdmpc_prune", "train", *CARTPOLE, "--run-dir", str(folder)]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_lines(process: subprocess.Popen, folder: Path, number: int, since: int) -> None:
    """Waits until metrics.jsonl, written to after the time `since` (ns), has so many lines; or for the end."""
    metrics, limit = folder / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None:
        if (
            metrics.is_file()
            and metrics.stat().st_mtime_ns > since
            and metrics.read_bytes().count(b"\n") >= number
        ):
            return
        assert time.monotonic() < limit, "no line of metrics after two minutes"
        time.sleep(0.01)


def python(code: str, *arguments: str) -> str:
    """Runs code in a fresh interpreter; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("number", "line"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_signals_save_and_leave(number, line, undisturbed, folder, no_plot):
    process = start(folder)
    wait_for_lines(process, folder, line, since=0)
    begin = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert time.monotonic() - begin < 10
    assert out == ""
    assert "Traceback" not in err
    assert "saved at environment step" in err.splitlines()[-1]
    assert len(rows(folder)) >= line
    stored = json.loads((checkpoints(folder)[-1] / "state.json").read_text())
    assert stored["metrics_bytes"] == (folder / "metrics.jsonl").stat().st_size
    assert not (folder / "summary.json").exists()
    train_small(CARTPOLE, folder)
    assert_same_run(folder, undisturbed["cartpole"].path)


HELP = """
import contextlib, io, sys
from tdmpc_prune.cli import main
for words in (["--help"], ["train", "--help"], ["evaluate", "--help"], []):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            main(words)
    except SystemExit as stop:
        assert stop.code in (0, None), stop.code
    assert "usage: tdmpc-prune" in said.getvalue()
assert main(["train", "cartpole-swingup", "--no-such-setting"]) == 2
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_help_and_wrong_settings_import_nothing_heavy():
    loaded = set(python(HELP).split())
    assert "tyro" in loaded
    heavy = {"torch", "gymnasium", "mujoco", "dm_control", "wandb", "tensordict", "matplotlib", "safetensors"}
    assert not loaded & (heavy | {"imageio", "numpy"})


TRAIN = """
import sys
from tdmpc_prune.cli import main
assert main(sys.argv[1:]) == 0
print()
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_run_without_wandb_does_not_import_it(folder, monkeypatch):
    """And it stores the command that was given, and nothing of the environment."""
    monkeypatch.setenv("A_SECRET", "correct-horse-battery")
    arguments = ["train", *PENDULUM, "--steps", "20", "--run-dir", str(folder)]
    loaded = set(python(TRAIN, *arguments).splitlines()[-1].split())
    assert "torch" in loaded
    assert not loaded & {"wandb", "imageio_ffmpeg"}
    stored = json.loads((folder / "config.json").read_text())
    assert stored["command"].startswith("tdmpc-prune train InvertedPendulum-v5 --preset debug ")
    assert stored["command"].endswith(f"--steps 20 --run-dir {folder}")
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for value in (b"correct-horse-battery", os.environ["HOME"].encode(), os.environ["PATH"].encode()):
        assert value not in written


ALONE = """
import sys
for name in ("wandb", "matplotlib", "tdmpc_prune.logger", "tdmpc_prune.train"):
    sys.modules[name] = None
from tdmpc_prune.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_evaluate_needs_nothing_but_a_checkpoint(finished, folder):
    last = checkpoints(finished)[-1]
    place = folder / "checkpoints" / last.name
    place.mkdir(parents=True)
    for name in ("model.safetensors", "state.json"):
        (place / name).write_bytes((last / name).read_bytes())
    out = python(ALONE, "evaluate", str(folder), "--json", "--episodes", "1", "--threads", "1")
    result = json.loads(out)
    assert result["task"] == "cartpole-swingup"
    assert result["env_step"] == 3000
    assert len(result["returns"]) == 1


def test_a_reader_that_leaves_gets_no_traceback(tmp_path):
    """As in `tdmpc-prune train cartpole-swingup --dry-run | head -0`."""
    command = [
        sys.executable,
        "-m",
        "tdmpc_prune",
        "train",
        "cartpole-swingup",
        "--dry-run",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
