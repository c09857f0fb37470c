"""Servers of many models as people write them. Each is a process: `python -m` and --help."""
