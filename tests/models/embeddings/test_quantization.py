import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.embeddings import (
    dequantize_rows,
    gather_quantized_rows,
    quantize_rows,
)


def draw(rows=50, width=7, seed=0):
    generator = np.random.default_rng(seed)
    scales = 10.0 ** generator.uniform(-6, 3, (rows, 1))
    return (scales * generator.standard_normal((rows, width))).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [1, 2, 7, 16])
def test_the_error_is_at_most_half_a_step(bits, width):
    table = draw(width=width)
    q = quantize_rows(table, bits)
    step = (table.max(axis=1) - table.min(axis=1)) / (2**bits - 1)
    np.testing.assert_allclose(q.scale, step, rtol=1e-6)
    error = np.abs(np.asarray(dequantize_rows(q)) - table).max(axis=1)
    rounding = 1e-6 * np.abs(table).max(axis=1)
    assert np.all(error <= step / 2 + rounding)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_code_comes_back(bits):
    levels = np.arange(2**bits, dtype=np.float32)
    table = np.stack([levels, 3.0 * levels[::-1] - 7.0])
    # XLA divides by a constant by way of its reciprocal: an ulp of the scale.
    back = dequantize_rows(quantize_rows(table, bits))
    np.testing.assert_allclose(back, table, atol=2e-7 * np.abs(table).max())


def test_four_bits_are_packed_low_half_first():
    q = quantize_rows(np.asarray([[0.0, 15.0, 5.0]]), 4)
    assert q.codes.tolist() == [[0xF0, 0x05]] and q.codes.dtype == jnp.uint8
    assert q.shift.tolist() == [0, 4, 0]


@pytest.mark.parametrize(("bits", "stored"), [(8, 7), (4, 4)])
def test_bytes_per_row(bits, stored):
    q = quantize_rows(draw(), bits)
    assert q.codes.shape == (50, stored)
    per_row = sum(leaf.nbytes for leaf in q[:3]) / 50
    assert per_row == stored + 8


@pytest.mark.parametrize("bits", [8, 4])
def test_a_constant_row_is_exact(bits):
    values = np.asarray([0.1, -3.7e-20, 0.0, 1.2345e10], np.float32)
    table = np.repeat(values[:, None], 5, axis=1)
    q = quantize_rows(table, bits)
    assert q.scale.tolist() == [0.0] * 4
    np.testing.assert_array_equal(dequantize_rows(q), table)


def test_the_least_entry_is_exact_and_order_is_kept():
    table = draw(seed=1)
    back = np.asarray(dequantize_rows(quantize_rows(table, 4)))
    np.testing.assert_array_equal(back.min(axis=1), table.min(axis=1))
    order = np.argsort(table, axis=1)
    assert np.all(np.diff(np.take_along_axis(back, order, axis=1), axis=1) >= 0)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_gathered_without_the_table(bits):
    q = quantize_rows(draw(), bits)
    rows = jnp.asarray([3, 0, 50, 49, 3, 2**31 - 1])
    found = jax.jit(gather_quantized_rows)(q, rows)
    whole = np.asarray(jax.jit(dequantize_rows)(q))
    expected = np.stack([whole[3], whole[0], 0 * whole[0], whole[49], whole[3]])
    # Two programs may round the product and the sum once or twice.
    apart = np.abs(found[:5] - expected).max(axis=1)
    assert np.all(apart <= 2e-7 * np.abs(expected).max(axis=1))
    np.testing.assert_array_equal(found[5], 0.0)


def test_half_precision_tables_and_tracers():
    table = jnp.asarray(draw(), jnp.bfloat16)
    inside = jax.jit(lambda x: quantize_rows(x, 8))(table)
    outside = quantize_rows(table, 8)
    assert outside.scale.dtype == jnp.float32
    np.testing.assert_array_equal(inside.codes, outside.codes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_rows(draw(), 2), "bits must be 4 or 8, got 2"),
        (lambda: quantize_rows(np.ones(3), 8), r"matrix with columns, got \(3,\)"),
        (lambda: quantize_rows(np.ones((3, 0)), 8), r"with columns, got \(3, 0\)"),
        (lambda: quantize_rows(np.ones((3, 2), int), 8), "of floats, got int"),
        (
            lambda: quantize_rows(np.asarray([[0.0, 1.0], [1.0, np.nan]]), 8),
            "table row 1 is not finite",
        ),
        (
            lambda: quantize_rows(np.asarray([[-3e38, 3e38]], np.float32), 8),
            "table row 0 is not finite, or its range",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
