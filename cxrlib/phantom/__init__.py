"""Phantom: a drawn data set in the layout of ChestX-ray14."""
