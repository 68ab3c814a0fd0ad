"""What an engine of many machines costs: a sweep on simulated Ray nodes, whose trials only wait.

    python -m benchmarks.sweep --nodes 1 4 16

Every node is a set of Ray processes on this machine that claims cores which it need not have, since waiting needs
none. The share of the time in which all cores are busy says how much one more machine is worth.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
import yaml

from tdmpc_prune.commands.common import show_table
from tdmpc_prune.sweep import ray_engine
from tdmpc_prune.sweep.definition import read
from tdmpc_prune.sweep.driver import Sweep
from tdmpc_prune.sweep.folder import SweepFolder
from tdmpc_prune.sweep.trial import Resources

EVALUATIONS = 10


@dataclass(frozen=True)
class Options:
    """Runs sweeps whose trials only wait, on simulated machines."""

    nodes: tuple[int, ...] = (1, 4, 16)
    """Numbers of machines."""
    cpus: int = 2
    """Cores of each."""
    rounds: int = 4
    """Trials per core."""
    seconds: float = 20
    """Length of a trial."""


class Waiting(ray_engine.TuneTrial):
    """A trial that waits, and reports as a training does."""

    def setup(self, config: dict[str, Any]) -> None:
        """Starts to wait."""
        self.told, self.began = 0, time.monotonic()
        self.seconds = config["steps"] / 1000

    def step(self) -> dict[str, Any]:
        """Waits for the next report."""
        self.told += 1
        if self.told > EVALUATIONS:
            return {"done": True, ray_engine.END: True}
        until = self.began + self.told * self.seconds / EVALUATIONS
        time.sleep(max(0.0, until - time.monotonic()))
        return {ray_engine.SHARE: self.told / EVALUATIONS, ray_engine.VALUE: 1.0}

    def cleanup(self) -> None:
        """Nothing runs."""


def measure(nodes: int, options: Options, place: Path) -> dict[str, Any]:
    """One sweep on so many machines."""
    import ray
    from ray.cluster_utils import Cluster

    trials = nodes * options.cpus * options.rounds
    command = ["${program}", "train", "cartpole-swingup", "--preset", "debug"]
    file = place / f"{nodes}.yaml"
    content = {
        "program": "tdmpc-prune",
        "command": [*command, "--steps", str(int(options.seconds * 1000)), "${args}"],
        "method": "grid",
        "parameters": {"seed": {"min": 1, "max": trials}},
    }
    file.write_text(yaml.safe_dump(content))
    definition = read(file)
    folder = SweepFolder(place / f"sweep-{nodes}")
    sweep = Sweep(definition, folder, seed=1, count=None, resources=Resources())
    sweep.say = lambda line: None  # type: ignore[method-assign]
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": options.cpus, "include_dashboard": False}
    )
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=options.cpus)
        cluster.wait_for_nodes()
        folder.open(definition, 1)
        sweep.begin()
        began = time.monotonic()
        ray_engine.run(sweep, address=cluster.address, retries=0, trainable=Waiting)
        seconds = time.monotonic() - began
    finally:
        sweep.close()
        ray.shutdown()
        cluster.shutdown()
    assert sweep.complete()
    assert not sweep.failures()
    ideal = options.rounds * options.seconds
    return {
        "nodes": nodes,
        "cores": nodes * options.cpus,
        "trials": trials,
        "seconds": round(seconds, 1),
        "if nothing cost anything": ideal,
        "busy": f"{ideal / seconds:.0%}",
    }


def main() -> None:
    """Prints a table."""
    options = tyro.cli(Options)
    with tempfile.TemporaryDirectory() as place:
        rows = [measure(nodes, options, Path(place)) for nodes in options.nodes]
    show_table(rows)


if __name__ == "__main__":
    main()
