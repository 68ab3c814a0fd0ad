"""Agents: networks, planning, learning, replay. Knows nothing of pruning or of simulators."""
