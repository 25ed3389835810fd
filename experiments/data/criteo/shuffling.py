"""A shuffle of data that do not fit in memory, in two passes over buckets on disk."""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np


def two_pass_shuffle(
    blocks: Iterable[np.ndarray],
    bucket_sizes: np.ndarray,
    *,
    folder: str | pathlib.Path,
    seed: int | tuple[int, ...],
) -> Iterator[np.ndarray]:
    """Shuffles rows in the memory of one block and one bucket.

    The first pass sends every row to a bucket drawn from those that have room left, the
    second one permutes each bucket.

    Args:
      blocks: rows of one dtype (structured ones too), the first axis counts them.
      bucket_sizes: rows of each bucket; together, those of all blocks.
      folder: where the buckets are kept meanwhile; it needs room for all rows.
      seed: of both passes.

    Yields:
      The buckets, shuffled, in their order.

    Raises:
      ValueError: if there are more or fewer rows than room.
    """
    sizes = np.asarray(bucket_sizes, np.int64)
    rng = np.random.default_rng(seed)
    paths = [pathlib.Path(folder, f"bucket_{i}.rows") for i in range(len(sizes))]
    try:
        form = _distribute(blocks, sizes, paths, rng)
        for path, size in zip(paths, sizes, strict=True):
            rows = np.fromfile(path, form.dtype).reshape(size, *form.shape[1:])
            path.unlink()
            yield rows[rng.permutation(size)]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def draw_buckets(room: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Buckets for the next rows, each uniform over those with room at its turn.

    Args:
      room: rows that still fit in each bucket; those drawn are taken off.
      rows: how many rows come next, at most the sum of `room`.
      rng: draws.

    Returns:
      Bucket of each row, int64 [rows].
    """
    drawn = np.empty(0, np.int64)
    while rows > len(drawn):
        (open_buckets,) = np.nonzero(room)
        chosen = open_buckets[rng.integers(len(open_buckets), size=rows - len(drawn))]
        # Rows from the first one whose bucket is full by then draw again.
        order = np.argsort(chosen, kind="stable")
        first = np.searchsorted(chosen[order], chosen[order])
        turn = np.empty_like(chosen)
        turn[order] = np.arange(len(chosen)) - first
        full = turn >= room[chosen]
        stop = int(np.argmax(full)) if full.any() else len(chosen)
        room -= np.bincount(chosen[:stop], minlength=len(room))
        drawn = np.concatenate([drawn, chosen[:stop]])
    return drawn


def _distribute(
    blocks: Iterable[np.ndarray],
    sizes: np.ndarray,
    paths: list[pathlib.Path],
    rng: np.random.Generator,
) -> np.ndarray:
    """Fills the bucket files; returns an array of no rows of the rows' form."""
    room, form = sizes.copy(), np.zeros((0,))
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb")) for path in paths]
        for block in blocks:
            form = block[:0]
            if len(block) > room.sum():
                raise ValueError(
                    f"bucket_sizes have room for {sizes.sum()} rows, there are more"
                )
            buckets = draw_buckets(room, len(block), rng)
            order = np.argsort(buckets, kind="stable")
            ends = np.cumsum(np.bincount(buckets, minlength=len(files)))
            rows = block[order]
            for file, start, stop in zip(files, [0, *ends[:-1]], ends, strict=True):
                if stop > start:
                    file.write(rows[start:stop].tobytes())
    if room.any():
        raise ValueError(
            f"bucket_sizes have room for {sizes.sum()} rows, there are only "
            f"{sizes.sum() - room.sum()}"
        )
    return form
