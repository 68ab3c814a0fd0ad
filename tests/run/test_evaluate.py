"""`tdmpc-prune evaluate`: the return of a stored run."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import checkpoints, rows, tree

from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import PlannerConfig, TDMPCConfig
from envs import SimulatorError, make_env
from tdmpc_prune.checkpoint import load_agent
from tdmpc_prune.cli import main
from tdmpc_prune.commands.common import short_names
from tdmpc_prune.evaluate import Evaluator
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.surgery import remove_units
from tdmpc_prune.reconstruction import evaluate_autoencoder
from tdmpc_prune.training import EVALUATION_SEED
from tdmpc_prune.video import side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def evaluate(capsys):
    """Runs the command in this process; returns its JSON object."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["evaluate", *map(str, arguments), "--json", "--threads", "1", "--device", "cpu"])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert out.count("\n") == 1
        return json.loads(out)

    return run


@pytest.fixture(scope="session")
def pendulum(undisturbed):
    return undisturbed["pendulum"].path


@pytest.fixture(scope="session")
def gentle(pendulum, tmp_path_factory):
    """A pendulum's agent that hardly moves, so that every episode falls at a step of its own."""
    folder = tmp_path_factory.mktemp("gentle") / "run"
    shutil.copytree(pendulum, folder)
    model = checkpoints(folder)[-1] / "model.safetensors"
    tensors = load_file(model)
    last = [name for name in tensors if name.startswith("online.policy.")][-2:]
    save_file({name: t * 0 if name in last else t for name, t in tensors.items()}, model)
    return folder


def steady(result):
    timed = ("plan_ms", "latency_ms", "meets_deadline")
    return {name: value for name, value in result.items() if name not in timed}


def test_fields(evaluate, pendulum):
    result = evaluate(pendulum, "--episodes", 3)
    last = rows(pendulum)[-1]
    assert result["run"] == str(pendulum)
    assert result["task"] == "InvertedPendulum-v5"
    assert result["env_step"] == last["env_step"]
    assert (result["controller"], result["episodes"], result["seed"]) == ("planner", 3, 0)
    assert (result["criterion"], result["sparsity"]) == (
        json.loads((pendulum / "config.json").read_text())["config"]["prune"]["criterion"],
        0,
    )
    assert len(result["returns"]) == len(result["lengths"]) == 3
    assert result["return"] == pytest.approx(np.mean(result["returns"]))
    assert result["return_std"] == pytest.approx(np.std(result["returns"]))
    assert result["parameters"] == json.loads((pendulum / "summary.json").read_text())["parameters"]
    assert result["control_ms"] == pytest.approx(40.0)
    assert 0 < result["plan_ms"] < 1000
    assert result["video"] is None


def test_a_table_without_json(pendulum, capsys):
    assert main(["evaluate", str(pendulum), "--episodes", "1", "--threads", "1"]) == 0
    out, _ = capsys.readouterr()
    assert "InvertedPendulum-v5" in out
    assert "in time (p99)" in out
    assert "returns" not in out
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(out)


def test_it_changes_nothing_in_the_folder(evaluate, pendulum):
    before = tree(pendulum)
    evaluate(pendulum, "--episodes", 1)
    assert tree(pendulum) == before


def test_the_last_checkpoint_repeats_the_last_evaluation_of_the_run(evaluate, undisturbed):
    for observed in undisturbed.values():
        result = evaluate(observed.path, "--episodes", 2, "--seed", EVALUATION_SEED)
        last = rows(observed.path)[-1]
        assert result["return"] == pytest.approx(last["eval/return"], rel=1e-9)
        assert result["return_std"] == pytest.approx(last["eval/return_std"], rel=1e-9)


def test_one_checkpoint_of_several(evaluate, pendulum):
    older, newest = checkpoints(pendulum)
    assert evaluate(newest, "--episodes", 2)["returns"] == evaluate(pendulum, "--episodes", 2)["returns"]
    steps = [evaluate(path, "--episodes", 1)["env_step"] for path in (older, newest)]
    assert steps[0] < steps[1] == rows(pendulum)[-1]["env_step"]


