"""A saved and restored state continues as if nothing had happened."""

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from tests.contract.problem import (
    assert_identical,
    at,
    compiled_step,
    make_gradients,
    reference,
)

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def test_restored_state_gives_the_same_next_update(row, tmp_path):
    saved = {
        name: dict(zip(("params", "state"), reference(row, dtype)[2][:2], strict=True))
        for name, dtype in DTYPES.items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", saved)
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, saved)
        restored = checkpointer.restore(tmp_path / "checkpoint", abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for name, dtype in DTYPES.items():
        both = restored[name]
        grads = at(make_gradients(dtype), 2)
        point = compiled_step(row)(both["params"], both["state"], grads)
        assert_identical(point, reference(row, dtype)[3])
