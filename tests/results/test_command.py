"""`make results`: what it refuses, and what it says is missing."""

from results.__main__ import Options, main
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


def test_all_of_it_again_and_no_more_than_asked_for(capsys):
    assert main(Options(studies=("agent", "stability"), again=True, most=3, dry_run=True)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
