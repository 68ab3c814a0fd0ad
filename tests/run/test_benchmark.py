"""`tdmpc-prune benchmark` and `python -m benchmarks.speed`: what they count, how they measure, what they show."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_processes import python

from agents.tdmpc.config import DEBUG, LAPTOP, PlannerConfig
from benchmarks import speed as bench
from benchmarks.upstream import Upstream
from tdmpc_prune import cli, speed
from tdmpc_prune.checkpoint import load_agent
from tdmpc_prune.errors import UserError
from tdmpc_prune.speed import Sizes, Work, alternate, gflop, matrix_rate, new_subject, timed

CPU = torch.device("cpu")
QUICK = ["--presets", "debug", "--seconds", "0.01", "--threads", "1"]
KEYS = {
    *("update_ms", "plan_ms", "tracker_share", "event_ms"),
    *("gflop_update", "gflop_plan", "roofline_gflops"),
}


def layers(widths):
    """Multiply-accumulates of every layer, for one row."""
    return [a * b for a, b in pairwise(widths)]


def plan_macs(architecture, config, horizon):
    """Multiply-accumulates of a control step, counted by hand: encoding, the policy's proposals, and CEM."""
    rows = {name: sum(layers(widths)) for name, widths in architecture.items()}
    planner = config.planner
    proposed = planner.num_policy_samples
    proposals = proposed * (horizon * rows["policy"] + (horizon - 1) * rows["dynamics"])
    values = sum(rows[name] for name in rows if name.startswith("q"))
    valued = horizon * (rows["dynamics"] + rows["reward"]) + rows["policy"] + values
    return rows["encoder"] + proposals + planner.iterations * (planner.num_samples + proposed) * valued


def update_macs(architecture, config):
    """The same of an update: products forwards, for the weights, and for the inputs where a gradient goes on."""
    layer = {name: layers(widths) for name, widths in architecture.items()}
    rows = {name: sum(each) for name, each in layer.items()}
    values = sum(rows[name] for name in rows if name.startswith("q"))
    batch, steps = config.batch_size, config.batch_size * config.horizon
    targets = steps * (2 * rows["encoder"] + rows["policy"] + values)
    encoder = batch * (3 * rows["encoder"] - layer["encoder"][0])
    model = steps * 3 * (rows["dynamics"] + rows["reward"] + values)
    policy = (batch + steps) * (3 * rows["policy"] - layer["policy"][0] + 2 * values)
    return targets + encoder + model + policy


@pytest.fixture
def subject():
    return new_subject(DEBUG, Sizes(), CPU)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (DEBUG, Sizes()),
        (DEBUG, Sizes(24, 6)),
        (replace(DEBUG, num_q=3, horizon=2, planner=PlannerConfig(num_samples=40)), Sizes(3, 2)),
    ],
)
def test_work_is_that_counted_by_hand(config, sizes):
    subject = new_subject(config, sizes, CPU)
    architecture = subject.agent.model.architecture()
    assert gflop(subject.plan) * 1e9 == 2 * plan_macs(architecture, config, config.horizon)
    assert gflop(subject.update) * 1e9 == 2 * update_macs(architecture, config)


def test_every_round_does_everything_once():
    done, entered = [], []

    class Within:
        def __enter__(self):
            entered.append(len(done))

        def __exit__(self, *error):
            assert len(done) == entered[-1] + 1

    names = ["a", "b", "c"]
    works = {name: Work(lambda name=name: done.append(name), Within) for name in names}
    times = alternate(works, 0.0, CPU)
    rounds = [done[i : i + 3] for i in range(0, len(done), 3)]
    assert all(sorted(turn) == names for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1
    assert len(rounds) == speed.WARM_UP + speed.FEWEST
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys(names, speed.FEWEST)
    assert entered == list(range(len(done)))


def test_it_goes_on_until_the_time_is_up(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])

    def wait(seconds):
        clock[0] += seconds

    times = alternate({"a": Work(lambda: wait(1)), "b": Work(lambda: wait(3))}, 20.0, CPU)
    assert times == {"a": [1e3] * 8, "b": [3e3] * 8}  # 40 s, 4 s a round, two of them to warm up


