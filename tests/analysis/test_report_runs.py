"""Run folders written by hand, as the tests of the report need them; how they are read and grouped."""

import json
from pathlib import Path

import pytest

from tdmpc_prune.analysis.report.groups import sections
from tdmpc_prune.analysis.report.runs import read_runs
from tdmpc_prune.analysis.report.words import status
from tdmpc_prune.errors import UserError
from tdmpc_prune.sweep.folder import SweepFolder
from tdmpc_prune.sweep.search import Proposal

DENSE_PARAMETERS = 1000
WIDTHS = {"encoder.0": 16, "latent": 8}


def write_run(
    folder: Path,
    outcomes=(100.0, 500.0, 800.0),
    *,
    task="cartpole-swingup",
    seed=1,
    criterion="taylor",
    sparsity=0.8,
    finished=True,
    command="tdmpc-prune train",
    plan_ms=4.0,
    **settings,
) -> Path:
    """A run with an evaluation every 1,000 steps; a pruned one loses half of its units to go before the
    second, and the rest before the third."""
    outcome = "error" if task == "autoencoder" else "return"
    steps = 1000 * (len(outcomes) - 1)
    config = {
        "task": task,
        "seed": seed,
        "steps": steps,
        "preset": "laptop",
        "action_repeat": None,
        "run_dir": str(folder),
        "init_from": None,
        "agent": {"latent_dim": 8},
        "wandb": {"mode": "disabled", "tags": []},
        "prune": {
            "criterion": criterion,
            "sparsity": sparsity,
            "allocation": "uniform",
            "schedule": "cosine",
            "events": 2,
            "limits": {"coupling": 1.0},
        },
    }
    for name, value in settings.items():
        part, _, key = name.rpartition("__")
        (config[part] if part else config)[key] = value
    rows = []
    for i, value in enumerate(outcomes):
        left = 1 - sparsity * min(i, 2) / 2
        size = {
            "prune/sparsity": 1 - left,
            "prune/params": round(DENSE_PARAMETERS * left),
            "prune/macs": round(900 * left),
            "prune/sparsity/encoder": 1 - left,
            **{f"prune/width/{name}": round(units * left) for name, units in WIDTHS.items()},
        }
        if criterion == "none":
            size = {}
        elif 0 < i <= 2:
            before, after = outcomes[i - 1], value / 2 if outcome == "return" else value * 2
            measured = {f"prune/{outcome}_before": before, f"prune/{outcome}_after": after}
            rows.append({"env_step": 1000 * i - 200, "prune/event": i, **measured, **size})
        rows.append({"env_step": 1000 * i, f"eval/{outcome}": value, "eval/plan_ms": plan_ms, **size})
    folder.mkdir(parents=True)
    about = {"config": config, "command": command, "commit": "abc123", "machine": "Linux, 2 cores"}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        parameters = DENSE_PARAMETERS if criterion == "none" else rows[-1]["prune/params"]
        summary = {"env_step": steps, "parameters": parameters, outcome: outcomes[-1]}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def only_section(path: Path):
    (section,) = sections(read_runs([path]))
    return section


def labels(path: Path) -> dict[str, list[int]]:
    """Groups found below a folder, and their seeds."""
    return {group.label: [run.seed for run in group.runs] for group in only_section(path).groups}


def test_seeds_are_taken_together(tmp_path):
    for seed in (2, 1, 3):
        write_run(tmp_path / f"a{seed}", seed=seed, wandb__tags=[str(seed)], threads=seed)
        write_run(tmp_path / f"b{seed}", seed=seed, sparsity=0.5)
        # What would be pruned, and how, means nothing in a dense run.
        write_run(tmp_path / f"c{seed}", seed=seed, criterion="none", sparsity=seed / 10)
    assert labels(tmp_path) == {
        "dense": [1, 2, 3],
        "taylor uniform 50%": [1, 2, 3],
        "taylor uniform 80%": [1, 2, 3],
    }


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ({"criterion": "fisher"}, ["fisher uniform 80%", "taylor uniform 80%"]),
        ({"prune__allocation": "global"}, ["taylor global 80%", "taylor uniform 80%"]),
        ({"prune__schedule": "linear"}, ["taylor uniform cosine 80%", "taylor uniform linear 80%"]),
        ({"preset": "paper"}, ["taylor uniform laptop 80%", "taylor uniform paper 80%"]),
        # No part of a group's name, but still another experiment.
        (
            {"prune__events": 9},
            ["taylor uniform 80% (prune.events 2)", "taylor uniform 80% (prune.events 9)"],
        ),
        (
            {"init_from": "runs/dense"},
            ["taylor uniform 80%", "taylor uniform 80% (init_from a dense run)"],
        ),
        # Older runs lack it, and had none of it.
        (
            {"prune__recovery": 50},
            ["taylor uniform 80%", "taylor uniform 80% (prune.recovery 50)"],
        ),
        ({"prune__recovery": 0}, ["taylor uniform 80%"]),
        (
            {"prune__limits": {"coupling": 1.0, "component": {"q1": 0.5}}},
            ["taylor uniform 80%", "taylor uniform 80% (prune.limits.component.q1 0.5)"],
        ),
        ({"prune__limits": {"coupling": 1.0, "component": {"q1": 1.0}}}, ["taylor uniform 80%"]),
        # Newer versions have settings that older runs lack.
        ({"prune__new": 1}, ["taylor uniform 80%"]),
    ],
)
def test_what_makes_a_group(tmp_path, setting, names):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=2, **setting)
    assert list(labels(tmp_path)) == names


