"""The runs and the solitude of tests/run, here, too, and what a failed run says."""

import pytest

from tdmpc_prune.cli import main
from tests.run.conftest import alone, finished, folder, no_plot, undisturbed

__all__ = ["alone", "finished", "folder", "no_plot", "undisturbed"]


@pytest.fixture
def failed(capfd, folder):
    """Runs a command that must fail with code 1; returns the line in which it says why."""

    def run(arguments):
        capfd.readouterr()
        code = main(["train", *arguments, "--run-dir", str(folder)])
        out, err = capfd.readouterr()
        assert code == 1, err
        assert out == ""
        assert "Traceback" not in err
        lines = err.splitlines()
        assert [line for line in lines if line.startswith("tdmpc-prune: ")] == lines[-1:]
        assert len(lines[-1]) < 500
        return lines[-1]

    return run
