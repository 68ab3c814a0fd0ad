"""`tdmpc-prune train`: trains a controller and prunes it, or shows what could be pruned."""

from __future__ import annotations

from tdmpc_prune.commands.common import print_json, show
from tdmpc_prune.config import AnyTrainConfig


def run(config: AnyTrainConfig) -> int:
    """Trains or resumes a run and shows its summary, or plans it (`--dry-run`)."""
    if config.dry_run:
        from tdmpc_prune.dry_run import plan, table

        planned = plan(config)
        if config.json:
            print_json(planned)
        else:
            print(table(planned))
        return 0
    from tdmpc_prune.train import train

    show(train(config), as_json=config.json)
    return 0
