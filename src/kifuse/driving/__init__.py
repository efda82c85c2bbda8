"""Runs a method inside a Trainer: hooks, batches, memory steps, taps. Only here are private names read."""
