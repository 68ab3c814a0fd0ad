"""Measured results, and the commands that collect, tabulate and draw them."""
