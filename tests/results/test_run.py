"""Making what is missing: trained in its own folder, recorded at once, told what failed."""

import json
from dataclasses import replace

import pytest
from small_runs import TINY

from results.run import Measurement, Runner, missing
from results.store import Store
from results.trials import trial

SMALL = (
    *("cartpole-swingup", *TINY, "--action-repeat", 40, "--agent.random-steps", 30),
    *("--eval-every", 2000, "--prune.criterion", "none"),
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "recorded")


def test_trained_measured_and_not_made_again(store):
    first = trial(*SMALL, "--steps", 3000)
    after = trial(*SMALL, "--steps", 1000, after=first)
    look = Measurement("look", ("evaluate", "--episodes", "1", "--plans", "0"), (first,))
    work = [after, look]
    assert Runner(store, 2).run(missing(work, store)) == []
    assert store.has(after.name)
    assert not store.has(first.name)  # nobody asked for it
    assert first.folder.finished_summary(first.config)
    assert look.result()["task"] == "cartpole-swingup"
    record = json.loads(look.file.read_text())
    assert record["trainings"] == [first.name]
    assert "tdmpc_prune evaluate --episodes 1" in record["command"]
    assert missing(work, store) == []
    other = replace(look, trials=(after,))  # as if a default had changed
    assert missing([other], store) == [other]


def test_what_fails_is_told_and_stops_nothing(store, tmp_path):
    wrong, right = trial(*SMALL, "--steps", 3000, "--seed", 1), trial(*SMALL, "--steps", 3000, "--seed", 2)
    wrong.folder.path.mkdir(parents=True)
    (wrong.folder.path / "stray.txt").write_text("no run")
    look = Measurement("look", ("evaluate", "--episodes", "0"), (right,))
    failures = Runner(store, 1).run([wrong, right, look])
    assert len(failures) == 2
    assert "holds something that is no run" in failures[0]
    assert "episodes is 0" in failures[1]
    assert store.has(right.name)
    assert missing([wrong, right, look], store) == [wrong, look]


def test_a_run_of_other_settings_in_its_folder_is_no_stand_in(store):
    """Folders have names without the settings that are defaults, and a default may have changed."""
    wanted = trial(*SMALL, "--steps", 3000)
    assert Runner(store, 1).run([wanted]) == []
    assert wanted.made
    about = json.loads(wanted.folder.config.read_text())
    about["config"]["agent"]["lr"] = 0.5
    wanted.folder.config.write_text(json.dumps(about))
    assert not wanted.made
    [failure] = Runner(store, 1).run([wanted])
    assert "other settings" in failure