@pytest.mark.parametrize("controller", ["planner", "policy"])
def test_a_seed_gives_the_same_returns(evaluate, finished, controller):
    options = (finished, "--episodes", 2, "--controller", controller)
    first = evaluate(*options, "--seed", 4)
    torch.manual_seed(99)  # nobody's random numbers but its own
    np.random.seed(99)  # noqa: NPY002
    assert steady(evaluate(*options, "--seed", 4)) == steady(first)
    assert evaluate(*options, "--seed", 44)["returns"] != first["returns"]


def test_the_policy_is_no_planner(evaluate, finished):
    planner = evaluate(finished, "--episodes", 2)
    policy = evaluate(finished, "--episodes", 2, "--controller", "policy")
    assert planner["returns"] != policy["returns"]
    assert (planner["controller"], policy["controller"]) == ("planner", "policy")
    assert planner["lengths"] == policy["lengths"] == [25, 25]


def test_planning_starts_where_the_schedules_were(pendulum, monkeypatch):
    """The stored agent plans with the horizon and spread of its agent step, not those of a beginner."""
    stored = load_agent(pendulum, CPU)
    assert stored.agent_step == rows(pendulum)[-1]["agent_step"]
    steps = []
    real = stored.agent.plan

    def plan(obs, planner, agent_step, **named):
        steps.append(agent_step)
        return real(obs, planner, agent_step, **named)

    stored.agent.plan = plan
    evaluator = Evaluator("InvertedPendulum-v5", env_seed=1, episodes=1, seed=0, action_repeat=1)
    evaluator.run(stored.agent, stored.agent_step)
    evaluator.close()
    assert set(steps) == {stored.agent_step}


def one_at_a_time(path, episodes, seed):
    """Episodes of the policy, each in a simulator of its own."""
    stored = load_agent(path, CPU)
    returns, lengths = [], []
    for i in range(episodes):
        env = make_env(stored.task, seed=stored.seed, action_repeat=stored.action_repeat)
        obs, _ = env.reset(seed=seed + i)
        total, length, over = 0.0, 0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(stored.agent.policy_action(obs[None])[0])
            total, length, over = total + float(reward), length + 1, terminated or truncated
        env.close()
        returns.append(total)
        lengths.append(length)
    return returns, lengths


@pytest.mark.parametrize("episodes", [9, 32, 37, 65])
def test_side_by_side_is_one_at_a_time(evaluate, gentle, episodes):
    """Also where episodes end at different steps, and with more of them than simulators."""
    result = evaluate(gentle, "--episodes", episodes, "--controller", "policy", "--seed", 3)
    returns, lengths = one_at_a_time(gentle, episodes, 3)
    assert len(set(lengths)) > 1
    assert result["lengths"] == lengths
    np.testing.assert_allclose(result["returns"], returns, rtol=1e-6)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="seen with MKL alone")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("controller", ["planner", "policy"])
