"""Many models behind one server: throughput, latency and memory against what people use."""
