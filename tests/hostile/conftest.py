import shutil

import pytest

from benchmarks.fuzz import make_run
from tdmpc_prune.checkpoint import find


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A tiny run, trained and pruned."""
    path = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdmpc_prune.train.plot_run", lambda folder: None)
        make_run(path)
    return path


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, to be changed; unfinished, so that it is resumed."""
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    (path / "summary.json").unlink()
    return path


@pytest.fixture
def checkpoint(run):
    """Its newest checkpoint."""
    return find(run)
