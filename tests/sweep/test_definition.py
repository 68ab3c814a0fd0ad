"""Sweep files that are wrong, or ask for what is not honoured, are refused by name; the others are understood."""

import contextlib

import pytest
from sweep_files import written

from tdmpc_prune.cli import main
from tdmpc_prune.errors import UserError
from tdmpc_prune.sweep.definition import read
from tdmpc_prune.sweep.driver import Sweep
from tdmpc_prune.sweep.folder import SweepFolder
from tdmpc_prune.sweep.trial import Resources, plan

HYPERBAND = {"type": "hyperband", "min_iter": 3}

WRONG = {
    "misspelt key": ({"metod": "grid"}, "did you mean method"),
    "no method": ({"method": None}, "method is None; choose grid, random, bayes"),
    "W&B's custom method": ({"method": "custom"}, "choose grid, random, bayes"),
    "no parameters": ({"parameters": None}, "choose at least one parameter"),
    "empty parameters": ({"parameters": {}}, "choose at least one parameter"),
    "parameters are a list": ({"parameters": [1]}, "choose at least one parameter"),
    "a parameter is a number": ({"parameters": {"seed": 3}}, "choose value: or values: below it"),
    "a parameter's name": ({"parameters": {"a b": {"value": 1}}}, "'a b' is no parameter's name"),
    "a wrong distribution": ({"parameters": {"seed": {"valeus": [1]}}}, "parameters.seed: it needs value"),
    "a wrong nested one": (
        {"parameters": {"prune": {"parameters": {"sparsity": {"min": 1}}}}},
        "parameters.prune.sparsity: uniform needs max",
    ),
    "nested and more": (
        {"parameters": {"prune": {"parameters": {"a": {"value": 1}}, "value": 3}}},
        "'value' is unknown in parameters.prune",
    ),
    "one twice": (
        {"parameters": {"a.b": {"value": 1}, "a": {"parameters": {"b": {"value": 2}}}}},
        "a.b twice, nested and dotted",
    ),
    "a grid of real numbers": ({"parameters": {"a": {"min": 0.0, "max": 1.0}}}, "a grid needs values"),
    "bayes without a metric": ({"method": "bayes", "metric": None}, "method bayes needs a metric"),
    "early end without a metric": (
        {"metric": None, "early_terminate": HYPERBAND},
        "early_terminate needs a metric",
    ),
    "early end by another metric": (
        {"metric": {"name": "prune/params"}, "early_terminate": HYPERBAND},
        "early_terminate counts evaluations, and prune/params has values in between",
    ),
    "a metric that nobody measures": ({"metric": {"name": "eval_return"}}, "did you mean eval/return"),
    "a goal": ({"metric": {"name": "eval/return", "goal": "max"}}, "choose maximize, minimize"),
    "a target": ({"metric": {"name": "eval/return", "target": 3}}, "target of metric is not honoured"),
    "imputation": (
        {"metric": {"name": "eval/return", "impute": "worst"}},
        "impute of metric is not honoured",
    ),
    "another early end": ({"early_terminate": {"type": "envelope"}}, "choose hyperband"),
    "hyperband without its start": ({"early_terminate": {"type": "hyperband"}}, "min_iter is None"),
    "hyperband with both": (
        {"early_terminate": HYPERBAND | {"max_iter": 9, "s": 2}},
        "min_iter and max_iter; choose one",
    ),
    "hyperband without s": (
        {"early_terminate": {"type": "hyperband", "max_iter": 9}},
        "early_terminate.s is None",
    ),
    "eta 1": ({"early_terminate": HYPERBAND | {"eta": 1}}, "eta is 1; choose more than 1"),
    "not strict": (
        {"early_terminate": HYPERBAND | {"strict": False}},
        "strict is false, which is not honoured",
    ),
    "misspelt in hyperband": ({"early_terminate": HYPERBAND | {"min_itr": 1}}, "did you mean min_iter"),
    "W&B Launch": (
        {"job": "a/b/c:latest"},
        "job of a sweep file is not honoured here (it is for W&B Launch)",
    ),
    "a controller": ({"controller": {"type": "local"}}, "controller of a sweep file is not honoured"),
    "several metrics": ({"metrics": []}, "metrics of a sweep file is not honoured"),
    "a scheduler": ({"scheduler": {"engine": "ax"}}, "scheduler of a sweep file is not honoured"),
    "run_cap 0": ({"run_cap": 0}, "run_cap is 0; choose a whole number, at least 1"),
    "run_cap true": ({"run_cap": True}, "run_cap is True"),
    "a command in one piece": ({"command": "train it"}, "choose a list of words"),
    "a name that is none": ({"name": 3}, "name is 3; choose a word"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(case, tmp_path):
    changes, said = WRONG[case]
    file = written(tmp_path / "sweep.yaml", **changes)
    with pytest.raises(UserError) as caught:
        read(file)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "3", "[1, 2]", "a: [", "\0", "&a [*a]", "!!python/object:os.system {}"]
)
def test_what_is_no_sweep_at_all(content, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match="sweep") as caught:
        read(file)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no text"):
        read(tmp_path / "binary.yaml")


