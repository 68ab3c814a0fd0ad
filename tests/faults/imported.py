"""Imports all that a run needs, so that a forked process need not."""

import matplotlib.pyplot
import sklearn.datasets

import tdmpc_prune.train
import tests.faults.harness
from envs.gl import without_gl

with without_gl():
    import dm_control.suite

__all__ = ["dm_control", "matplotlib", "sklearn", "tdmpc_prune", "tests"]
