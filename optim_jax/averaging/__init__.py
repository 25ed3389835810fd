"""Averaging of the iterates: primal averaging, Schedule-Free, single-worker DiLoCo."""