UNTRAINABLE = {
    "no command": ({"command": None}, "command is missing"),
    "another program": (
        {"program": "train.py"},
        "runs train.py, not tdmpc-prune; choose program: tdmpc-prune",
    ),
    "no program": ({"program": None}, "its command runs nothing, not tdmpc-prune; choose program"),
    "another verb": ({"command": ["${program}", "evaluate", "${args}"]}, "lacks the verb train"),
    "a macro of W&B's that is none": ({"command": ["${program}", "train", "${agrs}"]}, "has ${agrs}"),
    "misspelt setting": ({"parameters": {"prune.sparsty": {"value": 0.8}}}, "--prune.sparsity"),
    "misspelt nested setting": (
        {"parameters": {"prune": {"parameters": {"sparsty": {"value": 0.8}}}}},
        "--prune.sparsity",
    ),
    "misspelt value": ({"parameters": {"prune.criterion": {"values": ["tailor"]}}}, "tailor"),
    "out of range": ({"parameters": {"prune.sparsity": {"values": [1.5]}}}, "sparsity is 1.5"),
    "unknown task": ({"command": ["${program}", "train", "cartpole-swingupp", "${args}"]}, "did you mean"),
    "a run folder": ({"parameters": {"run_dir": {"value": "runs/a"}}}, "run_dir is set"),
    "a dry run": ({"parameters": {"dry_run": {"value": True}}}, "dry_run is set"),
    "more threads than cores": ({"parameters": {"threads": {"value": 8}}}, "choose --cpus-per-trial 8"),
    "a GPU that trials lack": ({"parameters": {"device": {"value": "cuda"}}}, "choose --gpus-per-trial 1"),
    "help": ({"command": ["${program}", "train", "--help", "${args}"]}, "take --help out"),
}


@pytest.mark.parametrize("case", UNTRAINABLE)
def test_trials_that_cannot_be_trained(case, define, capsys):
    changes, said = UNTRAINABLE[case]
    definition = define(**changes)
    values = {name: parameter.quantile(0.0) for name, parameter in definition.parameters.items()}
    with pytest.raises(UserError) as caught:
        plan(definition, values, Resources())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


UNREACHABLE = {
    "a sparsity that no limit allows": (
        {"prune.sparsity": {"values": [0.5, 0.9999]}},
        "sparsity 0.9999 cannot be reached",
    ),
    "a misspelt component": (
        {"prune.limits.component.encodr": {"values": [0.5]}},
        "there is no component encodr",
    ),
    "one of many agents": (
        {"agent.hidden_dim": {"values": [64, 8]}, "prune.sparsity": {"value": 0.9}},
        "sparsity 0.9 cannot be reached",
    ),
}


@pytest.mark.parametrize("case", UNREACHABLE)
def test_agents_that_cannot_be_pruned_as_far(case, tmp_path, capfd):
    """Known before the first trial: nothing is left behind."""
    parameters, said = UNREACHABLE[case]
    file, folder = written(tmp_path / "sweep.yaml", parameters=parameters), tmp_path / "sweep"
    for more in ((), ("--dry-run",)):
        assert main(["sweep", str(file), "--engine", "ray", "--sweep-dir", str(folder), *more]) == 2
        out, err = capfd.readouterr()
        assert said in err
        assert (out, err.count("\n")) == ("", 1)
        assert not folder.exists()


def test_a_sweep_that_has_begun_goes_on(tmp_path, capfd):
    """Also one of a version that asked later."""
    parameters, folder = UNREACHABLE["a misspelt component"][0], SweepFolder(tmp_path / "sweep")
    definition = read(written(tmp_path / "sweep.yaml", parameters=parameters))
    with pytest.raises(UserError, match="encodr"):
        Sweep(definition, folder, seed=1, count=None, resources=Resources())
    with contextlib.closing(folder):
        folder.open(definition, 1)
        assert Sweep(definition, folder, seed=1, count=None, resources=Resources()).total == 1


def test_a_search_may_come_upon_some_that_cannot_be_pruned(tmp_path, capfd):
    parameters = {"prune.sparsity": {"min": 0.5, "max": 0.95}}
    file = written(tmp_path / "sweep.yaml", method="random", run_cap=30, parameters=parameters)
    assert main(["sweep", str(file), "--engine", "ray", "--dry-run"]) == 0


def test_a_trial_that_is_dense_may_have_any_sparsity(tmp_path, capfd):
    parameters = {"prune.criterion": {"value": "none"}, "prune.sparsity": {"value": 0.9999}}
    file = written(tmp_path / "sweep.yaml", parameters=parameters)
    assert main(["sweep", str(file), "--engine", "ray", "--dry-run"]) == 0


def test_all_that_is_understood(define):
    definition = define(
        method="bayes",
        name="a name",
        run_cap=7,
        early_terminate={"type": "hyperband", "max_iter": 27, "s": 2, "eta": 3, "strict": True},
        parameters={
            "seed": {"values": [1, 2]},
            "prune": {
                "parameters": {"limits": {"parameters": {"coupling": {"value": 0}}}, "end": {"value": 0.5}}
            },
        },
    )
    assert definition.name == "a name"
    assert definition.run_cap == 7
    assert definition.metric.sign == 1
    assert (definition.hyperband.first, definition.hyperband.eta) == (3, 3)
    assert list(definition.parameters) == ["prune.end", "prune.limits.coupling", "seed"]
    assert definition.varied == ["seed"]
    tree = definition.arguments({"prune.end": 0.5, "prune.limits.coupling": 0, "seed": 2})
    assert tree == {"prune": {"end": 0.5, "limits": {"coupling": 0}}, "seed": 2}


def test_a_file_without_a_name_has_its_own(define):
    assert define().name == "sweep"
