"""What is imported, and when: the time itself is a matter of the machine, see `python -m benchmarks.startup`."""

import pytest
from small_runs import CARTPOLE
from test_processes import python

HEAVY = {
    *("torch", "tensordict", "torch_pruning", "safetensors", "numpy", "scipy", "sklearn", "pydantic"),
    *("gymnasium", "mujoco", "dm_control", "imageio", "matplotlib", "jinja2", "yaml", "tabulate", "tqdm"),
    *("wandb", "ray", "optuna", "onnx", "onnxscript", "onnxruntime", "IPython", "rich"),
}
"""All that the command needs, tyro excepted."""

MAIN = """
import sys
from tdmpc_prune.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code or 0
print()
print(code, *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], "0"),
        (["train", "--help"], "0"),
        (["train", "autoencoder", "--help"], "0"),
        (["sweep", "--help"], "0"),
        (["export", "--help"], "0"),
        (["train", "cartpole-swingupp"], "2"),
        (["evaluate", "--episodes", "many", "runs/x"], "2"),
    ],
)
def test_help_and_slips_import_nothing_but_tyro(words, code):
    returned, *loaded = python(MAIN, *words).splitlines()[-1].split()
    assert returned == code
    assert "tyro" in loaded
    assert not HEAVY & set(loaded)


FIRST_STEP = """
import sys
from tdmpc_prune.cli import main
from tdmpc_prune.collect import Collector

def first(self, *arguments):
    print()
    print(*sorted({name.partition(".")[0] for name in sys.modules}))
    sys.exit()

Collector.step = first
main(sys.argv[1:])
"""


def test_a_training_imports_only_what_it_needs_before_its_first_step(folder):
    loaded = set(python(FIRST_STEP, "train", *CARTPOLE, "--run-dir", str(folder)).splitlines()[-1].split())
    assert {"torch", "dm_control"} <= loaded
    later = {"matplotlib", "sklearn", "jinja2", "imageio_ffmpeg", "OpenGL", "glfw"}
    others = {"wandb", "ray", "optuna", "onnx", "onnxscript", "onnxruntime", "IPython", "pandas"}
    assert not (later | others) & loaded
