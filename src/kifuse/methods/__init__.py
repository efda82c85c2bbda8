"""Continual learning methods: one short file each, none of which knows the training engine."""
