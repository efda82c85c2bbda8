"""Runs the papers' tables and figures by name, and puts the published figures beside."""
