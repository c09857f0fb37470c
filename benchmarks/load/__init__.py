"""Load tests of a deployment, and of this server beside others. See `python -m benchmarks.load`."""
