"""`make results`: what it refuses, and what it says is missing."""

from results.__main__ import Options, main
from results.revisions import Revision
from results.run import missing
from results.studies import STUDIES


def test_an_unknown_study_is_refused_in_a_line(capsys):
    assert main(Options(studies=("criterion",))) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "'criterion' is no study" in said
    assert "criteria" in said


def test_a_dry_run_lists_what_is_not_recorded(capsys):
    assert main(Options(studies=("agent",), dry_run=True)) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    everything = missing(list(STUDIES["agent"].work()), None)
    assert last == f"{len(lines)} of {len(everything)} are to be made"
    assert 0 < len(lines) < len(everything)
    assert all(line.startswith("train   ") for line in lines)


def test_a_dry_run_says_why_what_is_recorded_is_made_again(capsys, monkeypatch):
    change = Revision("1" * 12, "units were counted", lambda own: own["seed"] == 1)
    monkeypatch.setattr("results.store.overtaken", lambda config, _: change if config["seed"] == 1 else None)
    assert main(Options(studies=("walker",), dry_run=True)) == 0
    lines = capsys.readouterr().out.splitlines()
    reason = " (recorded before units were counted)"
    assert f"train   walker-walk dense seed=1{reason}" not in lines  # nobody asked for it
    said = [line for line in lines if line.endswith(reason)]
    assert said
    assert all("seed=1 (" in line for line in said)
    assert not any("taylor" in line and "seed=2" in line for line in lines)


def test_all_of_it_again_and_no_more_than_asked_for(capsys):
    assert main(Options(studies=("agent", "stability"), again=True, most=3, dry_run=True)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
