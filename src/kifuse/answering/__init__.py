"""Greedy and sampled generation of answers, and the evaluator that scores them."""
