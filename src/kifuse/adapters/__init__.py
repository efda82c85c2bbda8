"""Adapters: what is trained of a model, and how it meets the forward pass."""
