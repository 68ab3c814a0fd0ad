import shutil
import signal

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


@pytest.fixture(autouse=True)
def _no_waiting():
    """What waits for ever, for somebody to write into a pipe say, fails."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def give_up(*_):
        pytest.fail("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 300)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


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
