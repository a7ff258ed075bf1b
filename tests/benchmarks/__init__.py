"""Benchmarks against peers; `python -m tests.benchmarks --help`, from the root of the repository."""
