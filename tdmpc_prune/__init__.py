"""Trains TD-MPC controllers, prunes them while they learn, and shows what is left."""

__version__ = "0.1.0"
