"""Whether the same request and seed give the same text, whatever else the server does."""
