"""Bad options get one clear error before anything is compiled."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax
from optim_jax import CoupledNewton, EigenvalueCorrected, Eigh, Graft, RootInverse

NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"b1": 1.0}, r"b1 must be in \[0, 1\), got 1.0"),
        ({"b1": NAN}, r"b1 must be in \[0, 1\)"),
        ({"b2": 1.5}, r"b2 must be in \[0, 1\], got 1.5"),
        ({"b3": -0.1}, r"b3 must be in \[0, 1\), got -0.1"),
        ({"eps": 0.0}, "eps must be finite and > 0, got 0.0"),
        ({"eps": math.inf}, "eps must be finite and > 0"),
        ({"relative_epsilon": 1.0}, r"relative_epsilon must be in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and >= 0"),
        ({"weight_decay_type": "linear"}, "weight_decay_type must be one of"),
        (
            {"weight_decay_type": "corrected", "learning_rate": lambda step: 0.1},
            "give peak_lr",
        ),
        ({"weight_decay_type": "independent", "peak_lr": 0.0}, "peak_lr must be"),
        ({"max_preconditioner_dim": 0}, "max_preconditioner_dim must be an integer"),
        ({"target_dimensionality": 1.5}, "target_dimensionality must be an integer"),
        ({"skip_dims_larger_than": 0}, "skip_dims_larger_than must be an integer"),
        ({"precondition_frequency": 0}, "precondition_frequency must be an integer"),
        ({"precondition_frequency": 2.5}, "precondition_frequency must be an integer"),
        (
            {"precondition_frequency": 5, "start_preconditioning_step": 4},
            "start_preconditioning_step must be -1 or an integer >= precondition_freq",
        ),
        ({"grafting": "lion"}, "grafting must be one of adagrad, adam, rmsprop, sgd"),
        ({"grafting": 3}, "grafting must be None, a Graft or one of"),
        ({"preconditioner": "soap"}, r"preconditioner must be RootInverse\(\)"),
        ({"momentum": 0.9}, "momentum must be None or a Momentum"),
        ({"refresh": "lazy"}, "refresh must be one of cond, external, staggered"),
        ({"precision": "float64"}, "precision must be one of"),
        ({"axis": "data"}, "needs the mesh it belongs to"),
        ({"comm_dtype": "int8"}, "comm_dtype must be a floating-point dtype"),
        ({"factor_dtype": "fp32"}, "factor_dtype must be a floating-point dtype"),
        (
            {
                "preconditioner": RootInverse(method=Eigh(pseudo_inverse=True)),
                "relative_epsilon": 0.0,
            },
            "eps must be 0 with a pseudo-inverse",
        ),
        (
            {
                "preconditioner": RootInverse(method=Eigh(pseudo_inverse=True)),
                "eps": 0.0,
            },
            "relative_epsilon must be 0",
        ),
        (
            {"exact_reference_defaults": True, "b2": 0.9},
            "exact_reference_defaults=True sets b2=1.0, but b2=0.9 was given",
        ),
        (
            {"exact_reference_defaults": True, "grafting": "sgd"},
            "exact_reference_defaults=True sets grafting=None",
        ),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        optim_jax.shampoo(**{"learning_rate": 0.1, **options})


def test_an_axis_that_the_mesh_lacks():
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    with pytest.raises(ValueError, match="axis names 'model', but the mesh has the ax"):
        optim_jax.shampoo(0.1, mesh=mesh, axis="model")
    with pytest.raises(ValueError, match="axis must name different axes"):
        optim_jax.shampoo(0.1, mesh=mesh, axis=("data", "data"))


def test_staggered_needs_a_period_that_is_known():
    def build(frequency):
        return optim_jax.shampoo(
            0.1, refresh="staggered", precondition_frequency=frequency
        )

    with pytest.raises(ValueError, match="known when the transformation is built"):
        jax.jit(lambda f: build(f).init({"w": jnp.ones(2)}))(jnp.int32(2))


@pytest.mark.parametrize(
    ("params", "options", "words"),
    [
        ({"deep": {"w": np.ones(3)}}, {}, "leaf 'deep/w' of shape"),
        ({"w": np.ones((2, 3), np.int32)}, {}, "leaf 'w' is int32"),
    ],
)
def test_leaves_that_do_not_fit(params, options, words):
    tx = optim_jax.shampoo(
        0.1, preconditioner=optim_jax.Spectral(), grafting=None, **options
    )
    with pytest.raises(ValueError, match=words):
        tx.init(jax.tree.map(jnp.asarray, params))


def test_newton_needs_a_root_of_an_integer_order():
    kind = RootInverse(method=CoupledNewton(), inverse_exponent_override={2: 0.4})
    tx = optim_jax.shampoo(0.1, preconditioner=kind, target_dimensionality=2)
    with pytest.raises(ValueError, match="leaf 'w'.*2/5.*CoupledHigherOrder"):
        tx.init({"w": jnp.ones((3, 2))})


def test_a_flattened_tree_is_refused():
    tx = optax.flatten(optim_jax.shampoo(0.1, max_preconditioner_dim=8))
    with pytest.raises(ValueError, match=r"remove optax.flatten"):
        tx.init({"w": jnp.ones((4, 4))})
    optim_jax.shampoo(0.1, max_preconditioner_dim=8).init(jnp.ones(5))


def test_matrix_axes_must_cover_the_leaf():
    tx = optim_jax.shampoo(
        0.1, matrix_axes={"w": optim_jax.MatrixAxes("hidden", (), (0,), (0,))}
    )
    with pytest.raises(ValueError, match="does not cover every axis of leaf 'w'"):
        tx.init({"w": jnp.ones((4, 4))})


def test_an_ungrafted_delayed_start_is_warned_of():
    options = {"grafting": None, "precondition_frequency": 5}
    with pytest.warns(UserWarning, match=r"first refresh \(step 5\)"):
        optim_jax.shampoo(0.1, **options)


@pytest.mark.filterwarnings("error")
def test_nothing_is_warned_of_otherwise():
    optim_jax.soap(0.1)
    optim_jax.shampoo(0.1, precondition_frequency=5)
    optim_jax.shampoo(0.1, grafting=None)
    optim_jax.shampoo(0.1, preconditioner=EigenvalueCorrected(), grafting=None)


def test_adam_by_name_shares_b2():
    params = {"w": jnp.ones((3, 2))}
    by_name = optim_jax.shampoo(0.1, b2=0.95)
    spelled = optim_jax.shampoo(0.1, b2=0.95, grafting=Graft("adam", 0.95, 1e-8))
    summed = optim_jax.shampoo(0.1, b2=1.0)
    summed_spelled = optim_jax.shampoo(0.1, b2=1.0, grafting=Graft("adam", eps=1e-8))
    for first, second in ((by_name, spelled), (summed, summed_spelled)):
        updates = [
            tx.update(params, tx.init(params), params)[0] for tx in (first, second)
        ]
        np.testing.assert_array_equal(updates[0]["w"], updates[1]["w"])