def test_a_call_is_timed_in_milliseconds(monkeypatch):
    now = iter([3.0, 3.25])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(now))
    assert timed(int, CPU) == 250


def test_the_rate_is_that_of_the_quickest_product():
    assert matrix_rate([[1.0, 2.0, 30.0], [4.0, 4.0]], CPU) == pytest.approx(2 * 1024**3 / 2e6)


def test_products_are_of_the_size_said(monkeypatch):
    for work in speed.products(CPU).values():
        assert gflop(work.call) in (2 * 1024**3 / 1e9, 0)  # PyTorch cannot count oneDNN's


def test_what_the_tracker_adds(monkeypatch):
    found = {"without": [10.0, 20.0, 40.0], "with": [11.0, 24.0, 42.0]}
    monkeypatch.setattr(speed, "alternate", lambda works, seconds, device: found)
    settled = []
    monkeypatch.setattr(speed, "timed", lambda call, device: settled.append(call()) or 62.0)
    monkeypatch.setattr(speed, "new_subject", updated_once)
    share = speed.tracker_share(DEBUG, Sizes(), CPU, 1.0)
    assert share == pytest.approx(0.1 + 62 / 31 / 20)
    assert len(settled) == speed.FEWEST


def updated_once(config, sizes, device):
    subject = new_subject(config, sizes, device)
    subject.update()
    return subject


def test_removals_are_those_of_the_default_schedule(monkeypatch):
    events = []
    monkeypatch.setattr(speed, "timed", lambda call, device: events.append(call()) or float(len(events)))
    config = replace(DEBUG, latent_dim=32, encoder_dim=64, hidden_dim=64)
    assert speed.event_ms(config, Sizes(), CPU) == np.median(range(1, 37))
    assert [event.number for event in events] == 3 * list(range(1, 13))
    assert [event.sparsity for event in events[11::12]] == pytest.approx([0.8] * 3, abs=0.01)


@pytest.mark.parametrize("name", bench.TRICKS)
def test_without_a_trick_the_same_is_computed(name):
    subject, other = (new_subject(LAPTOP, Sizes(), CPU) for _ in range(2))
    places = (bench.layers, bench.world_model, bench.WorldModel)
    before = [dict(vars(place)) for place in places]
    with bench.TRICKS[name]():
        assert [dict(vars(place)) for place in places] != before
        slow, _ = other.agent.update(other.batch)
    assert [dict(vars(place)) for place in places] == before
    quick, _ = subject.agent.update(subject.batch)
    for loss, value in quick.items():
        assert float(slow[loss]) == pytest.approx(float(value), rel=1e-4), loss


# The verb


