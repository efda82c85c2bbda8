"""Literal, slow transcriptions of the papers' equations; they share no code with the package."""
