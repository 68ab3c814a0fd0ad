"""A few hundred damaged runs; `python -m benchmarks.fuzz` makes thousands of others."""

import contextlib
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from tdmpc_prune.checkpoint import STATE, read_state, readable
from tdmpc_prune.errors import UserError
from tdmpc_prune.reading import parse_json, printable, read_rows

quick = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def test_damaged_runs_are_refused_or_harmless():
    outcome = fuzz.fuzz(150, seed=0)
    assert not outcome.crashes, outcome.crashes[0]
    assert not outcome.long_lines
    assert outcome.cases["refused"] > 75
    assert outcome.cases["loaded"] > 10
    assert outcome.megabytes < 200


def test_the_fuzzer_sees_crashes(monkeypatch):
    """Where nothing turns errors into lines, it says so."""
    monkeypatch.setattr("tdmpc_prune.checkpoint.readable", lambda checkpoint: contextlib.nullcontext())
    assert fuzz.fuzz(20, seed=0).crashes


@quick
@given(data=st.data())
def test_any_value_in_the_state(data, checkpoint):
    """It is refused as a mistake, or it is a state as good as the one before."""
    file = checkpoint / STATE
    whole = file.read_text()
    state = json.loads(whole)
    place, key = data.draw(st.sampled_from(fuzz._places(state)))
    place[key] = data.draw(JSON)
    file.write_text(json.dumps(state))
    said = None
    try:
        with readable(checkpoint):
            assert read_state(checkpoint).keys() == state.keys()
    except UserError as error:
        said = str(error)
    finally:
        file.write_text(whole)
    assert said is None or (said.isprintable() and len(said) < 600)


@quick
@given(text=st.binary(max_size=200))
def test_any_bytes_as_json(text):
    with contextlib.suppress(ValueError):
        parse_json(text, "it")


@quick
@given(text=st.binary(max_size=200))
def test_any_bytes_as_metrics(text, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text)
    with contextlib.suppress(ValueError):
        assert all(type(row["env_step"]) is int for row in read_rows(path))


@quick
@given(text=st.text())
def test_printable_text_is_left_alone_and_no_other_is(text):
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()
    assert printable(shown) == shown


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_the_same_seed_does_the_same_damage(name, trained, checkpoint):
    source = (checkpoint if name in (fuzz.STATE, fuzz.MODEL, fuzz.TRAINING) else trained) / name
    whole = source.read_bytes()
    for damage in fuzz.KINDS[name]:
        results = [damage(whole, random.Random("1/1")) for _ in range(2)]
        assert results[0] == results[1]
