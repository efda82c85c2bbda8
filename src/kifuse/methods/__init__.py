"""Continual learning methods: one short file each; no method knows the training engine."""
