"""Step time, memory and scaling: each prints a ratio against a peer in the same run."""
