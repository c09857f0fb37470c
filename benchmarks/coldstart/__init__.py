"""From a model that is not in memory to its first token, and to thirty."""
