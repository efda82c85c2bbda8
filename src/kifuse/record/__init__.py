"""The record of a run, and the score matrix in it. Runs write it, reports read it. No torch."""
