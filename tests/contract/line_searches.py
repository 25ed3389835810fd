"""Searches as transformations that the battery can call: with a function to search."""

import jax
import jax.numpy as jnp
import optax

import optim_jax


def armijo_on_a_bowl(c1, factor, max_steps):
    """A search down the gradients, each that of a bowl around its own minimiser."""
    search = optim_jax.with_filtered_args(
        optim_jax.scale_by_armijo(c1, factor, max_steps), ("value", "grad", "value_fn")
    )

    def update(grads, state, params=None, **extra_args):
        def bowl(candidate):
            moved = jax.tree.map(jnp.subtract, candidate, params)
            terms = jax.tree.map(
                lambda g, d: jnp.sum((g + 5.0 * d) * d, dtype=jnp.float32),
                grads,
                moved,
            )
            return sum(jax.tree.leaves(terms), jnp.zeros(()))

        return search.update(
            jax.tree.map(jnp.negative, grads),
            state,
            params,
            value=jnp.zeros(()),
            grad=grads,
            value_fn=bowl,
            **extra_args,
        )

    return optax.GradientTransformationExtraArgs(search.init, update)
