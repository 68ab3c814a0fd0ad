"""Runs of earlier code: they count as missing, tables say so, and none of them stands in for one of today's."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from small_runs import TINY

from results import revisions, tables
from results.revisions import REVISIONS, Revision, overtaken
from results.run import Measurement, Runner, missing
from results.store import Store
from results.trials import trial
from tdmpc_prune.run_folder import to_json

OLD, CHANGE, NEW = "0" * 12, "1" * 12, "2" * 12


@pytest.fixture
def revision(monkeypatch):
    """A change that gives runs which prune other numbers; `OLD` is before it."""
    one = Revision(CHANGE, "units were counted", lambda own: own["prune.criterion"] != "none")
    monkeypatch.setattr(revisions, "REVISIONS", (one,))
    monkeypatch.setattr(revisions, "_before", lambda commit: {CHANGE: frozenset([OLD])}[commit])
    return one


def entry(one, commit):
    return {"run": one.name, "config": to_json(one.config), "commit": commit}


def test_what_is_older_than_a_change_and_touched_by_it(revision):
    pruned = to_json(trial("cartpole-swingup").config)
    dense = to_json(trial("cartpole-swingup", "--prune.criterion", "none").config)
    assert overtaken(pruned, OLD) is revision
    assert overtaken(pruned, f"{OLD}-dirty") is revision
    for commit in (CHANGE, NEW, None, ""):
        assert overtaken(pruned, commit) is None
    assert overtaken(dense, OLD) is None


def test_compensation_behind_layernorm_changed_agents_that_compensate():
    [one] = [r for r in REVISIONS if "LayerNorm" in r.what]

    def touched(*line):
        return one.touches(revisions.flatten(to_json(trial(*line).config)))

    assert touched("cartpole-swingup")
    assert not touched("cartpole-swingup", "--prune.compensation", "none")
    assert not touched("cartpole-swingup", "--prune.criterion", "none")
    assert not touched("autoencoder")


def git(*words, cwd):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", *identity, *words], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_history_says_what_is_before(tmp_path, monkeypatch):
    git("init", "--quiet", cwd=tmp_path)
    made = []
    for name in "abc":
        git("commit", "--quiet", "--allow-empty", "-m", name, cwd=tmp_path)
        made.append(git("rev-parse", "--short=12", "HEAD", cwd=tmp_path))
    monkeypatch.setattr(revisions, "__file__", str(tmp_path / "revisions.py"))
    assert revisions._before.__wrapped__(made[1]) == {made[0]}
    assert revisions._before.__wrapped__(made[2]) == {made[0], made[1]}
    assert revisions._before.__wrapped__(NEW) == frozenset()  # no such commit: a copy without its history


@pytest.mark.skipif(not Path(revisions.__file__).parents[1].joinpath(".git").exists(), reason="needs history")
@pytest.mark.parametrize("one", REVISIONS, ids=lambda one: one.commit)
def test_every_change_is_in_the_history(one):
    root = Path(revisions.__file__).parents[1]
    if git("rev-parse", "--is-shallow-repository", cwd=root) == "true":
        pytest.skip("a clone without its history")
    assert git("rev-parse", "--short=12", one.commit, cwd=root) == one.commit


def test_recorded_by_earlier_code_is_missing(revision, tmp_path):
    one, store = trial("cartpole-swingup"), Store(tmp_path)
    for commit, wanted in ((OLD, [one]), (NEW, [])):
        store.entries[one.name] = entry(one, commit)
        assert missing([one], store) == wanted


def test_measured_on_runs_of_earlier_code_is_missing(revision, tmp_path):
    dense, pruned = trial("cartpole-swingup", "--prune.criterion", "none"), trial("cartpole-swingup")
    look = Measurement("look", ("evaluate",), (dense, pruned))
    look.file.parent.mkdir()
    record = {"trainings": [dense.name, pruned.name], "result": {}}
    for more, current in (
        ({"commit": OLD}, False),
        ({"commit": NEW}, True),
        ({"commit": NEW, "commits": [NEW, OLD]}, False),
        ({"commit": NEW, "commits": [OLD, NEW]}, True),
    ):
        look.file.write_text(json.dumps(record | more))
        assert look.current is current


def test_a_run_of_earlier_code_is_laid_aside(revision, tmp_path):
    line = ("cartpole-swingup", *TINY, "--action-repeat", 40, "--agent.random-steps", 30, "--steps", 3000)
    one, store = trial(*line, "--prune.sparsity", 0.3), Store(tmp_path / "recorded")
    assert Runner(store, 1).run([one]) == []
    about = json.loads(one.folder.config.read_text())
    about["commit"] = OLD
    one.folder.config.write_text(json.dumps(about))
    assert Runner(store, 1).run([one]) == []
    assert json.loads(one.folder.config.read_text())["commit"] != OLD
    aside = one.folder.path.with_name(f"{one.folder.path.name}-before-{CHANGE}")
    assert json.loads((aside / "config.json").read_text())["commit"] == OLD


def test_tables_say_what_is_of_earlier_code(revision, tmp_path):
    def work():
        for seed in (1, 2, 3):
            yield trial("cartpole-swingup", "--seed", seed)
            yield trial("cartpole-swingup", "--seed", seed, "--prune.criterion", "none")
        yield look

    look = Measurement("look", ("evaluate",), (trial("cartpole-swingup"),))
    store = Store(tmp_path)
    assert tables.footnotes(work(), store) == []
    for one in list(work())[:-1]:
        store.entries[one.name] = entry(one, NEW if one.config.seed == 2 else OLD)
    seeds = "`cartpole-swingup taylor uniform 0.8` (seed 1, 3)"
    assert tables.footnotes(work(), store) == [f"Made before units were counted: {seeds}."]
    look.file.parent.mkdir()
    look.file.write_text(json.dumps({"trainings": [look.trials[0].name], "commit": OLD}))
    assert tables.footnotes(work(), store) == [
        f"Made before units were counted: {seeds}; `measured/look.json`."
    ]
