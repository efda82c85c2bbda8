"""Speed and memory, as ratios against an alternative in the same process: `python -m benchmarks.speed`."""

PRECISIONS = ("bf16", "fp32")
"""In which answers are measured."""
