"""What a sweep's folder remembers, and what it refuses."""

import json

import pytest

from tdmpc_prune.errors import UserError
from tdmpc_prune.sweep.folder import SweepFolder
from tdmpc_prune.sweep.search import Proposal


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path / "sweep")


def again(folder, definition, seed=1):
    """The folder as the next sitting finds it."""
    folder.close()
    other = SweepFolder(folder.path)
    other.open(definition, seed)
    return other


def test_it_remembers_what_happened(folder, define):
    definition = define()
    folder.open(definition, 1)
    folder.propose(1, Proposal({"seed": 1}, {"seed": 0.25}))
    folder.propose(2, Proposal({"seed": 2}))
    folder.propose(3, Proposal({"seed": 3}))
    folder.end(1, "finished", value=3.5, history=[1.0, 3.5])
    folder.end(3, "failed", error="it broke")
    other = again(folder, definition)
    assert other.trials == folder.trials
    assert [other.trials[n].status for n in (1, 2, 3)] == ["finished", "open", "failed"]
    assert other.trials[1].history == (1.0, 3.5)
    assert other.trials[1].proposal.point == {"seed": 0.25}
    assert other.trials[3].error == "it broke"
    other.end(3, "finished", value=1.0)
    assert again(other, definition).trials[3].error is None


@pytest.mark.parametrize("lost", range(1, 45, 7))
def test_a_line_cut_off_by_a_crash_never_happened(lost, folder, define):
    definition = define()
    folder.open(definition, 1)
    folder.propose(1, Proposal({"seed": 1}))
    folder.propose(2, Proposal({"seed": 2}))
    content = folder.events.read_bytes()
    folder.events.write_bytes(content[:-lost])
    other = again(folder, definition)
    assert list(other.trials) == [1]
    other.propose(2, Proposal({"seed": 9}))
    assert again(other, definition).trials[2].proposal.values == {"seed": 9}
    assert all(json.loads(line) for line in folder.events.read_text().splitlines())


def test_one_process_at_a_time(folder, define):
    folder.open(define(), 1)
    with pytest.raises(UserError, match="another process runs the sweep"):
        SweepFolder(folder.path).open(define(), 1)
    folder.close()
    SweepFolder(folder.path).open(define(), 1)


@pytest.mark.parametrize(
    ("changes", "seed", "said"),
    [
        ({"parameters": {"seed": {"values": [1, 2, 3]}}}, 1, "other parameters"),
        ({"method": "random", "run_cap": 3}, 1, "other method"),
        ({"metric": None}, 1, "other metric"),
        ({"command": ["${program}", "train", "walker-walk", "${args}"]}, 1, "other command"),
        ({}, 2, "stored 1, now 2"),
    ],
)
def test_another_sweep_is_refused(changes, seed, said, folder, define):
    folder.open(define(), 1)
    folder.close()
    with pytest.raises(UserError, match=said):
        SweepFolder(folder.path).open(define(**changes), seed)


@pytest.mark.parametrize("changes", [{"run_cap": 9}, {"name": "b"}, {"description": "c"}])
def test_it_may_grow_and_be_named_anew(changes, folder, define):
    folder.open(define(), 1)
    again(folder, define(**changes))


@pytest.mark.parametrize("content", ["", "3", "{}", '{"definition": 3, "seed": 1}', "[" * 100_000])
def test_a_folder_that_cannot_be_read(content, folder, define):
    folder.open(define(), 1)
    folder.close()
    folder.about.write_text(content)
    with pytest.raises(UserError, match="cannot be read") as caught:
        SweepFolder(folder.path).open(define(), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["3\n", "{}\n", '{"trial": 5, "status": "finished"}\n', "no JSON\n", "[" * 10**5 + "\n"]
)
def test_events_that_cannot_be_read(line, folder, define):
    folder.open(define(), 1)
    folder.close()
    folder.events.write_text(line)
    with pytest.raises(UserError, match="cannot be read"):
        SweepFolder(folder.path).open(define(), 1)


def test_somebody_elses_folder(folder, define):
    folder.path.mkdir()
    (folder.path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds something that is no sweep"):
        folder.open(define(), 1)
    assert [path.name for path in folder.path.iterdir()] == ["thesis.tex"]


def test_a_sweep_killed_at_its_first_file(folder, define):
    folder.path.mkdir()
    (folder.path / "lock").touch()
    (folder.path / "sweep.json.partial").write_text('{"defin')
    folder.open(define(), 1)
    assert json.loads(folder.about.read_text())["seed"] == 1
