"""The named benchmarks and the built-in demo stream."""

from kifuse.benchmarks.catalog import BENCHMARKS, Benchmark, load_benchmark

__all__ = ["BENCHMARKS", "Benchmark", "load_benchmark"]
