"""Experiments behind the tables: `python -m benchmarks NAME`, see docs/benchmarks.md."""
