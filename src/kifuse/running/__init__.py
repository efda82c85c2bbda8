"""A whole run: its start, its tasks one after the other, what it keeps, and how it goes on after a crash."""
