"""Scoring a model: greedy generation, scorers, and the score matrix with its metrics."""
