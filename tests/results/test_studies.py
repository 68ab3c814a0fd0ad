"""The studies: every trial is one that `train` takes, and is called what it is."""

import itertools

import pytest

from results.run import missing
from results.store import Store
from results.studies import CRITERIA, SMALL, STUDIES, dense, pruned, small
from results.trials import Trial, name_of, trial
from tdmpc_prune.run_folder import to_json


def test_same_name_however_it_is_said():
    one = trial("cartpole-swingup", "--seed", 3, "--prune.sparsity", 0.9)
    other = trial("cartpole-swingup", "prune.sparsity=0.9", "--seed=3", "--prune.criterion=taylor")
    assert one.name == other.name == "cartpole-swingup taylor uniform 0.9 seed=3"
    assert one.folder.path == other.folder.path


def test_what_decides_nothing_is_not_in_the_name():
    plain = trial("cartpole-swingup", *("--prune.criterion", "none"))
    more = ("--threads", 1, "--keep-every", 5000, "--device", "cpu", "--prune.sparsity", 0.5)
    assert trial("cartpole-swingup", "--prune.criterion", "none", *more).name == plain.name
    assert plain.name == "cartpole-swingup dense seed=1"


def test_walkers_that_explore_as_long_as_now_are_called_so():
    """Names were given when all laptop agents explored for 3,000 steps."""
    assert trial("walker-walk").name == "walker-walk taylor uniform 0.8 agent.schedule_steps=12000 seed=1"
    early = trial("walker-walk", "--agent.schedule-steps", 3_000)
    assert early.name == "walker-walk taylor uniform 0.8 seed=1"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (("--steps", 20_000), "steps=20000"),
        (("--agent.hidden-dim", 64), "agent.hidden_dim=64"),
        (("--prune.schedule", "one-shot"), "prune.schedule=one-shot"),
        (("--eval-every", 2_000), "eval_every=2000"),
        (("--preset", "paper"), "paper"),
    ],
)
def test_what_decides_is(setting, said):
    assert said in trial("cartpole-swingup", *setting).name.split()


def test_settings_that_an_older_version_did_not_know_had_their_default():
    config = to_json(trial("cartpole-swingup", "--seed", 2).config)
    del config["envs"], config["prune"]["events"]
    assert name_of(config) == "cartpole-swingup taylor uniform 0.8 seed=2"
    del config["prune"]["ridge"]  # but not that one
    assert name_of(config) == "cartpole-swingup taylor uniform 0.8 prune.ridge=0.001 seed=2"
    del config["prune"]["compensation"]  # and not that one: they only cut
    assert name_of(config) == "cartpole-swingup taylor uniform 0.8 prune.compensation=none seed=2"


def test_what_decides_nothing_under_other_settings_makes_no_other_trial():
    words = ("cartpole-swingup", "--prune.compensation", "none")
    assert trial(*words, "--prune.ridge", 1).name == trial(*words).name
    guard = ("--prune.importance.guard", 0.5)
    assert trial(*words, *guard).name == trial(*words).name  # taylor has none
    words = ("cartpole-swingup", "--prune.criterion", "bayesian")
    assert trial(*words, *guard).name != trial(*words).name


def test_bayesian_runs_of_before_the_guard_could_relax_have_their_name():
    config = to_json(trial("cartpole-swingup", "--prune.criterion", "bayesian", "--seed", 2).config)
    del config["prune"]["importance"]["guard_end"]
    said = "cartpole-swingup bayesian uniform 0.8 prune.importance.guard_end=0.95 seed=2"
    assert name_of(config) == said


@pytest.mark.parametrize("study", STUDIES)
def test_every_trial_is_accepted_and_has_a_folder_of_its_own(study):
    work = list(STUDIES[study].work())
    trials = [one for one in work if isinstance(one, Trial)]
    folders = {one.folder.path: (one.name, one.config.keep_every) for one in trials}
    assert len(folders) == len({(one.name, one.config.keep_every) for one in trials})
    assert work


@pytest.mark.parametrize(
    ("task", "sparsities", "compensation", "seeds"),
    [
        ("cartpole-swingup", {0.8, 0.9, 0.95, 0.98}, "linear", [1, 2, 3, 4, 5]),
        ("cartpole-swingup", {0.95, 0.98}, "none", [1, 2, 3, 4, 5]),
        ("walker-walk", {0.8, 0.9, 0.95}, "linear", [1, 2, 3]),
    ],
)
def test_all_criteria_at_each_seed_and_the_seeds_in_order(task, sparsities, compensation, seeds):
    found = {}
    for one in STUDIES["criteria"].work():
        prune = one.config.prune
        if (one.config.task, prune.compensation) == (task, compensation) and prune.enabled:
            found.setdefault((prune.sparsity, prune.criterion), []).append(one.config.seed)
    assert found.keys() == set(itertools.product(sparsities, CRITERIA))
    assert all(made == seeds for made in found.values())


def parameters(observation: int, action: int, latent: int, hidden: int) -> int:
    """Weights and biases of TDMPC.md's networks: of two layers the encoder, of three the others, a norm in Qs."""

    def layers(*sizes):
        return sum((a + 1) * b for a, b in itertools.pairwise(sizes))

    joint = latent + action
    return (
        layers(observation, hidden, latent)
        + layers(joint, hidden, hidden, latent)
        + layers(joint, hidden, hidden, 1)
        + layers(latent, hidden, hidden, action)
        + 2 * (layers(joint, hidden, hidden, 1) + 2 * hidden)
    )


@pytest.mark.parametrize(("task", "sizes"), [("cartpole-swingup", (5, 1)), ("walker-walk", (24, 6))])
def test_small_agents_are_as_small_as_pruned_ones(task, sizes):
    full = parameters(*sizes, 32, 128)
    assert task != "cartpole-swingup" or full == 114_244  # what the README says
    for sparsity, (latent, hidden) in SMALL[task].items():
        left = (1 - sparsity) * full
        assert parameters(*sizes, latent, hidden) == pytest.approx(left, rel=0.05 if latent == 4 else 0.02)
        config = small(task, sparsity, 1).config
        assert (config.agent.latent_dim, config.agent.encoder_dim, config.agent.hidden_dim) == (
            latent,
            hidden,
            hidden,
        )


def test_missing_is_what_is_not_recorded(tmp_path):
    one, other = dense("cartpole-swingup", 1), pruned("cartpole-swingup", 1, 0.9)
    store = Store(tmp_path)
    assert missing([one, other, one], store) == [one, other]
    store.entries[one.name] = {"config": {"task": "cartpole-swingup"}}
    assert missing([one, other, one], store) == [other]
    assert missing([one, other], None) == [one, other]


def test_a_run_that_must_keep_its_scores_is_missing_without_them(tmp_path):
    plain = trial("cartpole-swingup")
    watched = trial("cartpole-swingup", scores=True)
    store = Store(tmp_path)
    store.entries[plain.name] = {"config": {"task": "cartpole-swingup"}}
    assert missing([plain], store) == []
    assert missing([plain, watched, plain], store) == [watched]
