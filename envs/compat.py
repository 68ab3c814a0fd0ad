"""Says in one line when the installed simulators cannot work together."""

from __future__ import annotations

from importlib import metadata

# imageio: Gymnasium's MuJoCo environments import it, rendering or not.
_REQUIRED = ("gymnasium", "mujoco", "dm-control", "imageio")
_FIRST_BROKEN_MUJOCO = 4
_INSTALL = 'pip install "mujoco>=3.17,<4" dm-control "gymnasium[mujoco]"'


class SimulatorError(RuntimeError):
    """A simulator, or what it draws with, is missing or broken; one line that says what to do."""


def check_simulators() -> None:
    """Checks the installed versions by their metadata alone: nothing is imported.

    dm-control 1.0.50 sets no upper bound on mujoco, and every task of it fails with mujoco 4.0.0
    ("MjModel has no attribute 'flex_vertedge'").

    Raises:
        SimulatorError: a package is missing, or mujoco is too new for dm-control.
    """
    versions: dict[str, str] = {}
    for package in _REQUIRED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise SimulatorError(f"{package} is not installed: run `{_INSTALL}`") from None
    if int(versions["mujoco"].split(".")[0]) >= _FIRST_BROKEN_MUJOCO:
        # A downgrade in place leaves mujoco 4's companion packages behind, hence the fresh environment.
        raise SimulatorError(
            f"mujoco {versions['mujoco']} does not work with dm-control {versions['dm-control']}:"
            f" run `{_INSTALL}` in a fresh environment"
        )
