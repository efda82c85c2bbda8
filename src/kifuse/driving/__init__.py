"""A method at work in a Trainer: hooks, batches, memory steps, taps. Nothing else reads private names."""
