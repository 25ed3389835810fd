"""The layout: which block of which leaf lies where, and what is refreshed together.

Everything here is Python on shapes. Legend: a *bucket* stacks all blocks of one shape;
a *slot* is one place along its leading axis; a *refresh stack* collects the factors
of one size from all buckets.
"""

import dataclasses
import functools
import itertools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optim_jax.preconditioning.assignment import merge_dims_for_devices
from optim_jax.preconditioning.matrix_functions import QR, CoupledNewton, Eigh
from optim_jax.preconditioning.merging import chunk_runs, merge_small_dims
from optim_jax.preconditioning.options import Options
from optim_jax.preconditioning.preconditioners import (
    Diagonal,
    Eigendecomposed,
    EigenvalueCorrected,
    RootInverse,
    Sign,
    Spectral,
)
from optim_jax.trees.matrices import VECTOR_KINDS, check_axes
from optim_jax.trees.paths import leaf_name
from optim_jax.typing import MatrixAxes


@dataclasses.dataclass(frozen=True)
class Segment:
    """A grid of equal blocks of one leaf, which lies in one bucket without gaps.

    Attributes:
      bucket: key of the bucket.
      first_slot: slot of its first block.
      origin: where the grid starts in the merged view, without the batch axis.
      grid: number of blocks along each merged dim.
      block_shape: shape of its blocks.
      block_numbers: number of each block within its leaf, in the order of the slots.
    """

    bucket: str
    first_slot: int
    origin: tuple[int, ...]
    grid: tuple[int, ...]
    block_shape: tuple[int, ...]
    block_numbers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """How one parameter is cut.

    Attributes:
      path: `jax.tree_util.keystr` of the leaf.
      name: "/"-joined name.
      shape: shape of the parameter.
      dtype: name of the dtype of its state: its own, at least float32.
      axes: its matrix axes, None where the array is taken as it is stored.
      spec: how the update is sharded.
      batch: independent parameters in the leaf.
      merged: merged dims of each of them.
      segments: its grids of blocks; none for a leaf without entries.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: MatrixAxes | None
    spec: PartitionSpec
    batch: int
    merged: tuple[int, ...]
    segments: tuple[Segment, ...]

    @property
    def num_blocks(self) -> int:
        """Blocks of the leaf, batch included."""
        return sum(len(segment.block_numbers) for segment in self.segments)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """All blocks of one shape, preconditioned on the same modes.

    Attributes:
      key: its name in the state.
      block_shape: shape of a block.
      dtype: name of the dtype of blocks and moments.
      modes: dims that have a factor.
      exponents: inverse exponents of these modes.
      slots: number of real blocks.
      padded_slots: slots, a multiple of the number of devices.
    """

    key: str
    block_shape: tuple[int, ...]
    dtype: str
    modes: tuple[int, ...]
    exponents: tuple[Fraction, ...]
    slots: int
    padded_slots: int

    @property
    def order(self) -> int:
        """Number of dims of a block."""
        return len(self.block_shape)

    @property
    def factor_dims(self) -> tuple[int, ...]:
        """Sizes of the factors."""
        return tuple(self.block_shape[mode] for mode in self.modes)


@dataclasses.dataclass(frozen=True)
class RefreshStack:
    """Factors that are solved together.

    Attributes:
      dim: size that all of them are padded to.
      members: pairs (key of the bucket, position among the bucket's modes).
    """

    dim: int
    members: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Leaves, buckets and refresh stacks for one tree of shapes."""

    leaves: tuple[Leaf, ...]
    buckets: tuple[Bucket, ...]
    stacks: tuple[RefreshStack, ...]
    options: Options

    @functools.cached_property
    def bucket(self) -> dict[str, Bucket]:
        """Buckets by key."""
        return {bucket.key: bucket for bucket in self.buckets}


@dataclasses.dataclass(frozen=True)
class LeafInput:
    """What the planner knows of a leaf before it is cut."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: MatrixAxes | None
    spec: PartitionSpec


def leaf_inputs(
    params: Any, matrix_axes: Any = None, param_specs: Any = None
) -> tuple[LeafInput, ...]:
    """Reads shapes and what is stated about them from a tree.

    Args:
      params: tree of arrays or shapes; absent leaves (None, `optax.MaskedNode`) have
        no entry.
      matrix_axes: tree of `MatrixAxes` or None like the params, or a function from
        params to it.
      param_specs: tree of `PartitionSpec` like the params, None for replicated.

    Raises:
      ValueError: a leaf is not real floating-point, or its axes do not fit.
    """
    stated_axes = matrix_axes(params) if callable(matrix_axes) else matrix_axes
    axes_of = _by_path(stated_axes, MatrixAxes)
    spec_of = _by_path(param_specs, PartitionSpec)
    inputs = []
    for path, leaf in jax.tree.leaves_with_path(params):
        key, name = jax.tree_util.keystr(path), leaf_name(path)
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"Shampoo optimizes real floating-point leaves only, but leaf {name!r} "
                f"is {dtype}; route it elsewhere with optax.partition"
            )
        axes = axes_of.get(key)
        if axes is not None:
            check_axes(name, leaf.shape, axes)
            axes = None if axes.kind in VECTOR_KINDS else axes
        inputs.append(
            LeafInput(
                key,
                name,
                tuple(leaf.shape),
                str(jnp.promote_types(dtype, jnp.float32)),
                axes,
                spec_of.get(key, PartitionSpec()),
            )
        )
    return tuple(inputs)


def _by_path(tree: Any, kind: type) -> dict[str, Any]:
    pairs = jax.tree.leaves_with_path(tree, is_leaf=lambda node: isinstance(node, kind))
    return {jax.tree_util.keystr(path): leaf for path, leaf in pairs}


def split_leaf(leaf: LeafInput, options: Options) -> tuple[int, tuple[int, ...]]:
    """Number of independent parameters of a leaf and the merged dims of each."""
    batch, shape = 1, leaf.shape
    if leaf.axes is not None:
        sizes = [
            math.prod(leaf.shape[axis] for axis in axes)
            for axes in (
                leaf.axes.batch_axes,
                leaf.axes.output_axes,
                leaf.axes.reduction_axes,
            )
        ]
        batch, shape = sizes[0], (sizes[1], sizes[2])
    if batch == 0:
        return 0, (0,)
    return batch, merge_small_dims(
        shape, options.max_preconditioner_dim, options.target_dimensionality
    )


def modes_and_exponents(
    leaf: LeafInput, merged: tuple[int, ...], options: Options
) -> tuple[tuple[int, ...], tuple[Fraction, ...]]:
    """Which merged dims get a factor, and its inverse exponent.

    Raises:
      ValueError: spectral descent on a leaf that is no matrix, or an exponent that
        the method cannot take.
    """
    preconditioner, order = options.preconditioner, len(merged)
    if isinstance(preconditioner, Spectral):
        if order != 2:
            raise ValueError(
                "Spectral() needs matrices, but the blocks of leaf "
                f"{leaf.name!r} of shape {leaf.shape} have {order} dims; route it "
                "elsewhere with optax.partition"
            )
        return (), ()
    if isinstance(preconditioner, (Sign, Diagonal)) or order == 0:
        return (), ()
    long_dims = sum(size != 1 for size in leaf.shape)
    if not options.precondition_1d and long_dims <= 1:
        return (), ()
    exponents = {dim: Fraction(1, 2 * order) for dim in range(order)}
    if isinstance(preconditioner, EigenvalueCorrected):
        ignored = dict(preconditioner.ignored_basis_change_dims or ())
        for dim in ignored.get(order, ()):
            del exponents[dim]
    else:
        override = dict(preconditioner.inverse_exponent_override or ()).get(order)
        if isinstance(override, Fraction):
            exponents = dict.fromkeys(exponents, override)
        elif override is not None:
            exponents.update(override)
        exponents = {dim: e for dim, e in exponents.items() if e}
    newton = isinstance(getattr(preconditioner, "method", None), CoupledNewton)
    for exponent in exponents.values():
        if newton and exponent.numerator != 1:
            raise ValueError(
                f"CoupledNewton() computes roots 1/p, but the exponent of leaf "
                f"{leaf.name!r} is {exponent}; use CoupledHigherOrder(...) or Eigh()"
            )
    limit = options.skip_dims_larger_than
    if limit is not None:
        exponents = {dim: e for dim, e in exponents.items() if merged[dim] <= limit}
    return tuple(exponents), tuple(exponents.values())


def _block_numbers(
    batch: int,
    merged: tuple[int, ...],
    runs: list[tuple[tuple[int, int, int], ...]],
    choice: tuple[int, ...],
) -> tuple[int, ...]:
    """Numbers of the blocks of one grid: batch first, then last dim fastest."""
    counts = [sum(number for _, number, _ in dim_runs) for dim_runs in runs]
    ranges = []
    for dim_runs, part in zip(runs, choice, strict=True):
        first = sum(number for _, number, _ in dim_runs[:part])
        ranges.append(range(first, first + dim_runs[part][1]))
    numbers = []
    for index in range(batch):
        for position in itertools.product(*ranges):
            number = index
            for count, place in zip(counts, position, strict=True):
                number = number * count + place
            numbers.append(number)
    return tuple(numbers)


def _bucket_key(
    block_shape: tuple[int, ...], modes: tuple[int, ...], dtype: str
) -> str:
    key = "x".join(map(str, block_shape)) or "scalar"
    if len(modes) < len(block_shape):
        key += "_modes" + "".join(map(str, modes)) if modes else "_unfactored"
    return key if dtype == "float32" else f"{key}_{dtype}"


@functools.lru_cache(maxsize=256)
def make_layout(inputs: tuple[LeafInput, ...], options: Options) -> Layout:
    """Cuts leaves into blocks and sorts these into buckets and refresh stacks."""
    devices = options.num_devices
    leaves, members, slots = [], {}, {}
    for leaf in inputs:
        batch, merged = split_leaf(leaf, options)
        segments = []
        if 0 not in merged:
            modes, exponents = modes_and_exponents(leaf, merged, options)
            limit = options.max_preconditioner_dim
            runs = [chunk_runs(size, limit) for size in merged]
            for choice in itertools.product(*(range(len(r)) for r in runs)):
                parts = [r[part] for r, part in zip(runs, choice, strict=True)]
                block_shape = tuple(size for _, _, size in parts)
                key = _bucket_key(block_shape, modes, leaf.dtype)
                numbers = _block_numbers(batch, merged, runs, choice)
                segments.append(
                    Segment(
                        key,
                        slots.get(key, 0),
                        tuple(offset for offset, _, _ in parts),
                        tuple(number for _, number, _ in parts),
                        block_shape,
                        numbers,
                    )
                )
                slots[key] = slots.get(key, 0) + len(numbers)
                members[key] = (block_shape, leaf.dtype, modes, exponents)
        leaves.append(
            Leaf(
                leaf.path,
                leaf.name,
                leaf.shape,
                leaf.dtype,
                leaf.axes,
                leaf.spec,
                batch,
                merged,
                tuple(segments),
            )
        )
    buckets = []
    for key, (block_shape, dtype, modes, exponents) in members.items():
        padded = -(-slots[key] // devices) * devices
        buckets.append(
            Bucket(key, block_shape, dtype, modes, exponents, slots[key], padded)
        )
    buckets = tuple(buckets)
    return Layout(tuple(leaves), buckets, _refresh_stacks(buckets, options), options)


def may_pad(options: Options) -> bool:
    """Whether factors may be padded for a solve without changing its result.

    An eigendecomposition acts on the added block apart. Newton's scaling and every
    stopping test look at the whole matrix, the cut-off of a pseudo-inverse at the
    largest eigenvalue, and a few QR iterations of a singular matrix amplify rounding.
    """
    method = getattr(options.preconditioner, "method", None)
    if not isinstance(method, Eigh):
        return False
    return method.tolerance == 0.0 and not method.pseudo_inverse


def _refresh_stacks(
    buckets: tuple[Bucket, ...], options: Options
) -> tuple[RefreshStack, ...]:
    preconditioner = options.preconditioner
    if not isinstance(
        preconditioner, (RootInverse, Eigendecomposed, EigenvalueCorrected)
    ):
        return ()
    by_root = not isinstance(preconditioner.method, (Eigh, QR))
    # Staggered refreshes are shared out over the steps of a period as well.
    shares = options.num_devices * (options.staggered_period or 1)
    counts, members = {}, {}
    for bucket in buckets:
        for position, dim in enumerate(bucket.factor_dims):
            kind = bucket.exponents[position] if by_root else None
            of_kind = counts.setdefault(kind, {})
            of_kind[dim] = of_kind.get(dim, 0) + bucket.slots
            members.setdefault((kind, dim), []).append((bucket.key, position))
    stacks = []
    for kind, of_kind in counts.items():
        if may_pad(options):
            groups = merge_dims_for_devices(of_kind, shares)
        else:
            groups = tuple((dim, (dim,)) for dim in sorted(of_kind))
        for padded, dims in groups:
            together = [member for dim in dims for member in members[kind, dim]]
            stacks.append(RefreshStack(padded, tuple(together)))
    return tuple(stacks)
