"""Speed and memory, as ratios against an alternative in the same process: `python -m benchmarks.speed`."""

PRECISIONS = ("bf16", "fp32")
"""The precisions in which answers are measured."""
