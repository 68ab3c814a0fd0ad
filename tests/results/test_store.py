"""Recorded runs: as much of a run folder as a report reads, and back."""

import csv
import json

import pytest
from small_runs import PRUNED, train_small

from results.store import Store
from tdmpc_prune.analysis.report.groups import sections
from tdmpc_prune.analysis.report.results import results
from tdmpc_prune.analysis.report.runs import read_runs
from tdmpc_prune.analysis.report.timing import Timings
from tdmpc_prune.logger import read_metrics
from tdmpc_prune.run_folder import RunFolder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two small pruned runs and a dense one."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdmpc_prune.train.plot_run", lambda folder: None)
        for name, more in {
            "one": [],
            "two": ["--seed", "2"],
            "dense": ["--prune.criterion", "none"],
        }.items():
            train_small(PRUNED, folder / name, *more)
    return folder


def numbers(paths):
    [section] = sections(read_runs(paths))
    found = [result.to_json() for result in results(section, Timings({}, ""))]
    for one in found:
        del one["runs"]
    return found


def test_a_report_says_the_same_of_what_is_recorded(runs, tmp_path):
    paths = [runs / name for name in ("one", "two", "dense")]
    store = Store(tmp_path / "recorded")
    names = [store.add(path) for path in paths]
    assert len(set(names)) == 3
    again = Store(tmp_path / "recorded")  # from the files
    unpacked = again.unpack(names, tmp_path / "unpacked")
    for found, made in zip(numbers(unpacked), numbers(paths), strict=True):
        assert same(found, made)


def same(found, made):
    """Numbers alike to six digits, however deep."""
    if isinstance(made, dict):
        return found.keys() == made.keys() and all(same(found[k], made[k]) for k in made)
    if isinstance(made, float):
        return found == pytest.approx(made, rel=1e-5)
    return found == made


def test_evaluations_removals_and_widths_are_all_there(runs, tmp_path):
    store = Store(tmp_path)
    name = store.add(runs / "one")
    rows = store.rows("InvertedPendulum-v5")[name]
    made = read_metrics(RunFolder(runs / "one").metrics)
    for key in ("eval/return", "prune/return_before", "prune/return_after", "prune/width/latent"):
        shown = [row for row in made if key in row and ("prune/event" in row or "eval/return" in row)]
        assert shown
        found = [row for row in rows if key in row]
        assert [row["env_step"] for row in found] == [row["env_step"] for row in shown]
        assert [row[key] for row in found] == pytest.approx([row[key] for row in shown], rel=1e-5)


def test_where_a_run_was_kept_is_not_recorded(runs, tmp_path):
    store = Store(tmp_path)
    store.add(runs / "one")
    text = (tmp_path / "InvertedPendulum-v5.json").read_text()
    [entry] = json.loads(text)
    assert "--run-dir" not in entry["command"]
    assert str(runs) not in text
    assert entry["commit"]
    assert entry["machine"]
    assert entry["summary"]["env_step"] >= 80


def test_recorded_again_a_run_takes_the_place_of_its_former_self(runs, tmp_path):
    store = Store(tmp_path)
    for name in ("one", "two", "one"):
        store.add(runs / name)
    with (tmp_path / "InvertedPendulum-v5.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [(row["run"], row["env_step"], row["prune/event"]) for row in rows]
    assert len(steps) == len(set(steps))
    assert len(json.loads((tmp_path / "InvertedPendulum-v5.json").read_text())) == 2


def test_scores_over_time_are_kept_where_asked_for(runs, tmp_path):
    store = Store(tmp_path)
    name = store.add(runs / "one", scores=True)
    other = store.add(runs / "two")
    assert store.has(name, scores=True)
    assert store.has(other)
    assert not store.has(other, scores=True)
    [run] = read_runs(store.unpack([name], tmp_path / "unpacked"))
    made = read_metrics(RunFolder(runs / "one").metrics)
    key = "importance/taylor/latent"
    wanted = [row[key] for row in made if key in row]
    assert wanted
    assert [row[key] for row in run.rows if key in row] == pytest.approx(wanted, rel=1e-5)
