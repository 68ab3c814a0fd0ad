"""`train --dry-run`: what would be pruned, without a run."""

import json

import pytest

from agents.tdmpc.config import LAPTOP
from tdmpc_prune.cli import main, parse


@pytest.fixture
def planned(capsys, tmp_path):
    """Runs the command; returns its JSON object."""

    def run(*arguments):
        code = main(["train", *arguments, "--dry-run", "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert out.count("\n") == 1
        assert not list((tmp_path / "place").iterdir())  # where the process stands
        return json.loads(out)

    return run


def test_the_twelve_groups_of_td_mpc(planned):
    plan = planned("cartpole-swingup")
    groups = {g["name"]: g for g in plan["groups"]}
    assert len(groups) == 12
    assert [name for name, g in groups.items() if g["kind"] == "coupling"] == ["latent"]
    latent = groups["latent"]
    assert len(latent["members"]) == 7
    assert latent["units"] == LAPTOP.latent_dim
    # Rows with biases in encoder and dynamics, columns in dynamics, reward, policy, q1 and q2.
    assert latent["unit_parameters"] == 2 * (128 + 1) + 5 * 128
    assert groups["encoder.0"]["unit_parameters"] == 5 + 1 + LAPTOP.latent_dim
    assert groups["encoder.0"]["parameters"] == 128 * (5 + 1 + LAPTOP.latent_dim)
    assert plan["parameters"] == sum(plan["components"].values()) == 114_244
    # Only weights that multiply: without biases (642 + 1) and norms.
    assert plan["macs"] == 5 * 128 + 128 * 32 + 5 * (33 * 128 + 128 * 128) - 128 + 128 * (32 + 1 + 1 + 1 + 1)
    assert plan["event_steps"] == [10_000 + 2_000 * i for i in range(12)]
    assert plan["sparsity"] == 0.8
    assert plan["reachable_reason"] == "12 groups at min_units 4"
    assert 0.99 < plan["reachable_sparsity"] < 1


def test_every_q_function_brings_two_groups(planned):
    plan = planned("cartpole-swingup", "--agent.num-q", "5")
    assert len(plan["groups"]) == 18
    latent = plan["groups"][-1]
    assert (latent["kind"], len(latent["members"])) == ("coupling", 10)


def test_the_autoencoder(planned):
    plan = planned("autoencoder", "--steps", "1000", "--prune.events", "2")
    assert [(g["name"], g["kind"], g["units"]) for g in plan["groups"]] == [
        ("encoder.0", "component", 128),
        ("decoder.0", "component", 128),
        ("latent", "coupling", 16),
    ]
    assert plan["groups"][-1]["members"] == ["encoder.2 out", "decoder.0 in"]
    assert plan["components"] == {"encoder": 65 * 128 + 129 * 16, "decoder": 17 * 128 + 129 * 64}
    assert plan["macs"] == 2 * (64 * 128 + 128 * 16)
    assert plan["event_steps"] == [500, 800]


def test_limits_show_in_the_reason(planned):
    plan = planned("autoencoder", "--prune.limits.coupling", "0", "--prune.sparsity", "0.5")
    assert plan["reachable_reason"] == "encoder.0, decoder.0 at min_units 4; latent protected (coupling 0)"


def test_nothing_to_prune(planned):
    plan = planned("cartpole-swingup", "--preset", "debug", "--prune.criterion", "none")
    assert (plan["sparsity"], plan["event_steps"]) == (None, [])
    assert len(plan["groups"]) == 12


def test_as_a_table(capsys, tmp_path):
    assert main(["train", "cartpole-swingup", "--dry-run", "--run-dir", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["group", "kind", "members", "units", "per", "unit", "parameters"]
    assert lines[12].split() == ["latent", "coupling", "7", "32", "898", "28,736"]
    assert "12 groups, 114,244 parameters" in out
    assert "sparsity reachable: 99.7% (12 groups at min_units 4)" in out
    assert "sparsity 80.0% after 12 removals in 40,000 steps, at 10,000, " in out
    assert err == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["cartpole-swingup", "autoencoder"])
def test_a_target_out_of_reach(task, capsys):
    assert main(["train", task, "--dry-run", "--prune.limits.min-units", "64"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "cannot be reached" in err
    assert "min_units 64" in err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--agent.horizon", "200"], "agent.horizon is 200, but an episode"),
        (["--agent.replay.capacity", "100"], "agent.replay.capacity is 100, but cartpole-swingup brings"),
    ],
)
def test_what_the_run_would_refuse_is_refused(words, reason, capsys):
    assert main(["train", "cartpole-swingup", "--preset", "debug", *words, "--dry-run"]) == 2
    assert reason in capsys.readouterr().err


def test_a_finished_run_does_not_stand_in_its_way(finished, planned):
    before = sorted(finished.rglob("*"))
    planned("cartpole-swingup", "--run-dir", str(finished))
    assert sorted(finished.rglob("*")) == before


def test_off_unless_asked_for():
    assert not parse(["train", "cartpole-swingup"]).dry_run
    assert not parse(["train", "autoencoder", "--no-dry-run"]).dry_run
    assert parse(["train", "cartpole-swingup", "dry_run=True"]).dry_run


def test_removals_begin_when_something_is_learned(planned):
    """The first 8,000 steps (1,000 times 8) are random; a fifth of 20,000 is less."""
    plan = planned("cartpole-swingup", "--steps", "20000", "--prune.events", "4")
    assert plan["event_steps"] == [10_000, 12_000, 14_000, 16_000]
    plan = planned("cartpole-swingup", "--steps", "20000", "--prune.schedule", "one-shot")
    assert plan["event_steps"] == [8_000]


def test_no_time_for_removals(capsys):
    assert main(["train", "cartpole-swingup", "--steps", "9000", "--dry-run"]) == 2
    assert (
        "removals end at step 7200 (end 0.8 of 9000), but nothing is learned before 8000"
        in capsys.readouterr().err
    )
