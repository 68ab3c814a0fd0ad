"""`python -m tdmpc_prune`: the same as the `tdmpc-prune` command."""

import sys

from tdmpc_prune.cli import main

if __name__ == "__main__":
    sys.exit(main())
