"""The only code that knows the Trainer and Accelerate."""
