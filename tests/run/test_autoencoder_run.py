"""`train autoencoder`: the same loop, the same pruning, and runs that can be stopped and resumed."""

import contextlib
import gzip
import itertools
import json
import math
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import MODEL, QUIET, TRAINING, assert_same_run, checkpoints, rows, tree
from small_runs import train_small as run_small

from agents.autoencoder import Autoencoder
from agents.autoencoder_config import AutoencoderConfig
from tdmpc_prune.autoencoder_training import AutoencoderTraining
from tdmpc_prune.cli import main, parse
from tdmpc_prune.errors import Interrupted, UserError
from tdmpc_prune.images import load_images
from tdmpc_prune.pruning.pruner import LOGGED_CRITERIA
from tdmpc_prune.reconstruction import Reconstruction

SMALL = [
    *("autoencoder", *QUIET, "--steps", "60", "--eval-every", "20", "--log-every", "10"),
    *("--checkpoint-every", "25", "--agent.hidden-dim", "16", "--agent.code-dim", "6"),
    *("--agent.batch-size", "8", "--prune.importance.warmup", "5", "--prune.events", "3"),
    *("--prune.sparsity", "0.5", "--prune.limits.min-units", "2"),
]
"""60 updates; units are removed after 24, 36 and 48."""
UNIFORM = [*SMALL, "--prune.allocation", "uniform"]
RUNS = {"uniform": UNIFORM, "calibrated": SMALL}


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Each run without interruption."""
    paths = {}
    for name, arguments in RUNS.items():
        paths[name] = tmp_path_factory.mktemp("autoencoder") / "run"
        run_small(arguments, paths[name])
    return paths


# What a run writes


def test_rows(whole):
    lines = rows(whole["uniform"])
    evaluations = [r for r in lines if "eval/error" in r]
    assert [r["env_step"] for r in evaluations] == [0, 20, 40, 60]
    for row in evaluations:
        assert row["eval/psnr"] == pytest.approx(-10 * math.log10(row["eval/error"]))
        assert row["update"] == row["env_step"]
    losses = [r for r in lines if "train/reconstruction_loss" in r]
    assert [r["env_step"] for r in losses] == [10, 20, 30, 40, 50, 60]
    assert losses[-1]["train/reconstruction_loss"] < losses[0]["train/reconstruction_loss"]
    for criterion, name in itertools.product(LOGGED_CRITERIA, ("encoder.0", "decoder.0", "latent")):
        assert losses[-1][f"importance/{criterion}/{name}"] >= 0
        assert losses[-1][f"importance_normalised/{criterion}/{name}"] >= 0


def test_removals(whole):
    events = [r for r in rows(whole["uniform"]) if "prune/event" in r]
    assert [r["env_step"] for r in events] == [24, 36, 48]
    for row in events:
        assert row["prune/removed_units"] > 0
        assert 0 < row["prune/error_before"] < 1
        assert 0 < row["prune/error_after"] < 1
        assert row["prune/error_before"] != row["prune/error_after"]
        assert not any("return" in key for key in row)
    assert 0.4 < events[-1]["prune/sparsity"] <= 0.5
    widths = {k: v for k, v in events[-1].items() if k.startswith("prune/width/")}
    assert set(widths) == {"prune/width/encoder.0", "prune/width/decoder.0", "prune/width/latent"}
    stored = load_file(checkpoints(whole["uniform"])[-1] / MODEL)
    assert stored["encoder.0.weight"].shape == (widths["prune/width/encoder.0"], 64)
    assert stored["decoder.0.weight"].shape[1] == widths["prune/width/latent"]
    assert events[-1]["prune/params"] == sum(t.numel() for t in stored.values())


def test_a_removal_at_the_very_end_is_followed_by_the_last_evaluation(folder):
    """What a run ends with is measured, and as the removal measures it."""
    arguments = [*UNIFORM, "--prune.start", "0.5", "--prune.end", "1", "--prune.events", "1"]
    run_small(arguments, folder)
    lines = rows(folder)
    (event,) = [r for r in lines if "prune/event" in r]
    last = [r for r in lines if "eval/error" in r][-1]
    assert event["env_step"] == last["env_step"] == 60
    assert event["prune/error_after"] == last["eval/error"] != event["prune/error_before"]
    assert last["prune/sparsity"] == event["prune/sparsity"] > 0


def test_recovery_follows_every_removal(folder):
    run_small(UNIFORM, folder, "--prune.recovery", "7")
    events = [row for row in rows(folder) if "prune/event" in row]
    assert [row["update"] - row["env_step"] for row in events] == [7, 14, 21]
    assert (rows(folder)[-1]["env_step"], rows(folder)[-1]["update"]) == (60, 81)


def test_no_errors_around_removals_where_none_are_asked_for(folder):
    run_small(UNIFORM, folder, "--prune.eval-episodes", "0")
    assert not any("error_before" in key or "error_after" in key for row in rows(folder) for key in row)


def test_rows_that_come_quickly_have_scores_now_and_then(folder, interrupt, monkeypatch, no_plot):
    monkeypatch.setattr("tdmpc_prune.run.SCORED_ROWS", 4)  # 15 updates of 60 lie between two of them
    arguments = [*UNIFORM, "--log-every", "1"]
    run_small(arguments, folder)
    lines = [r for r in rows(folder) if "train/reconstruction_loss" in r]
    assert [r["env_step"] for r in lines] == list(range(1, 61))
    scored = [r for r in lines if any(key.startswith("importance") for key in r)]
    assert [r["env_step"] for r in scored] == [1, 16, 31, 46]
    assert all("prune/sparsity" in r for r in lines)

    again = folder.with_name("again")
    for stop in (60, 1, 0):  # after the first scores, and once more before the next ones
        interrupt(stop)
        with pytest.raises(Interrupted) if stop else contextlib.nullcontext():
            run_small(arguments, again)
    assert_same_run(again, folder)


def test_calibration_measures_signal_to_noise(whole):
    events = [r for r in rows(whole["calibrated"]) if "prune/event" in r]
    assert [r["prune/calibration_measurements"] for r in events] == [10] * 3  # whole, three shares of three
    state = json.loads((checkpoints(whole["calibrated"])[-1] / "state.json").read_text())
    curves = state["pruner"]["curves"]
    assert set(curves) == {"encoder.0", "decoder.0", "latent"}
    assert all(0 < curve["full"] < 40 for curve in curves.values())  # dB, of which there are some


def test_summary(whole):
    summary = json.loads((whole["uniform"] / "summary.json").read_text())
    last = [r for r in rows(whole["uniform"]) if "eval/error" in r][-1]
    assert (summary["task"], summary["env_step"], summary["update"]) == ("autoencoder", 60, 60)
    assert summary["error"] == last["eval/error"]
    assert summary["psnr"] == pytest.approx(last["eval/psnr"])
    assert summary["parameters"] == last["prune/params"]
    assert summary["sparsity"] == last["prune/sparsity"]


def test_plots(whole):
    drawn = {path.name for path in (whole["uniform"] / "plots").iterdir()}
    assert {"learning_curve.png", "sparsity.png", "widths.png", "importance.png"} <= drawn


def test_a_dense_run(folder, no_plot):
    summary = run_small(UNIFORM, folder, "--prune.criterion", "none")
    assert summary["sparsity"] == 0
    assert summary["parameters"] == 65 * 16 + 17 * 6 + 7 * 16 + 17 * 64
    assert not any(key.startswith(("prune/", "importance")) for row in rows(folder) for key in row)


# Equal runs


def test_two_runs_of_the_same_command_are_equal(whole, folder, no_plot):
    run_small(UNIFORM, folder)
    assert_same_run(folder, whole["uniform"])
    moments = [v for k, v in load_file(checkpoints(folder)[-1] / TRAINING).items() if k.endswith("exp_avg")]
    assert len(moments) == 8
    assert all(m.abs().sum() > 0 for m in moments)


def test_another_seed_is_another_run(whole, folder, no_plot):
    run_small(UNIFORM, folder, "--seed", "2")
    errors = [[r["eval/error"] for r in rows(p) if "eval/error" in r] for p in (folder, whole["uniform"])]
    assert errors[0][0] != errors[1][0]


@pytest.mark.parametrize(("name", "every"), [("uniform", 9), ("uniform", 2), ("calibrated", 31)])
def test_stopped_again_and_again(name, every, whole, folder, interrupt, no_plot):
    for sitting in itertools.count():
        interrupt(every)
        try:
            run_small(RUNS[name], folder)
            break
        except Interrupted:
            assert sitting < 200, "no progress"
    assert sitting >= 4
    assert_same_run(folder, whole[name])


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("target", ["update", "remove", "removal_row", "evaluate", "save"])
def test_killed_across_an_event(name, target, whole, folder, monkeypatch, no_plot):
    """Killed at step 36 or later, after two checkpoints, with one removal behind it and more to come."""
    real = getattr(AutoencoderTraining, target)

    def dies(self, *arguments):
        if self.progress.env_step >= 36:
            raise Killed
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderTraining, target, dies)
        with pytest.raises(Killed):
            run_small(RUNS[name], folder)
    assert len(checkpoints(folder)) == 1
    run_small(RUNS[name], folder)
    assert_same_run(folder, whole[name])


def test_stopped_between_a_removal_and_its_row(whole, folder, monkeypatch, no_plot):
    def stops(self, check):
        raise Interrupted("SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderTraining, "removal_row", stops)
        with pytest.raises(Interrupted):
            run_small(UNIFORM, folder)
    state = json.loads((checkpoints(folder)[-1] / "state.json").read_text())
    assert state["event_row"]["prune/event"] == 1
    assert state["architecture"]["encoder"][1] < 16
    run_small(UNIFORM, folder)
    assert_same_run(folder, whole["uniform"])


# Evaluating


def test_evaluate_repeats_the_last_evaluation(whole, capsys):
    before = tree(whole["uniform"])
    assert main(["evaluate", str(whole["uniform"]), "--json", "--threads", "1", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    summary = json.loads((whole["uniform"] / "summary.json").read_text())
    assert result["error"] == pytest.approx(summary["error"], rel=1e-6)
    assert result["psnr"] == pytest.approx(summary["psnr"], rel=1e-6)
    assert result["parameters"] == summary["parameters"]
    assert (result["task"], result["data"], result["images"]) == ("autoencoder", "digits", 359)
    assert tree(whole["uniform"]) == before


def test_evaluate_films_no_autoencoder(whole, capsys, tmp_path):
    assert main(["evaluate", str(whole["uniform"]), "--video", str(tmp_path / "a.mp4")]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "--video" in err


def test_a_perfect_reconstruction_has_a_finite_ratio():
    assert Reconstruction(0.0).psnr == pytest.approx(120)
    assert Reconstruction(1.0).psnr == 0
    assert Reconstruction(0.01).psnr == pytest.approx(20)


# Images


def idx(images, magic=0x803):
    return struct.pack(">4I", magic, *images.shape) + images.tobytes()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (30, 4, 3)).astype(np.uint8)


def test_digits_split():
    images = load_images("digits")
    assert images.train.shape == (1438, 64)
    assert images.test.shape == (359, 64)
    assert float(images.train.min()) == 0
    assert float(images.train.max()) == 1
    assert images.train.dtype == torch.float32
    again = load_images("digits")
    assert torch.equal(again.train, images.train)
    assert torch.equal(again.test, images.test)
    both = torch.cat([images.train, images.test])
    assert len({tuple(row) for row in both.tolist()}) == 1797  # no image is in both


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images.idx3-ubyte"])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files(name, zipped, pixels, tmp_path):
    content = idx(pixels)
    path = tmp_path / f"{name}.gz" if zipped else tmp_path / name
    path.write_bytes(gzip.compress(content) if zipped else content)
    images = load_images(str(tmp_path))
    assert (images.train.shape, images.test.shape) == ((24, 12), (6, 12))
    found = sorted(torch.cat([images.train, images.test]).tolist())
    expected = sorted((pixels.reshape(30, 12) / np.float32(255)).tolist())
    assert np.allclose(found, expected, atol=1e-7)


def test_the_published_split_is_kept(pixels, tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(pixels))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(pixels[:4] // 2))
    images = load_images(str(tmp_path))
    assert torch.equal(images.train, torch.tensor(pixels.reshape(30, 12) / np.float32(255)))
    assert images.test.shape == (4, 12)


WRONG_FILES = {
    "labels": lambda p: idx(p, magic=0x801),
    "empty": lambda p: b"",
    "header only": lambda p: idx(p)[:16],
    "half": lambda p: idx(p)[:-5],
    "too long": lambda p: idx(p) + b"\0",
    "one image": lambda p: idx(p[:1]),
}


@pytest.mark.parametrize("damage", WRONG_FILES)
def test_wrong_files(damage, pixels, tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(WRONG_FILES[damage](pixels))
    with pytest.raises(UserError):
        load_images(str(tmp_path))


# Ids: a gzip file holds the time, and the workers of a parallel test run must agree on the names.
@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(bytes(1000))[:-8], b""], ids=["other", "truncated", "empty"]
)
def test_wrong_gzip_files(content, tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match="train-images"):
        load_images(str(tmp_path))


def test_a_folder_of_images_from_start_to_end(pixels, tmp_path, folder, capsys, no_plot):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(pixels))
    run_small(UNIFORM, folder, "--data", str(tmp_path), "--prune.sparsity", "0.3")
    assert main(["evaluate", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 6
    (tmp_path / "train-images-idx3-ubyte").unlink()
    assert main(["evaluate", str(folder)]) == 2
    assert "train-images-idx3-ubyte" in capsys.readouterr().err


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'tdmpc-prune\[autoencoder\]'"):
        load_images("digits")


# Command lines


WRONG = {
    "no steps": (["--steps", "0"], "steps is 0"),
    "no rows": (["--log-every", "0"], "log_every is 0"),
    "unknown data": (["--data", "faces"], "choose digits"),
    "a folder without images": (["--data", "."], "train-images-idx3-ubyte"),
    "no code": (["--agent.code-dim", "0"], "code_dim is 0"),
    "a controller's setting": (["--agent.latent-dim", "8"], "--agent.latent-dim"),
    "a controller's preset": (["--preset", "debug"], "--preset"),
    "more events than steps": (["--steps", "10"], "events"),
    "more than can go": (["--prune.sparsity", "0.99"], "0.97 at most"),
    "an unknown component": (["--prune.limits.component", "policy", "0"], "encoder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_command_lines(case, capfd, tmp_path):
    arguments, said = WRONG[case]
    before = tree(tmp_path)
    assert main(["train", "autoencoder", *QUIET, *arguments]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1), err
    assert said in err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [
        ["autoencoder", "--seed", "3"],
        ["--seed", "3", "autoencoder"],
        ["--seed=3", "autoencoder"],
        ["--json", "autoencoder", "seed=3"],
    ],
)
def test_the_word_may_stand_anywhere(words):
    config = parse(["train", *words])
    assert (config.task, config.seed, config.agent) == ("autoencoder", 3, AutoencoderConfig())
    assert str(config.folder) == "runs/autoencoder-s3"


def test_the_word_may_be_another_setting():
    config = parse(["train", "cartpole-swingup", "--wandb.group", "autoencoder"])
    assert (config.task, config.wandb.group) == ("cartpole-swingup", "autoencoder")


def test_what_is_stored_rebuilds_it(whole):
    checkpoint = checkpoints(whole["uniform"])[-1]
    state = json.loads((checkpoint / "state.json").read_text())
    agent = Autoencoder(AutoencoderConfig(**state["agent"]), 64, architecture=state["architecture"])
    stored = load_file(checkpoint / MODEL)
    assert {k: v.shape for k, v in stored.items()} == {
        f"{name}.{key}": value.shape
        for name, component in agent.components().items()
        for key, value in component.state_dict().items()
    }
