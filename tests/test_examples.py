"""The examples do what they are quoted for."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_own_agent(tmp_path):
    script = ROOT / "examples" / "own_agent.py"
    assert len(script.read_text().splitlines()) < 80
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *events, last, again, on = done.stdout.splitlines()
    number = r"(\d\.\d+)"
    found = [re.fullmatch(rf"sparsity {number}: error {number} before, {number} after", e) for e in events]
    sparsity, before, _ = zip(*(map(float, event.groups()) for event in found), strict=True)
    assert len(sparsity) == 5
    assert sorted(set(sparsity)) == list(sparsity)
    end = [float(n) for n in re.fullmatch(rf"sparsity {number}: error {number} at the end", last).groups()]
    assert 0.79 <= end[0] == sparsity[-1] <= 0.8
    assert float(re.fullmatch(rf"loaded again: error {number}", again)[1]) == end[1]
    assert on == f"goes on at sparsity {end[0]:.3f}, after 5 removals"
    # The mass starts one unit away; pruned to a fifth, it comes to rest as the dense agent's does.
    assert before[0] < 0.1
    assert end[1] < 0.1


def test_own_environment(tmp_path):
    """Trained, pruned and evaluated by the command, in a process that knows of it by the variable alone."""
    script = ROOT / "examples" / "own_environment.py"
    assert len(script.read_text().splitlines()) < 45
    found = os.environ | {"PYTHONPATH": str(ROOT), "TDMPC_PRUNE_ENVS": "examples.own_environment"}

    def command(*words):
        done = subprocess.run(
            [sys.executable, "-m", "tdmpc_prune", *words, "--threads", "1", "--json"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=found,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    sizes = ["--preset", "debug", "--steps", "300", "--agent.random-steps", "100", "--agent.batch-size", "8"]
    removals = ["--prune.importance.warmup", "20", "--prune.events", "2", "--prune.eval-episodes", "1"]
    once = ["--eval-every", "300", "--eval-episodes", "1", "--wandb.mode", "disabled", "--run-dir", "run"]
    trained = command("train", "PushToRest-v0", *sizes, *removals, *once)
    assert trained["sparsity"] == pytest.approx(0.8, abs=0.01)
    row = command("evaluate", "run", "--episodes", "1", "--perturb", "delay=1")
    assert row["control_ms"] == 100
    assert row["lengths"] == [100]
    assert 0 <= row["perturbed"]["delay=1"]["return"] <= 100
