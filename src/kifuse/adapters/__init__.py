"""Adapters: the part of a model that is trained, and how it takes part in the forward pass."""
