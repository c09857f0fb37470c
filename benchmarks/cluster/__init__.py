"""A fleet on one machine, of the cluster's real parts: for experiments and the fleet's tests."""
