"""The parts of fuzz_inputs.py: odd values, mutations, and the readers that get them."""
