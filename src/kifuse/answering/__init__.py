"""What a model answers: greedy and sampled generation, and the evaluator that scores the answers."""
