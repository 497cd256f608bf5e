"""Benchmarks: each goal with its peer or limit measured in the same run. `python -m benchmarks.run --help`."""
