"""Make saving quick in tests that save tiny models again and again."""

from __future__ import annotations

from functools import cache

import jinja2

compile_once = cache(jinja2.Environment.compile)
"""Replaces `jinja2.Environment.compile`, since PEFT compiles the same model card at every save."""
