"""Whole sweeps with Ray Tune: undisturbed, killed, on a cluster that loses a machine, with trials that fail."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from sweep_files import written

from tdmpc_prune.cli import main
from tdmpc_prune.sweep.driver import Sweep
from tdmpc_prune.sweep.folder import SweepFolder
from tdmpc_prune.sweep.search import Proposal
from tdmpc_prune.sweep.trial import Resources

ray = pytest.importorskip("ray")

SHORT = [
    *(
        "--preset",
        "debug",
        "--agent.horizon",
        "3",
        "--agent.batch-size",
        "8",
        "--agent.replay.capacity",
        "60",
    ),
    *("--agent.planner.num-samples", "16", "--action-repeat", "40", "--agent.random-steps", "30"),
    *("--eval-episodes", "1", "--prune.eval-episodes", "0", "--prune.importance.warmup", "5"),
    *("--device", "cpu", "--wandb.mode", "disabled", "--checkpoint-every", "1000", "--eval-every", "1000"),
]
"""Episodes of 25 agent steps."""


def command(*more):
    return ["${program}", "train", "cartpole-swingup", *SHORT, *more, "${args}"]


THREE = {
    "command": command("--steps", "3000"),
    "parameters": {"prune.criterion": {"values": ["taylor", "magnitude", "random"]}, "seed": {"value": 2}},
}


def events(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def outcomes(folder):
    """Values, status and result of all trials, and the rows of their runs, without what hangs on the clock."""
    trials = {}
    for event in events(folder):
        trials.setdefault(event["trial"], {}).update(event)
    for number, trial in trials.items():
        lines = (folder / f"runs/{number:04d}/metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        clock = ("time/", "eval/plan_ms")
        trial["rows"] = [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows]
    return trials


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The three trials, and nothing happened."""
    place = tmp_path_factory.mktemp("undisturbed")
    file = written(place / "sweep.yaml", **THREE)
    assert main(["sweep", str(file), "--engine", "ray", "--sweep-dir", str(place / "s")]) == 0
    return place / "s"