def test_what_is_set_otherwise_at_another_sparsity_is_said(tmp_path):
    write_run(tmp_path / "a", sparsity=0.8, prune__events=9)
    write_run(tmp_path / "b", sparsity=0.9)
    assert list(labels(tmp_path)) == [
        "taylor uniform 90% (prune.events 2)",
        "taylor uniform 80% (prune.events 9)",
    ]


@pytest.mark.parametrize(
    ("begun", "reference"), [("runs/a", "dense (init_from a dense run)"), (None, "dense")]
)
def test_what_goes_on_is_measured_against_what_went_on(tmp_path, begun, reference):
    write_run(tmp_path / "fresh", criterion="none")
    write_run(tmp_path / "going-on", criterion="none", init_from="runs/b", prune__events=7)
    write_run(tmp_path / "pruned", init_from=begun)
    section = only_section(tmp_path)
    pruned = next(group for group in section.groups if not group.dense)
    assert section.reference(pruned).label == reference


def test_tasks_are_apart(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", (0.3, 0.2, 0.1), task="autoencoder")
    found = sections(read_runs([tmp_path]))
    assert [(s.task, s.outcome, s.sign, s.steps) for s in found] == [
        ("cartpole-swingup", "return", 1, "environment steps"),
        ("autoencoder", "error", -1, "updates"),
    ]


def test_the_dense_group_most_like_it_is_the_reference(tmp_path):
    write_run(tmp_path / "a", seed=1, steps=5000)
    write_run(tmp_path / "b", seed=1, criterion="none", steps=5000)
    write_run(tmp_path / "c", seed=1, criterion="none", steps=9000)
    write_run(tmp_path / "d", seed=1, criterion="none", preset="paper")
    section = only_section(tmp_path)
    pruned = next(group for group in section.groups if not group.dense)
    assert section.reference(pruned).settings["steps"] == 5000


def test_a_smaller_dense_agent_is_no_reference(tmp_path):
    """Not even if it shares more settings: a newer version has more of them."""
    write_run(tmp_path / "a", seed=1, new=1, newer=2)
    write_run(tmp_path / "b", seed=1, criterion="none")
    write_run(tmp_path / "c", seed=1, criterion="none", new=1, newer=2, agent={"latent_dim": 4})
    section = only_section(tmp_path)
    pruned = next(group for group in section.groups if not group.dense)
    assert section.reference(pruned).settings["agent.latent_dim"] == 8


def test_each_run_is_read_once(tmp_path):
    a, b = write_run(tmp_path / "sweep" / "a"), write_run(tmp_path / "sweep" / "deep" / "b")
    assert [run.path for run in read_runs([b, tmp_path, a, tmp_path / "sweep"])] == [b, a]


def test_runs_of_one_name_are_called_by_their_paths(tmp_path):
    a, b = write_run(tmp_path / "x" / "a"), write_run(tmp_path / "y" / "a")
    c = write_run(tmp_path / "c")
    assert [run.name for run in read_runs([a, b, c])] == [str(a), str(b), "c"]


def test_an_unfinished_run(tmp_path):
    path = write_run(tmp_path / "a", finished=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"env_step": 2100, "eval/ret')  # being written
    (run,) = read_runs([path])
    assert (run.finished, run.env_step, run.last) == (False, 2000, 800.0)


def test_a_prolonged_run_is_unfinished_until_its_new_end(tmp_path):
    path = write_run(tmp_path / "a")
    assert read_runs([path])[0].finished
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"env_step": 2500}\n')
    assert not read_runs([path])[0].finished


def sweep_of(path):
    """A sweep and two trials of it, neither at its end."""
    sweep = SweepFolder(path)
    trials = [sweep.propose(number, Proposal({}, {})) for number in (1, 2)]
    return sweep, [write_run(sweep.run(trial), finished=False) for trial in trials]


@pytest.mark.parametrize(
    ("ended", "fate"),
    [
        ({"status": "stopped", "value": 1.0}, "stopped early by its sweep"),
        ({"status": "failed", "error": "no room\x1b[2J"}, r"failed: no room\x1b[2J"),
        ({"status": "finished", "value": 1.0}, ""),
        ({}, ""),
    ],
)
def test_what_its_sweep_says_of_an_unfinished_run(ended, fate, tmp_path):
    sweep, runs = sweep_of(tmp_path)
    if ended:
        sweep.end(2, **ended)
    assert [run.fate for run in read_runs(runs)] == ["", fate]
    (told,) = read_runs(runs[1:])
    assert status(told) == f"unfinished (2,000 of 2,000 steps{'; ' * bool(fate)}{fate})"


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"trial": "x", "status": "failed"}', '{"status": "failed"}', '{"trial": 1, "status": [1]}'],
)
def test_a_sweep_whose_notes_are_damaged_says_nothing(line, tmp_path):
    sweep, runs = sweep_of(tmp_path)
    sweep.end(1, "stopped")
    sweep.events.write_text(sweep.events.read_text() + line + "\n")
    assert [run.fate for run in read_runs(runs)] == ["", ""]


