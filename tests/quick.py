"""What makes saving quick in tests that save tiny models again and again."""

from __future__ import annotations

from functools import cache

import jinja2

compile_once = cache(jinja2.Environment.compile)
"""In the place of `jinja2.Environment.compile`: PEFT compiles the same model card at every save."""
