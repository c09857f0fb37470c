"""What all benchmarks share: the model, the machine, processes, tables, plots, results."""
