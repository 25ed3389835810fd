"""What `plan_preconditioners` returns: a layout, what it costs, and how it prints."""

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping

import jax

from optim_jax.preconditioning.assignment import refresh_imbalance
from optim_jax.preconditioning.direction import init_state
from optim_jax.preconditioning.layout import Bucket, Layout
from optim_jax.preconditioning.matrix_functions import (
    QR,
    CoupledHigherOrder,
    CoupledNewton,
    NewtonSchulz,
)
from optim_jax.preconditioning.options import Hyperparameters
from optim_jax.preconditioning.preconditioners import (
    Eigendecomposed,
    EigenvalueCorrected,
    KLEigendecomposed,
    KLRootInverse,
    Spectral,
)

# FLOPs per d^3 of one refresh. Eigendecompositions take 9 to 25, at low utilisation;
# matrix iterations are counted at the iterations of a condition number near 1e4.
_EIGH_FLOPS = 25
_QR_FLOPS = 11
_REBUILD_FLOPS = 2
_NEWTON_ITERATIONS = 14


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the leaves of one tree are cut, stacked and refreshed, and at what cost.

    Frozen and hashable, so that it can be a static argument of `jax.jit`; printing it
    shows the numbers. A multiply-add counts as 2 FLOPs.

    Attributes:
      layout: leaves, buckets of equal blocks, and stacks that are refreshed together.
      hyperparameters: the numbers that a refresh by hand needs.
    """

    layout: Layout
    hyperparameters: Hyperparameters

    @property
    def num_params(self) -> int:
        """Scalars of the tree."""
        return sum(math.prod(leaf.shape) for leaf in self.layout.leaves)

    @property
    def num_blocks(self) -> int:
        """Blocks of all leaves."""
        return sum(bucket.slots for bucket in self.layout.buckets)

    @functools.cached_property
    def block_shapes(self) -> Mapping[tuple[int, ...], int]:
        """Shape of block -> number of blocks."""
        counts: collections.Counter[tuple[int, ...]] = collections.Counter()
        for bucket in self.layout.buckets:
            counts[bucket.block_shape] += bucket.slots
        return dict(counts)

    @functools.cached_property
    def factor_dims(self) -> Mapping[int, int]:
        """Size d of a factor -> number of factors."""
        counts: collections.Counter[int] = collections.Counter()
        for bucket in self.layout.buckets:
            for dim in bucket.factor_dims:
                counts[dim] += bucket.slots
        return dict(sorted(counts.items()))

    @property
    def num_factors(self) -> int:
        """Kronecker factors."""
        return sum(self.factor_dims.values())

    @property
    def factor_elements(self) -> int:
        """Scalars of all factors, stored square."""
        return sum(n * d * d for d, n in self.factor_dims.items())

    @property
    def packed_factor_elements(self) -> int:
        """Scalars of all factors, stored as upper triangles."""
        return sum(n * d * (d + 1) // 2 for d, n in self.factor_dims.items())

    @property
    def refresh_cost(self) -> int:
        """Sum of d^3 over the factors."""
        return sum(n * d**3 for d, n in self.factor_dims.items())

    @property
    def apply_flops(self) -> int:
        """FLOPs per step of one product along every preconditioned mode."""
        return sum(
            2 * bucket.slots * math.prod(bucket.block_shape) * sum(bucket.factor_dims)
            for bucket in self.layout.buckets
        )

    @property
    def statistics_flops(self) -> int:
        """FLOPs per step of the statistics."""
        kind = self.layout.options.preconditioner
        kl = isinstance(kind, (KLRootInverse, KLEigendecomposed))
        return self.apply_flops * (2 if kl else 1)

    @property
    def step_flops(self) -> int:
        """FLOPs of a step without refresh: statistics and direction."""
        kind = self.layout.options.preconditioner
        if isinstance(kind, Spectral):
            return sum(map(self._polar_flops, self.layout.buckets))
        rotations = 1
        if isinstance(kind, EigenvalueCorrected):
            rotations = 3  # the gradient, the filtered gradient, and back
        elif isinstance(kind, Eigendecomposed):
            rotations = 2
        return self.statistics_flops + rotations * self.apply_flops

    def _polar_flops(self, bucket: Bucket) -> int:
        kind = self.layout.options.preconditioner
        assert isinstance(kind, Spectral)
        large, small = max(bucket.block_shape), min(bucket.block_shape)
        if not isinstance(kind.method, NewtonSchulz):
            return _EIGH_FLOPS * bucket.slots * large * small**2
        once = 4 * large * small**2 + 2 * small**3
        return bucket.slots * kind.method.num_iterations * once

    @property
    def refresh_flops(self) -> int:
        """FLOPs of one refresh of everything, estimated."""
        kind = self.layout.options.preconditioner
        method = getattr(kind, "method", None)
        if not self.layout.stacks:
            return 0
        if isinstance(method, QR):
            return _QR_FLOPS * method.max_iterations * self.refresh_cost
        if isinstance(method, (CoupledNewton, CoupledHigherOrder)):
            extra = method.order - 2 if isinstance(method, CoupledHigherOrder) else 0
            total = 0
            for bucket in self.layout.buckets:
                for dim, exponent in zip(
                    bucket.factor_dims, bucket.exponents, strict=True
                ):
                    # X T, and T^p M by repeated squaring.
                    products = 2 + math.ceil(math.log2(exponent.denominator)) + extra
                    total += bucket.slots * 2 * products * dim**3
            return _NEWTON_ITERATIONS * total
        rebuilds = not isinstance(kind, (Eigendecomposed, EigenvalueCorrected))
        return (_EIGH_FLOPS + rebuilds * _REBUILD_FLOPS) * self.refresh_cost

    @property
    def state_bytes(self) -> int:
        """Bytes of the state over all devices, padding included."""
        state = jax.eval_shape(lambda: init_state(self.layout, self.hyperparameters))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    def overhead(self, tokens_per_step: float) -> float:
        """FLOPs of a step over those of the model, 6 per parameter and token."""
        return self.step_flops / (6.0 * self.num_params * tokens_per_step)

    def refresh_imbalance(self, num_devices: int) -> float:
        """Refresh work of the busiest device over a perfect split."""
        return refresh_imbalance(self.factor_dims, num_devices)

    @property
    def device_loads(self) -> tuple[int, ...]:
        """Refresh work of each device, in sums of d^3 with padding."""
        devices = self.layout.options.num_devices
        loads = [0] * devices
        for stack in self.layout.stacks:
            total = sum(self.layout.bucket[key].slots for key, _ in stack.members)
            share = -(-total // devices)
            for device in range(devices):
                mine = min(share, max(0, total - device * share))
                loads[device] += mine * stack.dim**3
        return tuple(loads)

    def __str__(self) -> str:
        options = self.layout.options
        lines = [
            f"{self.num_params:,} parameters in {len(self.layout.leaves)} leaves, "
            f"{self.num_blocks} blocks of {len(self.block_shapes)} shapes, "
            f"{self.num_factors} factors of {len(self.factor_dims)} sizes",
            "blocks     "
            + ", ".join(
                f"{count} of {'x'.join(map(str, shape)) or 'scalar'}"
                for shape, count in sorted(self.block_shapes.items(), reverse=True)
            ),
            f"factors    {self.factor_elements:,} scalars, "
            f"{self.factor_elements / max(self.num_params, 1):.3f} per parameter "
            f"({self.packed_factor_elements / max(self.num_params, 1):.3f} packed)",
            f"state      {self.state_bytes:,} bytes, "
            f"{self.state_bytes / max(self.num_params, 1):.2f} per parameter",
            f"each step  {self.step_flops:.3g} FLOPs, "
            f"{self.step_flops / max(self.num_params, 1):.0f} per parameter",
            f"a refresh  {self.refresh_flops:.3g} FLOPs (estimate)",
            "a step without refresh over a model's 6 FLOPs per parameter and token: "
            + ", ".join(
                f"{100 * self.overhead(tokens):.3g} % at {tokens:,} tokens"
                for tokens in (8_192, 131_072, 1_048_576)
            ),
        ]
        if options.num_devices > 1:
            loads = self.device_loads
            even = sum(loads) / len(loads) or 1.0
            lines.append(
                f"{options.num_devices} devices: refresh work of each over the mean "
                + ", ".join(f"{load / even:.2f}" for load in loads)
            )
        return "\n".join(lines)