def test_numbers_that_are_none_are_left_out(tmp_path):
    path = write_run(tmp_path / "a")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"env_step": 2000, "eval/return": NaN, "eval/note": "text"}\n')
    (run,) = read_runs([path])
    assert run.rows[-1] == {"env_step": 2000}
    assert run.last == 800.0


def _broken(path: Path, name: str, content: str) -> Path:
    write_run(path / "run")
    (path / "run" / name).write_text(content)
    return path / "run"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", "{", "cannot be read as a run"),
        ("config.json", "[]", "cannot be read as a run"),
        ("config.json", '{"config": {"task": "x", "seed": 1}}', "no steps"),
        ("config.json", '{"config": {"task": "x", "seed": "one", "steps": 1}}', "cannot be read as a run"),
        (
            "config.json",
            '{"config": {"task": "x", "seed": 1, "steps": 1, "prune": {"criterion": "taylor"}}}',
            "no prune.allocation",
        ),
        ("metrics.jsonl", '{"env_step": 0}\n{"env_st\n{"env_step": 9}\n', "line 2 of metrics.jsonl"),
        ("metrics.jsonl", '"text"\n{"env_step": 9}\n', "line 1 of metrics.jsonl"),
        ("summary.json", "{", "cannot be read as a run"),
    ],
)
def test_damaged_runs(tmp_path, name, content, reason):
    path = _broken(tmp_path, name, content)
    for given in (path, tmp_path):
        with pytest.raises(UserError, match=reason) as error:
            read_runs([given])
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_folders_that_hold_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, reason in {"missing": "no folder", "file": "no folder", "empty": "no run folder"}.items():
        with pytest.raises(UserError, match=f"{name} is {reason}"):
            read_runs([tmp_path / name])


def test_what_began_with_runs_of_other_lengths_is_not_taken_together(tmp_path):
    """A checkpoint's run is the folder above it; what is not there any more decides nothing."""
    for name, count in (("short", 3), ("long", 5)):
        write_run(tmp_path / "sources" / name, (100.0,) * count, criterion="none")
    sources = tmp_path / "sources"
    begun = {1: sources / "short", 2: sources / "short" / "checkpoints" / "step-1000", 3: sources / "long"}
    for seed, source in begun.items():
        write_run(tmp_path / "runs" / f"a{seed}", seed=seed, init_from=str(source))
    assert labels(tmp_path / "runs") == {
        "taylor uniform 80% (init_from a dense run, init_from.steps 2000)": [1, 2],
        "taylor uniform 80% (init_from a dense run, init_from.steps 4000)": [3],
    }
    write_run(tmp_path / "runs" / "a4", seed=4, init_from=str(tmp_path / "gone"))
    assert labels(tmp_path / "runs") == {"taylor uniform 80% (init_from a dense run)": [1, 2, 3, 4]}
    (sources / "long" / "config.json").write_text("[")
    assert labels(tmp_path / "runs") == {"taylor uniform 80% (init_from a dense run)": [1, 2, 3, 4]}
