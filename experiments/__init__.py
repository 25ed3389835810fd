"""Binaries that train models and reproduce claims; run from the checkout."""
