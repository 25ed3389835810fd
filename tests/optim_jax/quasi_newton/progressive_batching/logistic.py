"""Logistic regressions, small and stored ones, and solvers that compile quickly."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.quasi_newton.progressive_batching import pb_lbfgs

SAMPLES, FEATURES = 200, 5

# Programs for small data need no optimisation, whose price is most of the compilation.
UNOPTIMISED = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
}


def draw_rows(seed=0, samples=SAMPLES, features=FEATURES, dtype=np.float32):
    """Rows and labels ±1 that overlap, so that the minimiser is finite."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, features))
    y = np.sign(x @ rng.normal(size=features) + rng.normal(size=samples))
    return x.astype(dtype), y.astype(dtype)


def losses(w, batch):
    """Per-sample logistic losses with an l2 term."""
    x, y = batch
    return jax.nn.softplus(-y * (x @ w)) + 0.005 * jnp.sum(w * w)


def with_constant(x):
    """Standardised columns, and one of ones."""
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return np.hstack([x, np.ones((len(x), 1))])


@functools.cache
def breast_cancer():
    """The 569 x 31 problem of the stored trajectories: losses, and float64 data."""
    from sklearn.datasets import load_breast_cancer

    x, target = load_breast_cancer(return_X_y=True)
    return regularised(with_constant(x), 2.0 * target - 1.0)


def regularised(x, y):
    """Losses with the l2 term ||w||²/(2 N), and their data."""
    l2 = 1.0 / len(y)

    def per_sample(w, batch):
        x, y = batch
        return jax.nn.softplus(-y * (x @ w)) + 0.5 * l2 * jnp.sum(w * w)

    return per_sample, (x, y)


@functools.cache
def unoptimised():
    """Those of the options that this version of the compiler knows."""
    known = {}
    for name, value in UNOPTIMISED.items():
        try:
            jax.jit(lambda x: x + 1, compiler_options={name: value})(0.0)
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


def make_solver(per_sample_loss, data, **options):
    """`pb_lbfgs`, compiled in a third of the time to programs that run slower."""
    quick = functools.partial(jax.jit, compiler_options=unoptimised())
    with mock.patch.object(jax, "jit", quick):
        return pb_lbfgs(per_sample_loss, data, **options)


def compiled(function, **options):
    """`jax.jit`, as quick to compile."""
    return jax.jit(function, compiler_options=unoptimised(), **options)


def full_gradient(per_sample_loss, params, data):
    """Gradient of the mean loss."""
    return jax.grad(lambda w: jnp.mean(per_sample_loss(w, data)))(params)