def test_in_parallel_and_in_a_row_are_the_same_bit_by_bit(finished, gentle, controller, threads, monkeypatch):
    """Also at sizes for which matrix libraries have kernels of their own for one row or one output."""
    sizes = TDMPCConfig(
        latent_dim=33,
        encoder_dim=128,
        hidden_dim=128,
        horizon=3,
        schedule_steps=0,
        planner=PlannerConfig(iterations=2, num_samples=64, num_elites=8),
    )
    agents = [("InvertedPendulum-v5", load_agent(gentle, CPU).agent)]
    agents += [
        ("cartpole-swingup", TDMPC(sizes, 5, 1, seed=1)),
        ("walker-stand", TDMPC(sizes, 24, 6, seed=1)),
    ]
    pruned = TDMPC(sizes, 5, 1, seed=2)
    odd = {group.name: torch.arange(group.units // 2 - 3) for group in find_groups(pruned)}
    remove_units(pruned, find_groups(pruned), odd)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for task, agent in [*agents, ("cartpole-swingup", pruned)]:
            found = []
            for side_by_side in (5, 3, 1):
                evaluator = Evaluator(
                    task, env_seed=1, episodes=5, seed=2, action_repeat=50, side_by_side=side_by_side
                )
                found.append(evaluator.run(agent, 100, controller=controller))
                evaluator.close()
            assert found[0].returns == found[1].returns == found[2].returns, task
            assert found[0].lengths == found[2].lengths
    finally:
        torch.set_num_threads(before)


def test_several_runs_against_a_reference(evaluate, finished, tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(finished, twin)
    found = evaluate(twin, "--reference", finished, "--episodes", 3, "--plans", 0, "--perturb", "mass=1.2")
    reference, other = found["runs"]
    assert (reference["run"], other["run"]) == (str(finished), str(twin))
    assert reference["returns"] == other["returns"]
    assert other["versus"]["difference"] == other["versus"]["difference_high"] == 0
    assert other["perturbed"]["mass=1.2"]["returns"] == reference["perturbed"]["mass=1.2"]["returns"]
    assert "latency_ms" not in other


def test_a_table_of_several_runs(finished, tmp_path, capsys):
    twin = tmp_path / "twin"
    shutil.copytree(finished, twin)
    arguments = ["evaluate", str(twin), "--reference", str(finished), "--episodes", "2", "--plans", "2"]
    assert main([*arguments, "--threads", "1", "--perturb", "gravity=0.9"]) == 0
    out, _ = capsys.readouterr()
    lines = out.splitlines()
    assert "against reference" in lines[2]
    assert [line.split()[0] for line in lines[4:6]] == short_names([str(finished), str(twin)])
    assert "+0.0 [+0.0, +0.0]" in lines[5]
    assert any(line.startswith("gravity=0.9") for line in lines)


def test_autoencoders_side_by_side(evaluate, tmp_path, no_plot):
    folders = []
    for seed in (1, 2):
        folders.append(tmp_path / f"a{seed}")
        arguments = ["--steps", "40", "--seed", str(seed), "--prune.criterion", "none", "--threads", "1"]
        quiet = ["--wandb.mode", "disabled", "--json", "--run-dir", str(folders[-1])]
        assert main(["train", "autoencoder", *arguments, *quiet]) == 0
    alone = [evaluate_autoencoder(folder, CPU) for folder in folders]
    assert alone[0]["error"] != alone[1]["error"]
    assert evaluate(*folders) == {"runs": alone}
    assert evaluate(folders[0]) == alone[0]


def test_episodes_of_equal_length_one_at_a_time(evaluate, finished):
    result = evaluate(finished, "--episodes", 3, "--controller", "policy", "--seed", 3)
    returns, lengths = one_at_a_time(finished, 3, 3)
    assert result["lengths"] == lengths
    np.testing.assert_allclose(result["returns"], returns, rtol=1e-3)


def test_more_episodes_begin_with_the_same_ones(evaluate, pendulum):
    few, many = (evaluate(pendulum, "--episodes", n) for n in (32, 36))
    assert len(many["returns"]) == 36
    assert many["returns"][:32] == few["returns"]


class Falls:
    """Stands in for an environment: observes its number, and ends after a number of steps of its own."""

    def __init__(self, number):
        self.number = number

    def reset(self, seed):
        self.left, self.step_number = seed % 7 + 1, 0
        self.seed = seed
        return np.array([seed, 0], np.float32), {}

    def step(self, action):
        assert float(action[0]) == self.seed  # it gets its own action, not a neighbour's
        self.step_number += 1
        over = self.step_number == self.left
        return np.array([self.seed, self.step_number], np.float32), 10.0 + self.seed, over, False, {}

    def get_wrapper_attr(self, name):
        return 0.02

    def close(self):
        pass


def test_every_simulator_gets_its_own_actions(monkeypatch):
    numbers = iter(range(99))
    monkeypatch.setattr("tdmpc_prune.evaluate.make_env", lambda *_, **__: Falls(next(numbers)))

    class Echo:
        obs_dim = 2

        model = torch.nn.Identity()

        def policy_action(self, obs):
            assert (obs[:, 1] == obs[0, 1]).all()  # all at the same step
            return obs[:, :1]

    evaluator = Evaluator("any", env_seed=1, episodes=20, seed=100, action_repeat=1, side_by_side=16)
    assert len(evaluator.envs) == 16
    calls = []
    result = evaluator.run(Echo(), 0, controller="policy", check=lambda: calls.append(1))
    assert result.lengths == [(100 + i) % 7 + 1 for i in range(20)]
    assert result.returns == [length * (110 + i) for i, length in enumerate(result.lengths)]
    assert len(calls) == max(result.lengths[:16]) + max(result.lengths[16:])
    # As many as are asked for, and others than those, with the environments there are.
    others = evaluator.run(Echo(), 0, controller="policy", episodes=22, skip=20)
    assert others.lengths == [(120 + i) % 7 + 1 for i in range(22)]
    assert others.returns == [length * (130 + i) for i, length in enumerate(others.lengths)]


@pytest.fixture
def gl():
    """Skips where no frame can be drawn, or none can be put into a file."""
    from envs.gl import enable_gl

    pytest.importorskip("imageio_ffmpeg")
    try:
        enable_gl()
    except SimulatorError as error:
        pytest.skip(str(error))


def test_video(evaluate, finished, tmp_path, gl):
    import imageio.v2 as imageio

    path = tmp_path / "videos" / "first.mp4"
    filmed = evaluate(finished, "--episodes", 2, "--video", path)
    assert filmed["video"] == str(path)
    assert filmed["returns"] == evaluate(finished, "--episodes", 2)["returns"]  # drawing changes nothing
    with imageio.get_reader(path) as reader:
        frames = [np.asarray(frame) for frame in reader]
        assert reader.get_meta_data()["fps"] == pytest.approx(2.5)  # 40 base steps of 10 ms to an action
    assert len(frames) == filmed["lengths"][0] == 25
    assert frames[0].shape == (480, 640, 3)
    assert frames[0].std() > 5
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.1  # something moves


def test_video_of_two_runs_side_by_side(evaluate, finished, pendulum, tmp_path, gl):
    import imageio.v2 as imageio

    twin = tmp_path / "twin"
    shutil.copytree(finished, twin)
    path = tmp_path / "both.mp4"
    evaluate(finished, twin, "--episodes", 1, "--plans", 0, "--controller", "policy", "--video", path)
    with imageio.get_reader(path) as reader:
        frame = np.asarray(next(iter(reader))).astype(int)
    assert frame.shape == (480 + 32, 2 * 640, 3)
    assert np.abs(frame[:, :640] - frame[:, 640:]).mean() < 2  # the same run twice


def test_a_film_that_ends_early_stands_still():
    films = [[np.full((2, 2, 3), i, np.uint8) for i in range(n)] for n in (2, 4)]
    both = side_by_side(films)
    assert [(int(f[0, 0, 0]), int(f[0, 2, 0])) for f in both] == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_video_of_an_episode_that_ends_before_the_others(evaluate, gentle, tmp_path, gl):
    import imageio.v2 as imageio

    path = tmp_path / "short.mp4"
    filmed = evaluate(gentle, "--episodes", 18, "--controller", "policy", "--seed", 3, "--video", path)
    with imageio.get_reader(path) as reader:
        assert len([frame for frame in reader]) == filmed["lengths"][0]  # noqa: C416 (list asks its length)
    assert filmed["lengths"][0] < max(filmed["lengths"])


def test_a_moved_folder_evaluates_as_before(evaluate, pendulum, folder):
    shutil.copytree(pendulum, folder)
    for name in ("config.json", "metrics.jsonl", "summary.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "plots", ignore_errors=True)
    assert evaluate(folder, "--episodes", 2)["returns"] == evaluate(pendulum, "--episodes", 2)["returns"]


def test_a_video_that_cannot_be_written(finished, tmp_path, gl, capsys):
    """Known before anything is run."""
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / "film.mp4"
    assert main(["evaluate", str(finished), "--episodes", "1", "--threads", "1", "--video", str(path)]) == 2
    assert "--video" in capsys.readouterr().err
