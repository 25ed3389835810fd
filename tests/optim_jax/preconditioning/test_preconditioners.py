"""The constructors: what they refuse and what they keep."""

from fractions import Fraction

import pytest

import optim_jax
from optim_jax import (
    QR,
    CoupledHigherOrder,
    CoupledNewton,
    Diagonal,
    Eigendecomposed,
    EigenvalueCorrected,
    Eigh,
    Graft,
    Momentum,
    NewtonSchulz,
    RootInverse,
    Spectral,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RootInverse(method=QR()), "method of RootInverse must be one of"),
        (lambda: RootInverse(method=Eigh(tolerance=0.1)), "tolerance must be 0"),
        (lambda: Eigendecomposed(method=CoupledNewton()), "must be one of Eigh, QR"),
        (lambda: Spectral(method=Eigh()), "must be one of NewtonSchulz, SVD"),
        (
            lambda: EigenvalueCorrected(method=Eigh(pseudo_inverse=True)),
            "pseudo_inverse must be False",
        ),
        (
            lambda: RootInverse(inverse_exponent_override={2: -0.5}),
            "must hold finite exponents >= 0, got -0.5",
        ),
        (
            lambda: RootInverse(inverse_exponent_override={2: NAN}),
            "must hold finite exponents >= 0",
        ),
        (
            lambda: RootInverse(inverse_exponent_override={2: {2: 0.5}}),
            "names dim 2 of blocks of order 2; dims are 0 to 1",
        ),
        (
            lambda: RootInverse(inverse_exponent_override={-1: 0.5}),
            "keys are orders of blocks",
        ),
        (
            lambda: RootInverse(inverse_exponent_override=[0.5]),
            "must be a dict from order",
        ),
        (
            lambda: EigenvalueCorrected(inverse_exponent_override={2: 0.0}),
            "must hold finite exponents > 0",
        ),
        (
            lambda: EigenvalueCorrected(ignored_basis_change_dims={2: [1, 1]}),
            "repeats a dim of order 2",
        ),
        (
            lambda: EigenvalueCorrected(ignored_basis_change_dims={2: [2]}),
            "dims are 0 to 1",
        ),
        (
            lambda: RootInverse(trace_scaling_exponent=0.0),
            r"trace_scaling_exponent must be in \(0, 1\]",
        ),
        (lambda: Eigh(tolerance=1.5), r"tolerance must be in \[0, 1\], got 1.5"),
        (lambda: Eigh(rank_atol=-1.0), "rank_atol must be finite and >= 0"),
        (lambda: QR(max_iterations=0), "max_iterations must be an integer >= 1"),
        (lambda: CoupledNewton(scaling="trace"), "scaling must be one of"),
        (lambda: CoupledHigherOrder(-1.0, 0.0), "rel_eps must be finite and >= 0"),
        (
            lambda: CoupledHigherOrder(0.0, 0.0, order=1),
            "order must be an integer >= 2",
        ),
        (lambda: NewtonSchulz(coefficients=(1.0,)), "coefficients must be one triple"),
        (
            lambda: NewtonSchulz(2, [(1.0, 2.0, 3.0)]),
            "or num_iterations=2 of them",
        ),
        (lambda: Diagonal("lion"), "kind must be one of adagrad, adam, rmsprop, sgd"),
        (lambda: Graft("adam", b2=0.0), r"b2 of adam must be in \(0, 1\]"),
        (lambda: Graft("adam", eps=0.0), "eps of adam must be > 0"),
        (lambda: Momentum(1.0), r"momentum must be in \(0, 1\)"),
        (lambda: Momentum(0.5, 1.0), r"dampening must be in \[0, 1\)"),
    ],
)
def test_bad_options(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_defaults_of_the_diagonal_methods():
    assert [Diagonal(kind).b2 for kind in ("adagrad", "rmsprop", "adam")] == [
        1.0,
        0.99,
        0.999,
    ]
    assert Graft("adam").eps == 1e-10


def test_exponents_are_simple_fractions_and_hashable():
    kind = RootInverse(inverse_exponent_override={3: {0: 0.0}, 2: 0.4})
    assert dict(kind.inverse_exponent_override)[2] == Fraction(2, 5)
    assert hash(kind) == hash(
        optim_jax.RootInverse(inverse_exponent_override={2: 0.4, 3: {0: 0.0}})
    )
    per_step = NewtonSchulz(2, [(3.0, -3.2, 1.2), (2.0, -1.5, 0.5)])
    assert hash(per_step) and per_step.coefficients[1] == (2.0, -1.5, 0.5)
