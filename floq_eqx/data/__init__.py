"""Transitions, OGBench datasets and their collection."""
