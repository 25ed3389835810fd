"""What tests of whole runs share: reading them, and stopping them in the middle."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training.metrics import read_metrics

ONE_DEVICE = jax.devices()[:1]


def metric_rows(folder, split):
    """The metrics of one split, in order."""
    return [row for row in read_metrics(folder) if row["split"] == split]


def state_leaves(state):
    """All leaves as NumPy arrays, keys as their data."""
    return [
        np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for leaf in jax.tree.leaves(state)
    ]


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def preempt_after(loop, step):
    """Has the process get a SIGTERM after that step."""
    boundary = loop._boundary

    def boundary_with_signal():
        if loop.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return boundary()

    loop._boundary = boundary_with_signal
