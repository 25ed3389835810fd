import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.embeddings.partitions import (
    chinese_remainder,
    choose_moduli,
    expected_clashes,
    first_clash,
    hashing,
    is_complementary,
    mixed_radix,
    quotient_remainder,
)

CRITEO = 40_000_000  # rows of the largest tables


def around(*centres):
    """Ids near each centre, also far enough to be other float32 numbers."""
    steps = [0, 1, 2, 3, 4, 5, 17, 1000]
    return sorted({c + s for c in centres for s in [*steps, *(-k for k in steps)]})


@pytest.mark.parametrize("c", [1, 2, 3, 4, 7, 60, 71, 4999, 5000, 9999])
def test_quotient_and_remainder_are_a_bijection(c):
    ids = np.arange(5000)
    quotients, remainders = quotient_remainder(ids, c)
    assert quotients.dtype == remainders.dtype == np.int64
    np.testing.assert_array_equal(quotients * c + remainders, ids)
    assert remainders.min() >= 0 and remainders.max() < c
    # Ids below n use quotients below ceil(n / c), for every n at once.
    assert np.all(quotients < -(-(ids + 1) // c))
    assert len(set(zip(quotients.tolist(), remainders.tolist(), strict=True))) == 5000


@pytest.mark.parametrize("c", [3, 4, 60])
@pytest.mark.parametrize("on_device", [False, True])
def test_the_quotient_is_exact_for_forty_million_rows(c, on_device):
    ids = [x for x in around(2**24, 2**25, CRITEO - 1001) if x < CRITEO]
    ids += [16_777_219, CRITEO - 1]
    if on_device:
        array = jnp.asarray(ids, jnp.int32)
        found = jax.jit(quotient_remainder, static_argnums=1)(array, c)
        assert all(part.dtype == jnp.int32 for part in found)
    else:
        found = quotient_remainder(np.asarray(ids), c)
    expected = [divmod(x, c) for x in ids]
    pairs = zip(*(np.asarray(part).tolist() for part in found), strict=True)
    assert list(pairs) == expected


def test_nothing_divides_floats():
    ids = jnp.zeros(3, jnp.int32)
    maps = [
        lambda x: quotient_remainder(x, 4),
        lambda x: hashing(x, 5),
        lambda x: mixed_radix(x, (4, 5, 6)),
        lambda x: chinese_remainder(x, (4, 5, 7)),
    ]
    for function in maps:
        assert "f32" not in str(jax.make_jaxpr(function)(ids))


def test_large_ids_are_right_on_the_host():
    ids = around(2**31, 2**32, 2**53, 2**62)
    moduli = (1009, 1013, 2**31 - 1, 2**31 + 11)
    array = np.asarray(ids)
    digits = mixed_radix(array, moduli)
    scales = np.cumprod([1, *moduli[:-1]], dtype=object)
    whole = sum(d.astype(object) * m for d, m in zip(digits, scales, strict=True))
    assert whole.tolist() == [x % math.prod(moduli) for x in ids]
    assert hashing(array, 1013).tolist() == [x % 1013 for x in ids]
    for part, m in zip(chinese_remainder(array, moduli[:2]), moduli, strict=False):
        assert part.tolist() == [x % m for x in ids]
    quotients, remainders = quotient_remainder(array, 4)
    assert quotients.tolist() == [x // 4 for x in ids]
    assert remainders.tolist() == [x % 4 for x in ids]


def test_unsigned_ids_above_the_signed_range():
    ids = np.asarray([2**64 - 1, 2**63], np.uint64)
    assert hashing(ids, 1013).tolist() == [(2**64 - 1) % 1013, 2**63 % 1013]
    assert quotient_remainder(ids, 4)[0].tolist() == [(2**64 - 1) // 4, 2**61]
    with pytest.raises(ValueError, match="classes must fit int64, got 184467440737"):
        quotient_remainder(ids, 1)


@pytest.mark.parametrize("moduli", [(7,), (2, 3, 4), (10, 1, 10), (22, 22, 22)])
def test_mixed_radix_digits_add_up(moduli):
    n = math.prod(moduli)
    ids = np.arange(n)
    digits = mixed_radix(ids, moduli)
    scales = np.cumprod((1, *moduli[:-1]))
    np.testing.assert_array_equal(
        sum(d * m for d, m in zip(digits, scales, strict=True)), ids
    )
    assert all(d.max() == m - 1 for d, m in zip(digits, moduli, strict=True))
    assert is_complementary(digits)
    assert not is_complementary(mixed_radix(np.arange(n + 1), moduli))


@pytest.mark.parametrize(("n", "k"), [(10_000, 2), (10_000, 3), (9_999, 5), (1, 2)])
def test_ids_are_rebuilt_from_chinese_remainders(n, k):
    moduli = choose_moduli(n, k, coprime=True)
    product, rebuilt = math.prod(moduli), np.zeros(n, np.int64)
    remainders = chinese_remainder(np.arange(n), moduli)
    for remainder, m in zip(remainders, moduli, strict=True):
        rest = product // m
        rebuilt += remainder * rest * pow(rest, -1, m)
    np.testing.assert_array_equal(rebuilt % product, np.arange(n))
    assert is_complementary(remainders)


def test_device_ids_keep_their_dtype():
    for dtype in (jnp.int8, jnp.uint8, jnp.int32, jnp.uint32):
        ids = jnp.asarray([0, 5, 100], dtype)
        parts = [
            *quotient_remainder(ids, 7),
            hashing(ids, 7),
            *mixed_radix(ids, (7, 300)),
            *chinese_remainder(ids, (7, 300)),
        ]
        assert all(isinstance(p, jax.Array) and p.dtype == dtype for p in parts)
        assert parts[3].tolist() == [0, 5, 2] and parts[4].tolist() == [0, 0, 14]
        assert parts[6].tolist() == [0, 5, 100]


def test_wide_ids_on_the_device(x64):
    ids = around(2**40)
    found = quotient_remainder(jnp.asarray(ids), 4)
    assert found[0].dtype == jnp.int64
    assert found[0].tolist() == [x // 4 for x in ids]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_balanced_moduli_are_the_smallest(k):
    for n in [*range(1, 70), 10**6, 10**6 + 1, 3**39, 2**60 - 1, 10**30]:
        (m, *others) = choose_moduli(n, k)
        assert others == [m] * (k - 1)
        assert m**k >= n and (m == 1 or (m - 1) ** k < n)


@pytest.mark.parametrize("k", [2, 3])
def test_coprime_moduli_reach_n_with_a_small_sum(k):
    for n in [*range(1, 130), 10_131_227, 40_000_000]:
        moduli = choose_moduli(n, k, coprime=True)
        assert len(moduli) == k and math.prod(moduli) >= n
        assert all(math.gcd(a, b) == 1 for a, b in itertools.combinations(moduli, 2))
        balanced = sum(choose_moduli(n, k))
        assert sum(moduli) <= balanced + 3 * k
    assert choose_moduli(10_000, 3, coprime=True) == (21, 22, 23)


def test_the_checker_knows_complementary_families():
    n, c = 1000, 7
    ids = np.arange(n)
    assert is_complementary(quotient_remainder(ids, c))
    assert is_complementary([ids])
    assert is_complementary([hashing(ids, n)])
    assert not is_complementary([hashing(ids, n - 1)])
    quotients, remainders = quotient_remainder(ids, c)
    assert not is_complementary([quotients]) and not is_complementary([remainders])
    digits = mixed_radix(ids, (10, 10, 10))
    for dropped in range(3):
        assert not is_complementary([d for j, d in enumerate(digits) if j != dropped])
    assert is_complementary([np.zeros(0, int)]) and is_complementary([[5]])


def test_the_first_clash_is_the_earliest_copy():
    assert first_clash([[0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]) == (1, 3)
    assert first_clash([[3, 2, 1, 0, 3, 0, 3]]) == (0, 4)
    assert first_clash([hashing(np.arange(100), 40)]) == (0, 40)
    assert first_clash(quotient_remainder(np.arange(100), 40)) is None


def test_expected_clashes_of_random_hashes():
    assert expected_clashes(2, (2, 3)) == pytest.approx(1 / 6)
    n, moduli, generator = 60, (7, 11), np.random.default_rng(0)
    counts = []
    for _ in range(2000):
        codes = generator.integers(0, math.prod(moduli), n)
        sizes = np.bincount(codes)
        counts.append((sizes * (sizes - 1) // 2).sum())
    spread = np.std(counts) / math.sqrt(len(counts))
    assert abs(np.mean(counts) - expected_clashes(n, moduli)) < 4 * spread


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("ids", [[1.0, 2.0], [True, False]])
def test_only_integers_are_ids(make, ids):
    array = make(ids)
    for function in (
        lambda: quotient_remainder(array, 4),
        lambda: hashing(array, 4),
        lambda: mixed_radix(array, (2, 3)),
        lambda: chinese_remainder(array, (2, 3)),
    ):
        with pytest.raises(TypeError, match=f"ids must be integers, got {array.dtype}"):
            function()
    with pytest.raises(TypeError, match=r"classes\[0\] must be integers"):
        is_complementary([array])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quotient_remainder([1], 0), "c must be an integer >= 1, got 0"),
        (lambda: quotient_remainder([1], -4), "c must be an integer >= 1, got -4"),
        (lambda: quotient_remainder([1], 2.5), "c must be an integer >= 1, got 2.5"),
        (lambda: quotient_remainder([3, -2], 4), "ids must be >= 0, got -2"),
        (lambda: hashing([1], 0), "m must be an integer >= 1, got 0"),
        (lambda: hashing([1], True), "m must be an integer >= 1, got True"),
        (lambda: mixed_radix([1], (2, 0)), r"moduli\[1\] must be an integer >= 1"),
        (lambda: mixed_radix([1], ()), "moduli must hold at least one integer"),
        (
            lambda: chinese_remainder([1], (5, 4, 6)),
            r"pairwise coprime, but gcd\(4, 6\) = 2 in \(5, 4, 6\)",
        ),
        (lambda: choose_moduli(0, 2), "n must be an integer >= 1, got 0"),
        (lambda: choose_moduli(5, 0), "k must be an integer >= 1, got 0"),
        (lambda: expected_clashes(0, (2,)), "n must be an integer >= 1"),
        (lambda: is_complementary([]), "at least one partition, got none"),
        (
            lambda: is_complementary([[0, 1], [0, 1, 2]]),
            r"classes\[0\] has shape \(2,\) and classes\[1\] \(3,\)",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
