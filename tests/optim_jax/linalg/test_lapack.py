"""Batches one matrix after the other on CPUs, so that many at once do not deadlock."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.linalg import lapack

PLAIN = {
    "eigh": lambda a: jnp.linalg.eigh(a, symmetrize_input=True),
    "svd": lambda a: jnp.linalg.svd(a, full_matrices=False),
    "singular_values": lambda a: jnp.linalg.svd(a, compute_uv=False),
    "qr": jnp.linalg.qr,
}
# Two threads and more independent batches than threads: each waits for the pool.
MANY = """
import jax, jax.numpy as jnp, optim_jax.linalg.lapack as lapack
batches = [jax.random.normal(jax.random.key(i), (4, 96, 96)) for i in range(16)]
function = jax.jit(lambda stacks: [lapack.{name}(stack) for stack in stacks])
for _ in range(5):
    jax.block_until_ready(function(batches))
print("done")
"""


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [(5, 5), (1, 4, 4), (2, 3, 4, 4), (0, 3, 3)])
def test_equals_the_plain_decomposition(name, shape):
    a = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    results = getattr(lapack, name)(a)
    for ours, theirs in zip(results, PLAIN[name](a), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", PLAIN)
def test_many_batches_at_once_do_not_wait_for_each_other(name):
    environment = os.environ | {"NPROC": "2", "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MANY.format(name=name)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("name", PLAIN)
def test_only_cpus_take_one_at_a_time(name):
    a = jax.ShapeDtypeStruct((3, 4, 4), jnp.float32)
    function = jax.jit(getattr(lapack, name))
    assert "while" in function.trace(a).lower().as_text()
    elsewhere = function.trace(a).lower(lowering_platforms=("cuda",))
    assert "while" not in elsewhere.as_text()
