"""How answers are scored: when two are the same, the metrics by name, and the score of a set."""
