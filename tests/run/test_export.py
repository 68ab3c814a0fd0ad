"""`tdmpc-prune export`: ONNX files that act as the agent does in PyTorch, what is said of them, and refusals."""

import getpass
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import checkpoints, tree
from torch.nn import functional as F

from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import PlannerConfig, TDMPCConfig
from envs import make_env
from tdmpc_prune.checkpoint import StoredAgent
from tdmpc_prune.cli import main

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from tdmpc_prune.export import package  # noqa: E402
from tdmpc_prune.export.check import ROUNDING_FACTOR, CheckError, StageByStage, check_graph  # noqa: E402
from tdmpc_prune.export.graphs import OPSET, PlannerGraph, PolicyGraph, _spell_out_elu, to_onnx  # noqa: E402
from tdmpc_prune.export.runtime import draw, open_session  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["contract.json", "planner.onnx", "policy.onnx", "run_controller.py"]
ODD = {
    "encoder": [6, 5, 3],
    "dynamics": [5, 7, 1, 3],
    "reward": [5, 3, 9, 1],
    "policy": [3, 5, 7, 2],
    "q1": [5, 7, 3, 1],
    "q2": [5, 2, 11, 1],
    "q3": [5, 1, 5, 1],
}


def agent_of(task, obs_dim, action_dim, widths=None, heads=True, **settings):
    """A stored agent with random weights; without `heads`, rewards and values are zero, as at the beginning."""
    planner = {"iterations": 2, "num_samples": 12, "num_elites": 4, "policy_fraction": 0.25} | {
        key: settings.pop(key) for key in ("iterations", "policy_fraction") if key in settings
    }
    sizes = {"latent_dim": 6, "encoder_dim": 8, "hidden_dim": 10, "horizon": 2, "schedule_steps": 10}
    config = TDMPCConfig(**(sizes | settings), planner=PlannerConfig(**planner))
    agent = TDMPC(config, obs_dim, action_dim, seed=3, widths=widths)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for network in [agent.model.reward, *agent.model.q] if heads else []:
            network[-1].weight.normal_(generator=generator)
        for parameter in agent.model.parameters():
            if parameter.dim() == 1:  # biases and LayerNorm's, which start at 0 and 1
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator) * heads)
    return StoredAgent(
        agent=agent,
        task=task,
        seed=1,
        action_repeat=40,
        agent_step=20,
        env_step=800,
        criterion="none" if widths is None else "magnitude",
    )


def environment(stored):
    return make_env(stored.task, seed=stored.seed, action_repeat=stored.action_repeat)


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """An export of a dense agent, and one of an agent with odd widths, two actions and no policy sequences."""
    agents = {
        "dense": agent_of("cartpole-swingup", 5, 1),
        "odd": agent_of("reacher-easy", 6, 2, ODD, num_q=3, policy_fraction=0.0),
    }
    made = {}
    for name, stored in agents.items():
        out = tmp_path_factory.mktemp("exports") / "new" / name
        contract = package.export(stored, out, controllers=["planner", "policy"], seed=4)
        made[name] = (stored, out, contract)
    return made


@pytest.fixture(params=["dense", "odd"])
def exported(request, exports):
    return exports[request.param]


def graphs(stored):
    return {"planner": PlannerGraph(stored.agent, stored.agent_step), "policy": PolicyGraph(stored.agent)}


@torch.no_grad()
def in_torch(graph, inputs):
    return [out.numpy() for out in graph(*(torch.from_numpy(inputs[name]) for name in graph.INPUTS))]


@pytest.mark.parametrize("controller", ["planner", "policy"])
def test_a_whole_episode_is_that_of_pytorch(exported, controller):
    """Written without the check that the command makes."""
    stored, out, contract = exported
    graph = graphs(stored)[controller]
    session = onnxruntime.InferenceSession(out / f"{controller}.onnx")
    env, rng, total, lengths, over = environment(stored), np.random.default_rng(4), 0.0, 0, False
    obs, _ = env.reset(seed=4)
    inputs = {
        name: np.zeros(t["shape"], np.float32) for name, t in _entry(exported, controller)["inputs"].items()
    }
    while not over:
        inputs["observation"] = obs[None]
        if controller == "planner":
            inputs["noise"] = rng.standard_normal(inputs["noise"].shape, dtype=np.float32)
        outputs = session.run(None, inputs)
        for value, expected in zip(outputs, in_torch(graph, inputs), strict=True):
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-4)
        if controller == "planner":
            inputs["mean"] = outputs[1]
        obs, reward, terminated, truncated, _ = env.step(outputs[0][0])
        total, lengths, over = total + float(reward), lengths + 1, terminated or truncated
    check = contract["controllers"][controller]["check"]
    assert lengths == check["steps"] == 25
    assert check["return_onnx"] == pytest.approx(total, rel=1e-6)
    assert check["return_torch"] == pytest.approx(total, rel=1e-3, abs=1e-6)
    assert check["action_difference"] < 1e-5
    assert check["tolerance"] == 1e-4
    assert (check["mean_difference"] is None) == (controller == "policy")


