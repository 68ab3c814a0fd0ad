"""Sweeps: many trainings from one file in W&B's sweep format, on this machine, a Ray cluster, or W&B's agents."""
