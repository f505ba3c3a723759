"""Plots: figures of a dataset and of results."""