def _entry(exported, controller):
    return exported[2]["controllers"][controller]


def test_the_carried_mean_is_that_of_the_planner(exported):
    """`Planner.plan`, with its own generator and its own memory of the last mean."""
    stored, out, _ = exported
    agent = stored.agent
    graph = graphs(stored)["planner"]
    planner = agent.make_planner([torch.Generator().manual_seed(8)])
    session = onnxruntime.InferenceSession(out / "planner.onnx")
    generator, mean = torch.Generator().manual_seed(8), graph.example()[1].numpy()
    observations = np.random.default_rng(1).normal(size=(6, 1, agent.obs_dim)).astype(np.float32)
    for obs in observations:
        noise = torch.randn((1, graph.noise_size), generator=generator).numpy()
        action, mean = session.run(None, {"observation": obs, "mean": mean, "noise": noise})
        np.testing.assert_allclose(action, agent.plan(obs, planner, stored.agent_step), rtol=0, atol=1e-4)
        np.testing.assert_allclose(mean[:, :-1], planner.mean.numpy()[:, 1:], rtol=0, atol=1e-4)
        assert (mean[:, -1] == 0).all()
    assert np.abs(mean).max() > 0.01


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_broken_sensor_shows_in_the_action(exported, wrong):
    """A search among values that are all NaN would end at an action like any other."""
    _, out, contract = exported
    assert "not finite, the action is NaN" in contract["how_to"]
    given = {
        name: np.full(t["shape"], 0.25, np.float32)
        for name, t in _entry(exported, "planner")["inputs"].items()
    }
    session = onnxruntime.InferenceSession(out / "planner.onnx")
    action, _ = session.run(None, given)
    assert np.isfinite(action).all()
    given["observation"][0, 1] = wrong
    action, mean = session.run(None, given)
    assert np.isnan(action).all()
    np.testing.assert_array_equal(mean, given["mean"])  # as if there had been no such step
    if not np.isnan(wrong):
        return
    policy = onnxruntime.InferenceSession(out / "policy.onnx")
    assert np.isnan(policy.run(None, {"observation": given["observation"]})[0]).all()


def test_the_policy_is_the_agents(exported):
    stored, out, _ = exported
    session = onnxruntime.InferenceSession(out / "policy.onnx")
    for obs in np.random.default_rng(1).normal(size=(5, 1, stored.agent.obs_dim)).astype(np.float32):
        (action,) = session.run(None, {"observation": obs})
        np.testing.assert_allclose(action, stored.agent.policy_action(obs), rtol=0, atol=1e-5)


