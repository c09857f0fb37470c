"""How many replicas does a fleet need? A simulation, calibrated against the real server."""
