"""Compares methods on the same stream, over orders and seeds: the grid of runs, and its results."""