def test_files(exported):
    _, out, contract = exported
    assert sorted(path.name for path in out.iterdir()) == NAMES
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # no temporary folder is left
    assert json.loads((out / "contract.json").read_text()) == contract
    assert sorted(contract["files"]) == NAMES[1:]
    for name, digest in contract["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


def test_plain_onnx_without_traces_of_this_machine(exported):
    _, out, contract = exported
    for name in ("planner.onnx", "policy.onnx"):
        model = onnx.load(out / name, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", contract["versions"]["opset"])]
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions
        assert not [t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        parts = [model, model.graph, *model.graph.node, *model.graph.initializer]
        parts += [*model.graph.input, *model.graph.output]
        assert not [part for part in parts if part.metadata_props or part.doc_string]
        content = (out / name).read_bytes()
        for trace in (str(ROOT), "site-packages", ".py", 'File "', f"/{getpass.getuser()}"):
            assert trace.encode() not in content, trace
    for trace in (str(ROOT), str(out.parent), f"/{getpass.getuser()}"):
        assert trace not in (out / "contract.json").read_text()


def test_elu_is_spelled_out():
    """As PyTorch computes it, beyond where exp overflows, too; one with another slope stays."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in "xy")
    elu = [onnx.helper.make_node("Elu", [a], [b], alpha=c) for a, b, c in (("x", "h", 1.0), ("h", "y", 2.0))]
    graph = onnx.helper.make_graph(elu, "two", [x], [y])
    _spell_out_elu(graph)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Min", "Exp", "Sub", "Max", "Elu"]
    values = torch.cat(
        [torch.linspace(-120, 120, 1001), torch.tensor([0.0, -1e-8, torch.inf, -torch.inf, torch.nan])]
    )
    [found] = open_session(model).run(None, {"x": values.numpy()})
    expected = F.elu(F.elu(values), alpha=2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7)


def test_what_is_slow_in_onnx_runtime_is_not_left(exported):
    """Elu; and products of more than matrices, around which it puts two reshapes each."""
    _, out, _ = exported
    for name in ("planner.onnx", "policy.onnx"):
        kinds = {node.op_type for node in onnx.load(out / name).graph.node}
        assert "Gemm" in kinds
        assert not kinds & {"Elu", "MatMul"}


def test_every_weight_once(exports):
    """Unrolled, the networks are used many times; the file grows by their nodes and not by their weights."""
    stored, out, _ = exports["dense"]
    weights = [t for t in onnx.load(out / "planner.onnx").graph.initializer if len(t.dims) == 2]
    inside = sum(int(np.prod(t.dims)) for t in weights)
    assert inside <= 2 * sum(p.numel() for p in stored.agent.model.parameters() if p.dim() == 2)


def test_contract(exports):
    stored, _, contract = exports["odd"]
    assert (contract["schema"], contract["task"]) == (1, "reacher-easy")
    assert contract["control_period_s"] == pytest.approx(0.02 * 40)
    assert contract["action_repeat"] == 40
    assert contract["simulator"] == {"construction_seed": 1, "episode_seed": 4}
    observation, action = contract["observation"], contract["action"]
    assert (observation["shape"], observation["dtype"]) == ([1, 6], "float32")
    found = [(entry["name"], entry["start"], entry["size"]) for entry in observation["entries"]]
    assert found == [("position", 0, 2), ("to_target", 2, 2), ("velocity", 4, 2)]
    assert (action["shape"], action["low"], action["high"]) == ([1, 2], -1, 1)
    assert [entry["name"] for entry in action["entries"]] == ["shoulder", "wrist"]
    assert [(entry["actuator_low"], entry["actuator_high"]) for entry in action["entries"]] == [(-1, 1)] * 2
    planner, policy = contract["controllers"]["planner"], contract["controllers"]["policy"]
    size = stored.agent.make_planner().noise_size(2)
    assert {name: t["shape"] for name, t in planner["inputs"].items()} == {
        "observation": [1, 6],
        "mean": [1, 2, 2],
        "noise": [1, size],
    }
    assert {name: t["shape"] for name, t in planner["outputs"].items()} == {
        "action": [1, 2],
        "next_mean": [1, 2, 2],
    }
    assert (planner["carry"], planner["noise"]["noise"]["size"]) == ({"next_mean": "mean"}, size)
    assert "standard normal" in planner["noise"]["noise"]["distribution"]
    assert (planner["planner"]["horizon"], planner["planner"]["min_std"]) == (2, 0.05)
    assert (policy["carry"], policy["noise"], list(policy["inputs"])) == ({}, {}, ["observation"])
    assert contract["network"]["widths"] == ODD
    assert contract["network"]["parameters"] == planner["parameters"] == stored.parameters
    assert contract["network"]["sparsity"] == pytest.approx(stored.sparsity)
    assert policy["parameters"] == (6 * 5 + 5 + 5 * 3 + 3) + (3 * 5 + 5 + 5 * 7 + 7 + 7 * 2 + 2)
    for entry in (planner, policy):
        ms = entry["ms_per_step"]
        assert 0 < ms["p50"] <= ms["p99"]
        assert (ms["control_period"], ms["threads"]) == (pytest.approx(800), 1)
    versions = contract["versions"]
    assert (versions["torch"], versions["onnx"]) == (torch.__version__, onnx.__version__)
    assert versions["onnxruntime"] == onnxruntime.__version__
    for word in ("mean", "zeros", "noise", "standard normal", "next_mean", "action"):
        assert word in contract["how_to"]


@pytest.mark.parametrize("controller", ["planner", "policy"])
def test_the_example_runs_without_torch(exported, controller, tmp_path):
    _, out, contract = exported
    script = out / "run_controller.py"
    assert len(script.read_text().splitlines()) <= 30
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(script), "--controller", controller],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, _, value = done.stdout.rpartition(" ")
    assert said == f"{contract['task']}, {controller}, seed 4: return"
    expected = contract["controllers"][controller]["check"]["return_onnx"]
    assert float(value) == pytest.approx(expected, abs=1e-3)


# Ties, and graphs that are wrong


@pytest.fixture(scope="session")
def tied():
    """An agent whose candidates are all worth the same, planning one step ahead, and its graph."""
    stored = agent_of("cartpole-swingup", 5, 1, heads=False, horizon=1, iterations=1)
    graph = PlannerGraph(stored.agent, stored.agent_step)
    return stored, graph, to_onnx(graph)


def test_equal_candidates(tied):
    """ONNX takes the first of them and PyTorch any: compared by their values, no step is wrong."""
    stored, graph, model = tied
    check = check_graph(graph, model, environment(stored), 2)
    assert check.steps == 25
    assert check.rounding_steps >= 10
    assert check.rounding_difference > 0.1
    assert check.action_difference < 1e-6
    assert check.mean_difference == 0  # a plan of one step leaves nothing to go on from


def test_equal_candidates_excuse_no_other_action(tied):
    _, graph, model = tied
    session = open_session(model)
    inputs = dict(zip(graph.INPUTS, [t.numpy() for t in graph.example()], strict=True))
    inputs["noise"] = draw(np.random.default_rng(3), graph.noise_size)
    outputs = session.run(None, inputs)
    reference = StageByStage(graph, model)
    assert max(reference.differences(inputs, outputs)) < 1e-6
    moved = [outputs[0] + np.float32(0.01), outputs[1]]
    assert reference.differences(inputs, moved)[0] == pytest.approx(0.01, rel=1e-3)


def test_every_step_passes_stage_by_stage(exported):
    """Also those that need no such comparison: its two halves hold wherever they are tried."""
    stored, out, _ = exported
    graph, model = graphs(stored)["planner"], onnx.load(out / "planner.onnx")
    session, reference = open_session(model), StageByStage(graph, model)
    rng = np.random.default_rng(6)
    for _ in range(30):
        inputs = {
            "observation": rng.normal(size=(1, stored.agent.obs_dim)).astype(np.float32),
            "mean": rng.uniform(-1, 1, (1, graph.horizon, stored.agent.action_dim)).astype(np.float32),
            "noise": draw(rng, graph.noise_size),
        }
        assert max(reference.differences(inputs, session.run(None, inputs))) < 1e-5


def off_by(model, share):
    """A graph whose weights are wrong by a small share."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    for tensor in wrong.graph.initializer:
        if len(tensor.dims) == 2:
            array = onnx.numpy_helper.to_array(tensor) * np.float32(1 + share)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return wrong


@pytest.mark.parametrize("controller", ["planner", "policy"])
def test_a_wrong_graph_is_found(exported, controller):
    stored, out, _ = exported
    model = off_by(onnx.load(out / f"{controller}.onnx"), 0.01)
    with pytest.raises(
        CheckError, match=rf"the exported {controller} does not act as in PyTorch: step \d+ .* differs"
    ):
        check_graph(graphs(stored)[controller], model, environment(stored), 4)


def test_wrong_values_are_no_rounding(exports):
    """The comparison by stages sees an error of the values that is far below what changes a return."""
    stored, out, _ = exports["dense"]
    graph, model = graphs(stored)["planner"], off_by(onnx.load(out / "planner.onnx"), 1e-4)
    inputs = dict(zip(graph.INPUTS, [t.numpy() for t in graph.example()], strict=True))
    inputs["noise"] = draw(np.random.default_rng(3), graph.noise_size)
    outputs = open_session(model).run(None, inputs)
    assert StageByStage(graph, model).differences(inputs, outputs) == [np.inf, np.inf]
    assert ROUNDING_FACTOR * torch.finfo(torch.float32).eps < 1e-5


# The command


@pytest.fixture(scope="session")
def pruned(undisturbed):
    """A run that has lost units; its task is one of Gymnasium's."""
    return undisturbed["pruned"].path


def command(*arguments):
    return main(["export", *map(str, arguments), "--threads", "1"])


def test_command(pruned, tmp_path, capfd):
    before = tree(pruned)
    capfd.readouterr()
    assert command(pruned, "--out", tmp_path / "a" / "b", "--seed", 7, "--json") == 0
    out, err = capfd.readouterr()
    assert err == ""  # nothing of what the exporter says
    assert out.count("\n") == 1
    result = json.loads(out)
    contract = json.loads((tmp_path / "a" / "b" / "contract.json").read_text())
    assert result["out"] == str(tmp_path / "a" / "b")
    assert (result["task"], result["seed"]) == ("InvertedPendulum-v5", 7)
    assert result["sparsity"] == contract["network"]["sparsity"] > 0
    assert [row["controller"] for row in result["controllers"]] == ["planner", "policy"]
    for row in result["controllers"]:
        check = contract["controllers"][row["controller"]]["check"]
        assert row["action_difference"] == check["action_difference"] <= 1e-4
        assert row["return_onnx"] == check["return_onnx"] == check["steps"] - 1  # it falls in the last step
        assert row["return_torch"] == pytest.approx(row["return_onnx"], abs=1)
        assert row["control_ms"] == pytest.approx(40)
    entries = contract["observation"]["entries"]
    assert [(e["name"], e["start"], e["size"]) for e in entries] == [
        (f"observation[{i}]", i, 1) for i in range(4)
    ]
    actuator = {"name": "slide", "index": 0, "actuator_low": -3.0, "actuator_high": 3.0}
    assert contract["action"]["entries"] == [actuator]
    assert tree(pruned) == before


def test_a_checkpoint_alone_and_again_into_the_same_folder(pruned, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(checkpoints(pruned)[-1], "--out", out, "--controller", "policy") == 0
    assert "return onnx" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["contract.json", "policy.onnx", "run_controller.py"]
    first = (out / "policy.onnx").read_bytes()
    (out / "policy.onnx").write_bytes(b"older")
    assert command(pruned, "--out", out, "--controller", "policy") == 0
    assert (out / "policy.onnx").read_bytes() == first


@pytest.fixture
def refused(capfd, tmp_path):
    """Runs a command that must be refused before anything is written; returns its one line."""

    def run(*arguments, code=2):
        before = tree(tmp_path)
        capfd.readouterr()
        assert command(*arguments) == code
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("tdmpc-prune: ")
        assert len(err.splitlines()) == 1
        assert tree(tmp_path) == before
        return err

    return run


def test_a_failed_check_leaves_nothing(refused, pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "to_onnx", lambda graph: off_by(to_onnx(graph), 0.01))
    err = refused(pruned, "--out", tmp_path / "out", "--controller", "policy", code=1)
    assert "the exported policy does not act as in PyTorch" in err
    assert "0.0001" in err


@pytest.mark.parametrize("module", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra(refused, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'tdmpc-prune[export]'" in refused(tmp_path / "none", "--out", tmp_path / "out")


def test_runs_that_are_none(refused, pruned, tmp_path):
    out = ("--out", tmp_path / "out")
    assert "no run folder" in refused(tmp_path / "none", *out)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    assert "no run folder" in refused(tmp_path / "notes", *out)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "state.json").write_text((checkpoints(pruned)[-1] / "state.json").read_text())
    (broken / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be loaded" in refused(broken, *out)
    state = json.loads((broken / "state.json").read_text())
    (broken / "state.json").write_text(json.dumps(state | {"task": "autoencoder"}))
    assert "autoencoder" in refused(broken, *out)


def test_folders_that_hold_something_else(refused, pruned, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "no earlier export" in refused(pruned, "--out", out)
    (out / "contract.json").write_text("{}")
    assert "no earlier export" in refused(pruned, "--out", out)
    assert "no earlier export" in refused(pruned, "--out", out / "notes.txt")
    assert "cannot write" in refused(pruned, "--out", out / "notes.txt" / "deeper")


def test_an_export_with_notes_of_somebody_is_kept(refused, exports, pruned, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for path in exports["dense"][1].iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    package.check_out(out)  # an earlier export, and nothing else
    (out / "notes.txt").write_text("mine")
    assert "no earlier export" in refused(pruned, "--out", out)


def test_a_seed_that_is_none(refused, pruned, tmp_path):
    assert "seed" in refused(pruned, "--out", tmp_path / "out", "--seed", "-1")
