from importlib import metadata

import pytest

from envs import SimulatorError, check_simulators, make_env

GOOD = {"gymnasium": "1.4.0", "mujoco": "3.17.0", "dm-control": "1.0.50", "imageio": "2.37.0"}


@pytest.fixture
def installed(monkeypatch):
    versions = dict(GOOD)

    def version(package):
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(metadata, "version", version)
    return versions


def test_what_is_installed_here_works():
    check_simulators()


def test_good_versions(installed):
    check_simulators()


@pytest.mark.parametrize("version", ["4.0.0", "4.1.0rc1", "10.2"])
def test_mujoco_too_new(installed, version):
    installed["mujoco"] = version
    for call in (check_simulators, lambda: make_env("cartpole-swingup")):
        with pytest.raises(SimulatorError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith(f"mujoco {version} does not work with dm-control 1.0.50")
        assert 'pip install "mujoco>=3.17,<4"' in message
        assert "fresh environment" in message
        assert "\n" not in message


@pytest.mark.parametrize("package", list(GOOD))
def test_package_missing(installed, package):
    del installed[package]
    with pytest.raises(
        SimulatorError, match=rf'^{package} is not installed: run `pip install "mujoco>=3.17,<4"'
    ):
        check_simulators()


def test_the_check_imports_no_simulator(python):
    code = """
import sys, envs
envs.check_simulators()
print("mujoco" in sys.modules, "dm_control" in sys.modules)
"""
    assert python(code).split() == ["False", "False"]
