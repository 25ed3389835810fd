"""The problem as the device functions see it: sums over samples, and the options."""

import dataclasses
import fractions
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from optim_jax.quasi_newton.line_search import make_line_search, needs_slope
from optim_jax.quasi_newton.progressive_batching.options import Options
from optim_jax.quasi_newton.progressive_batching.sample_sums import SampleSums

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Static parts of an iteration.

    Attributes:
      sums: evaluates ranges of samples.
      options: the solver's options, with sizes filled in.
    """

    sums: SampleSums
    options: Options

    @property
    def population(self) -> int | None:
        """N, None for a stream."""
        return self.sums.population

    @property
    def dtype(self) -> Any:
        """Dtype of all statistics."""
        return self.sums.dtype

    @property
    def always_full(self) -> bool:
        """Whether the very first batch is all data, so that nothing is ever drawn."""
        return self.options.first_batch == self.population

    @property
    def groups(self) -> int:
        """Groups that are evaluated apart; 1 where no option needs them."""
        if self.always_full or not self.options.uses_groups:
            return 1
        return self.options.groups

    @property
    def shares_samples(self) -> bool:
        """Whether the next sample keeps a part of the last one (MB)."""
        return self.options.overlap == "multi" and not self.always_full

    @property
    def needs_slope(self) -> bool:
        """Whether every trial of the line search computes a gradient."""
        return needs_slope(self.options.line_search)

    @functools.cached_property
    def search(self) -> Any:
        """The line search with its options."""
        options = self.options
        return make_line_search(
            options.line_search,
            c1=options.c1,
            c2=options.c2,
            factor=options.factor,
            max_trials=options.max_line_search,
        )

    def is_full(self, size: jax.Array) -> jax.Array:
        """Whether a sample is all data."""
        if self.population is None:
            return jnp.zeros((), bool)
        return size == self.population

    def either(
        self, size: jax.Array, of_all: Callable[[], T], of_sample: Callable[[], T]
    ) -> T:
        """Calls the first function for a batch of all data, else the second.

        Where only one of the cases can occur, the other is not compiled.
        """
        if self.always_full:
            return of_all()
        if self.population is None:
            return of_sample()
        return lax.cond(self.is_full(size), of_all, of_sample)

    def overlap_size(self, size: jax.Array) -> jax.Array:
        """ceil(overlap_ratio * b), int32."""
        # In exact arithmetic: the ratio is a fraction with a small denominator.
        numerator, denominator = _fraction(self.options.overlap_ratio)
        whole, rest = size // denominator, size % denominator
        return (whole * numerator + -(-rest * numerator // denominator)).astype(
            jnp.int32
        )

    def variance_start(self, size: jax.Array) -> jax.Array:
        """First position of the samples whose variance is taken, up to the last.

        Samples kept from the last iteration come first and influenced the point, so
        the last positions are preferred.
        """
        limit = self.options.variance_samples
        if limit is None:
            return jnp.zeros_like(size)
        return jnp.maximum(size - limit, 0)

    def grown_size(self, size: jax.Array) -> jax.Array:
        """The size times the growth cap, at most `max_batch`."""
        cap, most = self.options.growth_cap, self.options.largest_batch
        if math.isinf(cap):
            return jnp.full_like(size, most)
        # In floating point, so that the product cannot overflow an int32.
        wanted = jnp.ceil(size.astype(jnp.float32) * cap)
        return jnp.minimum(wanted, most).astype(size.dtype)


def _fraction(ratio: float) -> tuple[int, int]:
    """The ratio as a fraction whose products with a remainder fit into an int32."""
    exact = fractions.Fraction(ratio).limit_denominator(10_000)
    return exact.numerator, exact.denominator
