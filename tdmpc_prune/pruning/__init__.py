"""Pruning of multi-component agents while they learn, for any agent that shows its components.

`groups` finds what can be removed, `importance` scores it, `schedule` says how much is due, `allocation`
which units go, `surgery` removes them; `pruner` puts these together for a training loop.
"""
