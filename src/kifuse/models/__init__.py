"""Backbones: finding, loading and adapting a Hugging Face model."""

from kifuse.models.catalog import BUNDLED, model_names

__all__ = ["BUNDLED", "model_names"]