@pytest.fixture
def benchmark(capsys):
    """Runs the command in this process; returns what it printed."""

    def run(*arguments):
        capsys.readouterr()
        code = cli.main(["benchmark", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_one_object_with_every_preset(benchmark, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    out = benchmark(*QUICK, "--device", device, "--obs-dim", 24, "--action-dim", 6, "--json")
    assert out.count("\n") == 1
    found = json.loads(out)
    assert set(found) == {"debug"}
    assert set(found["debug"]) == KEYS
    assert math.isfinite(found["debug"].pop("tracker_share"))  # of so few updates it may be below 0
    assert all(value > 0 for value in found["debug"].values())
    architecture = new_subject(DEBUG, Sizes(24, 6), CPU).agent.model.architecture()
    assert found["debug"]["gflop_plan"] == pytest.approx(2e-9 * plan_macs(architecture, DEBUG, 5))
    assert found["debug"]["gflop_update"] == pytest.approx(2e-9 * update_macs(architecture, DEBUG))


def test_runs_beside_presets(benchmark, undisturbed):
    runs = [undisturbed[name].path for name in ("pruned", "pendulum")]
    found = json.loads(benchmark(*runs, *QUICK[2:], "--device", "cpu", "--json", "--presets"))
    assert set(found) == {"runs"}
    assert [row["run"] for row in found["runs"]] == [str(path) for path in runs]
    for row, path in zip(found["runs"], runs, strict=True):
        stored = load_agent(path, CPU)
        agent = stored.agent
        horizon = agent.config.horizon_at(stored.agent_step)
        assert row["plan_macs"] == plan_macs(agent.model.architecture(), agent.config, horizon)
        assert (row["parameters"], row["sparsity"]) == (stored.parameters, stored.sparsity)
        assert row["plan_ms"] > 0
    assert found["runs"][0]["plan_macs"] < found["runs"][1]["plan_macs"]


def test_tables(benchmark, finished):
    out = benchmark(finished, *QUICK, "--device", "cpu").splitlines()
    assert f"PyTorch {torch.__version__}, 1 thread" in out[0]
    assert [line.split()[0] for line in out[2:5:2]] == ["preset", "debug"]
    assert out[6].startswith("run ")
    assert out[8].startswith(finished.name)


WRONG = {
    "no such preset": (["--presets", "huge"], "huge"),
    "nothing": (["--presets"], "preset"),
    "no time": (["--seconds", "0"], "seconds is 0"),
    "time nan": (["--seconds", "nan"], "seconds is nan"),
    "a day for each figure": (["--seconds", "86400"], "at most 3,600"),
    "no observation": (["--obs-dim", "0"], "obs_dim is 0"),
    "a million actions": (["--action-dim", "1000000"], "action_dim is 1000000"),
    "another device": (["--device", "tpu"], "tpu"),
    "negative threads": (["--threads=-1"], "threads is -1"),
    "a run that is none": (["no-such-run"], "no-such-run"),
    "a slip": (["--second", "1"], "--seconds"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes(case, capsys):
    arguments, said = WRONG[case]
    assert cli.main(["benchmark", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert said in err


def test_help_imports_no_torch():
    code = (
        "import sys\n"
        "from tdmpc_prune.cli import main\n"
        "try:\n"
        "    main(['benchmark', '--help'])\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "print('torch' in sys.modules)"
    )
    assert python(code).splitlines()[-1] == "False"


# The table of `make bench`

THEIRS = """
import torch
from torch import nn

class TDMPC:
    def __init__(self, cfg):
        self.device = torch.device("cuda")
        self.cfg = cfg
        self.model = nn.Linear(cfg.obs_shape[0], cfg.action_dim).cuda()
        self.steps = []

    def update(self, replay_buffer, step):
        obs, next_obs, action, reward, index, weight = replay_buffer.sample()
        h, b = self.cfg.horizon, self.cfg.batch_size
        assert obs.shape == (b, self.cfg.obs_shape[0]) and next_obs.shape == (h, *obs.shape)
        assert action.shape == (h, b, self.cfg.action_dim) and reward.shape == (h, b, 1)
        assert index.shape == weight.shape == (b,)
        replay_buffer.update_priorities(index, reward[0])
        self.steps.append(step)
        return {"loss": float(reward.mean())}

    def plan(self, obs, eval_mode=False, step=None, t0=True):
        assert eval_mode and not t0 and step > 10**8
        return self.model(torch.as_tensor(obs, device=self.device)).detach()
"""


@pytest.fixture
def checkout(tmp_path):
    """Something that looks like the public code."""
    folder = tmp_path / "theirs" / "src" / "algorithm"
    folder.mkdir(parents=True)
    (folder / "tdmpc.py").write_text(THEIRS)
    return tmp_path / "theirs"


def test_the_public_code_is_driven_where_we_compute(checkout, subject):
    theirs = Upstream(checkout, subject)
    assert theirs.agent.device == CPU
    assert theirs.update()["loss"] == pytest.approx(float(subject.batch.reward.mean()))
    theirs.update()
    assert np.diff(theirs.agent.steps) == [1]
    assert theirs.plan().shape == (1,)
    assert not list(checkout.rglob("__pycache__"))
    theirs = theirs.agent.cfg
    assert (theirs.enc_dim, theirs.mlp_dim, theirs.latent_dim) == (16, 16, 8)
    assert (theirs.std_schedule, theirs.horizon_schedule) == ("linear(0.5,0.05,100)", "linear(1,5,100)")
    assert int(theirs.mixture_coef * theirs.num_samples) == DEBUG.planner.num_policy_samples


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "src/algorithm/tdmpc.py"),
        ("import not_to_be_found", "not_to_be_found"),
        ("def TDMPC(cfg): return cfg.nothing_known", "nothing_known"),
        ("TDMPC = 1 +", "cannot be imported"),
    ],
)
def test_the_public_code_is_something_else(checkout, code, said, subject, capsys):
    file = checkout / "src" / "algorithm" / "tdmpc.py"
    file.unlink() if code is None else file.write_text(code)
    with pytest.raises(UserError, match=said) as error:
        Upstream(checkout, subject)
    assert str(checkout) in str(error.value)
    assert "\n" not in str(error.value)
    options = bench.Options(presets=("debug",), seconds=0.01, threads=1, device="cpu", upstream=checkout)
    assert bench.main(options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err


def test_the_figures_of_a_row():
    times = {("ours", "plan"): [1.0, 2.0, 3.0], ("simple", "plan"): [2.0, 4.0, 12.0]}
    row = bench._row("plan", times, needed=0.5, rate=1000.0)
    assert row == {
        "what": "plan",
        "upstream_ms": None,
        "simple_ms": 4.0,
        "ours_ms": 2.0,
        "ours_quartiles_ms": (1.0, 3.0),
        "roofline_ms": 0.5,
        "gflop": 0.5,
        "roofline_gflops": 1000.0,
        "ours_to_upstream": None,
        "ours_to_simple": 0.5,
        "share_of_roofline": 0.25,
    }


def test_the_table(checkout, capsys):
    options = bench.Options(("debug",), seconds=0.01, upstream=checkout, tricks=True)
    found = bench.measure("debug", options, CPU)
    update, plan, both = found.speed
    assert [row["what"] for row in found.speed] == ["update", "plan", "update + plan"]
    assert both["gflop"] == update["gflop"] + plan["gflop"]
    assert [row["without"] for row in found.tricks] == list(bench.TRICKS)
    assert all(row[kind] > 0 for row in found.tricks for kind in ("update", "plan", "update + plan"))
    bench.show([found], CPU)
    out = capsys.readouterr().out.splitlines()
    assert f"PyTorch {torch.__version__}, {torch.get_num_threads()} thread" in out[0]
    assert f"medians of {speed.FEWEST} rounds" in out[0]
    for column in ("upstream", "simple", "ours", "roofline", "ours / upstream", "ours / simple"):
        assert column in out[2]
    for line, row in zip(out[4:7], found.speed, strict=True):
        for name in ("upstream_ms", "simple_ms", "ours_ms", "ours_to_upstream", "ours_to_simple"):
            assert f"{row[name]:.2f}" in line
    assert all(any(name in line for line in out) for name in bench.TRICKS)


def test_its_figures_as_one_object(capsys):
    options = bench.Options(("debug",), seconds=0.01, threads=1, device="cpu", json=True)
    assert bench.main(options) == 0
    found = json.loads(capsys.readouterr().out)
    assert "1 thread" in found["machine"]
    (preset,) = found["presets"]
    for row in preset["speed"]:
        assert row["ours_ms"] > 0
        assert row["upstream_ms"] is row["ours_to_upstream"] is None
        assert row["roofline_ms"] == pytest.approx(1e3 * row["gflop"] / row["roofline_gflops"])
    assert preset["pruning"]["event_ms"] > 0
    assert preset["tricks"] == []


def test_without_the_public_code_its_columns_are_not_there():
    times = {(name, "plan"): [1.0, 2.0, 3.0] for name in ("ours", "simple")}
    row = bench._row("plan", times, needed=0.5, rate=1000.0)
    assert not [key for key in bench._shown({"preset": "debug", **row}) if "upstream" in key]