def test_a_sweep(undisturbed, capsys):
    trials = outcomes(undisturbed)
    assert sorted(trials) == [1, 2, 3]
    assert all(trial["status"] == "finished" for trial in trials.values())
    assert [(t["values"]["prune.criterion"], t["values"]["seed"]) for _, t in sorted(trials.items())] == [
        ("taylor", 2),
        ("magnitude", 2),
        ("random", 2),
    ]
    for number, trial in trials.items():
        assert trial["value"] == [row["eval/return"] for row in trial["rows"] if "eval/return" in row][-1]
        summary = json.loads((undisturbed / f"runs/{number:04d}/summary.json").read_text())
        assert summary["return"] == trial["value"]
        assert summary["sparsity"] == pytest.approx(0.8, abs=0.02)
        stored = json.loads((undisturbed / f"runs/{number:04d}/config.json").read_text())["config"]
        assert stored["threads"] == 1
        about = json.loads((undisturbed / f"runs/{number:04d}/config.json").read_text())
        assert about["command"].startswith("tdmpc-prune train cartpole-swingup ")  # to be typed again
        assert (stored["prune"]["criterion"], stored["seed"]) == tuple(trial["values"].values())
    with (undisturbed / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    assert sorted(int(row["trial"]) for row in table) == [1, 2, 3]
    assert [float(row["eval/return"]) for row in table] == sorted(
        (t["value"] for t in trials.values()), reverse=True
    )
    assert not (undisturbed / "ray").exists()


def test_a_finished_sweep_is_shown_again_at_once(undisturbed, capsys):
    before = (undisturbed / "trials.jsonl").read_text()
    file = undisturbed.parent / "sweep.yaml"
    assert main(["sweep", str(file), "--engine", "ray", "--sweep-dir", str(undisturbed), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [trial["status"] for trial in shown["trials"]] == ["finished"] * 3
    assert (undisturbed / "trials.jsonl").read_text() == before


def test_the_report_takes_its_folder(undisturbed, tmp_path, capsys):
    assert (
        main(["report", str(undisturbed), "--out", str(tmp_path / "report"), "--latency", "none", "--json"])
        == 0
    )
    assert "0003" in (tmp_path / "report" / "index.html").read_text()


def wait_for(condition, process=None, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None
        time.sleep(0.1)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_stopped_and_begun_again(how, undisturbed, tmp_path):
    """Killed in the middle, or asked to stop: the second sitting ends with the same trials and results."""
    file = written(tmp_path / "sweep.yaml", **THREE)
    folder = tmp_path / "s"
    line = [
        sys.executable,
        "-m",
        "tdmpc_prune",
        "sweep",
        str(file),
        "--engine",
        "ray",
        "--sweep-dir",
        str(folder),
    ]
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(line, stdout=out, stderr=out)
    metrics = folder / "runs/0001/metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 2, process)
    os.kill(process.pid, how)
    code = process.wait(120)
    assert code == (-how if how == signal.SIGKILL else 1)
    assert sum("status" in event for event in events(folder)) < 3
    if how != signal.SIGKILL:
        assert "the same command goes on from there" in (tmp_path / "out.txt").read_text()
    assert main(["sweep", str(file), "--engine", "ray", "--sweep-dir", str(folder)]) == 0
    assert outcomes(folder) == outcomes(undisturbed)


def test_a_cluster_of_two_machines_loses_one(undisturbed, tmp_path, monkeypatch, capfd):
    """A sweep on two Ray nodes: one is killed with its trial, which goes on elsewhere from its checkpoint.

    The head runs no trials: of the other two, whichever reports first is killed, so that it does not matter which
    of them is up in time to have one.
    """
    from ray.cluster_utils import Cluster

    from tdmpc_prune.sweep import ray_engine

    file = written(tmp_path / "sweep.yaml", **THREE)
    folder = tmp_path / "s"
    killed = []
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}, connect=False
    )
    try:
        nodes = {node.node_id: node for node in (cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1))}
        cluster.wait_for_nodes()
        progress = ray_engine.Events.on_trial_result

        def kill_once(self, iteration, trials, trial, result, **info):
            progress(self, iteration, trials, trial, result, **info)
            # The first trial that reports takes its node down with it.
            if not killed and "machine" in result:
                killed.append(trial.config["trial"])
                cluster.remove_node(nodes[result["machine"]], allow_graceful=False)

        monkeypatch.setattr(ray_engine.Events, "on_trial_result", kill_once)
        code = main(
            ["sweep", str(file), "--engine", "ray", "--sweep-dir", str(folder), "--address", cluster.address]
        )
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed
    said = capfd.readouterr().err
    assert f"trial {killed[0]} failed and is tried again: its machine is gone" in said
    assert code == 0
    assert outcomes(folder) == outcomes(undisturbed)


def test_a_trial_that_fails_stops_no_other(tmp_path, capfd):
    """One trial's settings are refused when it starts: no second try would help, and the other one goes on."""
    missing = tmp_path / "nowhere"
    file = written(
        tmp_path / "sweep.yaml",
        command=command("--steps", "1500"),
        parameters={"init_from": {"values": [str(missing), None]}, "seed": {"values": [1]}},
    )
    folder = tmp_path / "s"
    assert main(["sweep", str(file), "--engine", "ray", "--sweep-dir", str(folder)]) == 1
    trials = {}
    for event in events(folder):
        trials.setdefault(event["trial"], {}).update(event)
    assert [trials[n]["status"] for n in (1, 2)] == ["failed", "finished"]
    assert str(missing) in trials[1]["error"]
    out, err = capfd.readouterr()
    assert "trial 1 failed: " in err
    assert "tried again" not in err
    assert "nowhere" in out
    # The cause is taken away: the same command tries it again, and does nothing anew.
    first = (folder / "runs/0002/metrics.jsonl").stat().st_mtime_ns
    main(
        [
            "train",
            "cartpole-swingup",
            *SHORT,
            "--steps",
            "1500",
            "--prune.criterion=none",
            f"--run-dir={missing}",
        ]
    )
    assert main(["sweep", str(file), "--engine", "ray", "--sweep-dir", str(folder)]) == 0
    assert (folder / "runs/0002/metrics.jsonl").stat().st_mtime_ns == first


def test_a_trial_that_fails_again_and_again(tmp_path, capfd):
    """It diverges at once, is tried again as often as is allowed, and reported."""
    file = written(
        tmp_path / "sweep.yaml",
        command=command("--steps", "1500", "--skip-limit", "1"),
        parameters={"agent.lr": {"values": [1.0e29, 0.001]}},
    )
    folder = tmp_path / "s"
    line = ["sweep", str(file), "--engine", "ray", "--sweep-dir", str(folder), "--retries", "1"]
    assert main(line) == 1
    err = capfd.readouterr().err
    assert (
        err.count("trial 1 failed and is tried again: exit code 1: tdmpc-prune: cartpole-swingup, step ") == 1
    )
    assert err.count("trial 1 failed: ") == 1
    assert "Traceback" not in err
    trials = {}
    for event in events(folder):
        trials.setdefault(event["trial"], {}).update(event)
    assert [trials[n]["status"] for n in (1, 2)] == ["failed", "finished"]
    assert "exit code 1" in trials[1]["error"]
    assert "diverges" in trials[1]["error"]


def test_who_lags_behind_is_stopped_after_the_pruning(tmp_path):
    """One trial after the other: each is judged by those before it, and not before its removals are over."""
    file = written(
        tmp_path / "sweep.yaml",
        # A trial holds all cores, so that no other runs beside it, and computes on one.
        command=command("--steps", "9000", "--prune.end", "0.3", "--prune.sparsity", "0.5", "--threads", "1"),
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2},
        parameters={"seed": {"values": [1, 2, 3, 4]}},
    )
    folder = tmp_path / "s"
    line = ["sweep", str(file), "--engine", "ray", "--sweep-dir", str(folder)]
    assert main([*line, "--cpus-per-trial", str(len(os.sched_getaffinity(0)))]) == 0
    trials = outcomes(folder)
    first = 2 + 1 + 2  # evaluations until 30% of 9,000 steps, the one at step 0 among them, and two more
    seen = {}
    for number in sorted(trials):
        rows = trials[number]["rows"]
        returns = [row["eval/return"] for row in rows if "eval/return" in row]
        assert trials[number]["history"] == returns[: len(trials[number]["history"])]
        assert len(returns) >= first
        assert max(row["env_step"] for row in rows if "prune/event" in row) < rows[-1]["env_step"]
        behind = bool(seen) and returns[first - 1] < np.percentile(list(seen.values()), 50)
        seen[number] = returns[first - 1]
        if behind:
            # At the first evaluation that counts; how far it came until it heard of it hangs on the clock.
            assert trials[number]["status"] == "stopped"
            assert len(trials[number]["history"]) == first
    assert trials[1]["status"] == "finished"
    assert {trial["status"] for trial in trials.values()} <= {"finished", "stopped"}


