"""The runs and the solitude of tests/run, here, too."""

from tests.run.conftest import alone, finished, folder, no_plot, undisturbed

__all__ = ["alone", "finished", "folder", "no_plot", "undisturbed"]
