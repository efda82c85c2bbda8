"""Runs a method inside a Trainer: its hooks, batches, memory steps and taps."""
