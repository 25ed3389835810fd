"""Layers of the models, as Flax NNX modules."""
