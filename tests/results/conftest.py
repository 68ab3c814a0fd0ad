from pathlib import Path

import pytest

from results import run, trials


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty folder to stand in, and no measurement recorded there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "MEASURED", tmp_path / "measured")
    monkeypatch.setattr(trials, "FOLDER", Path("runs", "results"))
