"""Literal and slow transcriptions of the papers' equations. They share no code with the package."""
