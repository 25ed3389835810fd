"""Partitions of the ids 0 … n - 1 into classes, computed in integers only.

A float32 quotient is wrong from id 2**24 + 3 on, so nothing here ever divides floats.
NumPy arrays (and Python integers) are mapped on the host to int64; JAX arrays, traced
or not, stay on the device in their own integer dtype.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from models.embeddings.integer_arrays import read_integers

# How far below the k-th root of n `choose_moduli` looks for a start.
_SEARCH_WINDOW = 32


def quotient_remainder(ids: Any, c: int) -> tuple[Any, Any]:
    """Quotient and remainder of every id.

    Args:
      ids: integers >= 0 of any shape; negative ones on the device give classes of no
        meaning.
      c: number of remainder classes, >= 1: how many ids share a quotient.

    Returns:
      `(ids // c, ids % c)`, int64 for NumPy ids, of the ids' dtype for JAX arrays.

    Raises:
      TypeError: the ids are not integers.
      ValueError: `c` is not positive; an id on the host is negative.

    References:
      Shi, Mudigere, Naumov, Yang, 2020, https://arxiv.org/abs/1909.02107.
    """
    quotients, remainders = _divmod(_read_ids(ids), _positive("c", c))
    return _as_result(quotients), _as_result(remainders)


def hashing(ids: Any, m: int) -> Any:
    """The class `ids % m` of the hashing trick; not complementary if m < n.

    Args:
      ids: as in `quotient_remainder`; uint64 ids of any size on the host.
      m: number of classes, >= 1.

    Returns:
      Classes in [0, m), int64 for NumPy ids, of the ids' dtype for JAX arrays.

    Raises:
      TypeError: the ids are not integers.
      ValueError: `m` is not positive; an id on the host is negative.
    """
    return _as_result(_divmod(_read_ids(ids), _positive("m", m))[1])


def mixed_radix(ids: Any, moduli: Sequence[int]) -> tuple[Any, ...]:
    r"""Digits of every id in a mixed radix, the least significant first.

    .. math::

      c_j(x) = \lfloor x / M_j \rfloor \bmod m_j, \quad M_j = \prod_{i < j} m_i

    Args:
      ids: as in `quotient_remainder`.
      moduli: m_1 … m_k, each >= 1; complementary on n ids iff their product is >= n.

    Returns:
      k arrays of classes, int64 for NumPy ids, of the ids' dtype for JAX arrays.

    Raises:
      TypeError: the ids are not integers.
      ValueError: a modulus is not positive; an id on the host is negative.

    References:
      Shi, Mudigere, Naumov, Yang, 2020, https://arxiv.org/abs/1909.02107
      (generalised quotient-remainder).
    """
    rest, digits = _read_ids(ids), []
    for modulus in _read_moduli(moduli):
        rest, digit = _divmod(rest, modulus)
        digits.append(_as_result(digit))
    return tuple(digits)


def chinese_remainder(ids: Any, moduli: Sequence[int]) -> tuple[Any, ...]:
    """Remainders of every id by pairwise coprime moduli.

    Args:
      ids: as in `quotient_remainder`.
      moduli: m_1 … m_k, each >= 1 and pairwise coprime; complementary on n ids iff
        their product is >= n.

    Returns:
      k arrays of classes, int64 for NumPy ids, of the ids' dtype for JAX arrays.

    Raises:
      TypeError: the ids are not integers.
      ValueError: a modulus is not positive, two share a factor, an id on the host is
        negative.
    """
    moduli = _read_moduli(moduli)
    require_coprime(moduli)
    ids = _read_ids(ids)
    return tuple(_as_result(_divmod(ids, modulus)[1]) for modulus in moduli)


def require_coprime(moduli: Sequence[int]) -> None:
    """Refuses moduli of which two share a factor.

    Args:
      moduli: positive integers.

    Raises:
      ValueError: naming the first two that share one, and their greatest divisor.
    """
    for a, b in itertools.combinations(moduli, 2):
        if math.gcd(a, b) != 1:
            raise ValueError(
                f"moduli must be pairwise coprime, but gcd({a}, {b}) = "
                f"{math.gcd(a, b)} in {tuple(moduli)}"
            )


def choose_moduli(n: int, k: int, coprime: bool = False) -> tuple[int, ...]:
    """Moduli with product >= n and about the smallest sum.

    Args:
      n: number of ids, >= 1.
      k: number of moduli, >= 1.
      coprime: whether they must be pairwise coprime, for `chinese_remainder`.

    Returns:
      k times the smallest m with m**k >= n; with `coprime`, k increasing moduli,
      taken greedily from a start near that m: of the starts up to 32 below it, the
      one whose moduli reach n with the smallest sum.

    Raises:
      ValueError: `n` or `k` is not positive.
    """
    n, k = _positive("n", n), _positive("k", k)
    root = _ceil_root(n, k)
    if not coprime:
        return (root,) * k
    starts = range(root, max(root - _SEARCH_WINDOW, 1) - 1, -1)
    candidates = (_coprime_from(start, k) for start in starts)
    return min((c for c in candidates if math.prod(c) >= n), key=sum)


def is_complementary(classes: Sequence[Any]) -> bool:
    """Whether no two ids are in the same class of every partition.

    Args:
      classes: k integer arrays of length n, the class of each id in each partition.

    Returns:
      True if the k classes of an id identify it.

    Raises:
      TypeError: classes are not integers.
      ValueError: there is no partition, or their lengths differ.
    """
    return first_clash(classes) is None


def first_clash(classes: Sequence[Any]) -> tuple[int, int] | None:
    """The first id that some earlier id cannot be told from.

    Args:
      classes: k integer arrays of length n, the class of each id in each partition.

    Returns:
      `(a, b)`, a < b, in the same class of every partition, with the smallest such b
      and then the smallest a; None for complementary partitions.

    Raises:
      TypeError: classes are not integers.
      ValueError: there is no partition, or their lengths differ.
    """
    if len(classes) == 0:
        raise ValueError("classes must hold at least one partition, got none")
    columns = [
        np.asarray(read_integers(f"classes[{number}]", column))
        for number, column in enumerate(classes)
    ]
    for number, column in enumerate(columns):
        if column.shape != (len(columns[0]),):
            raise ValueError(
                "classes must be arrays of one length, but classes[0] has shape "
                f"{columns[0].shape} and classes[{number}] {column.shape}"
            )
    # A stable order: within a group of equal ids the smallest comes first.
    order = np.lexsort(columns)
    equal = np.ones(max(len(order) - 1, 0), bool)
    for column in columns:
        equal &= column[order[1:]] == column[order[:-1]]
    if not equal.any():
        return None
    later, earlier = order[1:][equal], order[:-1][equal]
    first = int(np.argmin(later))
    return int(earlier[first]), int(later[first])


def expected_clashes(n: int, moduli: Sequence[int]) -> float:
    r"""Expected number of pairs of ids that k independent random hashes confuse.

    .. math::

      \frac{n (n - 1)}{2 \prod_i m_i}

    Args:
      n: number of ids, >= 1.
      moduli: number of classes of each hash, each >= 1.

    Returns:
      The expectation over hashes that are uniform and independent.

    Raises:
      ValueError: `n` or a modulus is not positive.
    """
    pairs = math.comb(_positive("n", n), 2)
    return pairs / math.prod(_read_moduli(moduli))


def _positive(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    return number


def _read_moduli(moduli: Sequence[int]) -> tuple[int, ...]:
    read = tuple(_positive(f"moduli[{j}]", m) for j, m in enumerate(moduli))
    if not read:
        raise ValueError("moduli must hold at least one integer, got none")
    return read


def _read_ids(ids: Any) -> Any:
    array = read_integers("ids", ids)
    if isinstance(array, np.ndarray) and array.size and array.min() < 0:
        raise ValueError(f"ids must be >= 0, got {array.min()}")
    return array


def _divmod(ids: Any, divisor: int) -> tuple[Any, Any]:
    if divisor > np.iinfo(ids.dtype).max:
        return ids * 0, ids
    return ids // divisor, ids % divisor


def _as_result(classes: Any) -> Any:
    if isinstance(classes, jax.Array):
        return classes
    most = np.iinfo(np.int64).max
    if classes.dtype == np.uint64 and classes.size and classes.max() > most:
        raise ValueError(f"classes must fit int64, got {classes.max()}")
    return classes.astype(np.int64)


def _ceil_root(n: int, k: int) -> int:
    """The smallest m with m**k >= n, by bisection in integers."""
    low, high = 1, 1 << -(-n.bit_length() // k)
    while low < high:
        middle = (low + high) // 2
        if middle**k >= n:
            high = middle
        else:
            low = middle + 1
    return low


def _coprime_from(start: int, k: int) -> tuple[int, ...]:
    taken: list[int] = []
    for candidate in itertools.count(start):
        if all(math.gcd(candidate, m) == 1 for m in taken):
            taken.append(candidate)
        if len(taken) == k:
            return tuple(taken)
    raise AssertionError("unreachable")