def test_trials_of_earlier_sittings_count(define, tmp_path):
    """The scheduler of a second sitting stops who lags behind trials that it never saw."""
    from tdmpc_prune.sweep import ray_engine

    definition = define(
        command=command("--steps", "9000", "--prune.end", "0.3"),
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2},
        parameters={"seed": {"values": [1, 2, 3, 4]}},
    )
    folder = SweepFolder(tmp_path / "s")
    folder.open(definition, 1)
    for number, value in ((1, 50.0), (2, 10.0)):
        folder.propose(number, Proposal({"seed": number}))
        folder.end(number, "finished", value=value, history=[0.0, 0.0, 0.0, 0.0, value, 99.0])
    sweep = Sweep(definition, folder, seed=1, count=None, resources=Resources())
    assert sweep.first_decision == 5
    scheduler = ray_engine._scheduler(sweep)
    for name, value, decision in (("worse", 20.0, "STOP"), ("better", 40.0, "CONTINUE")):
        trial = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, {"value": 0.0}) == "CONTINUE"  # no time, no decision
        assert scheduler.on_trial_result(None, trial, {"evaluation": 5, "value": value}) == decision


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cpus-per-trial", "1000"], "no machine has more than"),
        (["--gpus-per-trial", "1"], "device is cpu, and trials would hold GPUs"),
        (["--address", "127.0.0.1:9"], "no Ray cluster there"),
        (["--cpus-per-trial", "0"], "cpus_per_trial is 0.0; choose more than 0"),
        (["--cpus-per-trial", "nan"], "choose more than 0"),
        (["--count", "0"], "count is 0; choose more than 0"),
        (["--retries", "-1"], "retries is -1; choose 0 or more"),
        (["--seed", "-1"], "seed is -1"),
        (["--join", "abc"], "--join is for W&B's sweeps: choose --engine wandb"),
        (["--engine", "raay"], "--engine"),
    ],
)
def test_wrong_command_lines(words, said, tmp_path, capfd):
    file = written(tmp_path / "sweep.yaml", **THREE)
    assert main(["sweep", str(file), "--engine", "ray", "--sweep-dir", str(tmp_path / "s"), *words]) == 2
    out, err = capfd.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert out == ""
