"""Is another eviction policy than LRU worth having? Caches simulated over drawn traces."""
