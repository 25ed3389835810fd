"""Raw ids to a given number of rows without a dictionary."""

import numpy as np


def reduce_ids(ids: np.ndarray, max_ind_range: int) -> np.ndarray:
    """Raw ids modulo `max_ind_range`, or as they are if it is negative."""
    if not 0 < max_ind_range < 1 << 32:
        return ids
    return ids % np.uint32(max_ind_range)


def mix_ids(ids: np.ndarray, seed: int, column: int) -> np.ndarray:
    """A bijective mixing of 64 bits, other for every seed and column.

    The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), applied to the id
    plus a key.

    Args:
      ids: unsigned integers.
      seed: >= 0.
      column: >= 0.

    Returns:
      uint64 array.
    """
    key = np.random.SeedSequence((seed, column)).generate_state(1, np.uint64)
    mixed = ids.astype(np.uint64) + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return mixed ^ (mixed >> np.uint64(31))


def hash_ids(ids: np.ndarray, rows: int, seed: int | None, column: int) -> np.ndarray:
    """Rows by remainder.

    Args:
      ids: raw ids, uint32.
      rows: number of rows, in [1, 2**31).
      seed: mixes the ids' bits first (see `mix_ids`); None takes them as they are.
      column: of the ids, for the mixing.

    Returns:
      int32 array, each in [0, rows).
    """
    mixed = ids if seed is None else mix_ids(ids, seed, column)
    return (mixed % mixed.dtype.type(rows)).astype(np.int32)
