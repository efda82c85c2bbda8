"""The parts of fuzz_inputs.py: odd values, mutations, and what is fed with them."""
