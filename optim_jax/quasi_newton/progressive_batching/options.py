"""The options of the progressive-batching solver, checked once and then static."""

import dataclasses
import math
import warnings

from optim_jax.quasi_newton.curvature_pairs import CURVATURES
from optim_jax.quasi_newton.hessian_products import FORMS
from optim_jax.quasi_newton.initial_step import FIRST_STEPS, INIT_STEPS
from optim_jax.quasi_newton.ipqn import VARIANCES
from optim_jax.quasi_newton.line_search import LINE_SEARCHES
from optim_jax.quasi_newton.sample_tests import SAMPLE_TESTS
from optim_jax.validation import check_choice

OVERLAPS = ("multi", "full")
EVALUATIONS = ("chunked", "bucketed")

LARGEST_DEFAULT_BATCH = 512
SMALLEST_DEFAULT_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `pb_lbfgs`, which documents them; hashable, so static under jit."""

    batch_size: int | None = None
    memory_size: int = 10
    theta: float = 0.9
    test: str = "ipqn_unbiased"
    groups: int = 8
    growth_cap: float = 2.0
    max_batch: int | None = None
    variance_samples: int | None = 1000
    finite_population: bool = False
    test_every: int = 1
    overlap: str = "multi"
    overlap_ratio: float = 0.25
    line_search: str = "armijo"
    c1: float = 1e-4
    c2: float = 0.9
    factor: float = 0.5
    max_line_search: int | None = None
    init_step: str = "variance"
    variance: str = "groups"
    first_step: str | None = None
    curvature: str = "relative"
    eps: float | None = None
    damping: bool = False
    form: str = "compact"
    memory_dtype: str | None = None
    evaluation: str = "chunked"
    chunk_size: int = 256
    tol: float = 1e-8
    max_epochs: float = 100.0
    max_iterations: int | None = None
    max_time: float | None = None
    has_aux: bool = False
    l2: float = 0.0
    work_weights: tuple[float, float, float] = (1.0, 1 / 3, 2 / 3)

    def __post_init__(self):
        check_choice("test", self.test, SAMPLE_TESTS)
        check_choice("overlap", self.overlap, OVERLAPS)
        check_choice("line_search", self.line_search, LINE_SEARCHES)
        check_choice("init_step", self.init_step, INIT_STEPS)
        check_choice("variance", self.variance, VARIANCES)
        check_choice("curvature", self.curvature, CURVATURES)
        check_choice("form", self.form, FORMS)
        check_choice("evaluation", self.evaluation, EVALUATIONS)
        if self.first_step is not None:
            check_choice("first_step", self.first_step, FIRST_STEPS)
        _check_count("memory_size", self.memory_size, 1)
        _check_count("groups", self.groups, 2)
        _check_count("test_every", self.test_every, 1)
        _check_count("chunk_size", self.chunk_size, 1)
        for name in ("max_line_search", "max_iterations"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name), 1)
        for name in ("batch_size", "max_batch", "variance_samples"):
            if getattr(self, name) is not None:
                # One sample has no variance.
                _check_count(name, getattr(self, name), 2)
        _check_range("theta", self.theta, "> 0", 0.0, math.inf)
        _check_range("c1", self.c1, "in (0, 1)", 0.0, 1.0)
        _check_range("c2", self.c2, f"in (c1, 1) = ({self.c1:g}, 1)", self.c1, 1.0)
        _check_range("factor", self.factor, "in (0, 1)", 0.0, 1.0)
        if not self.max_epochs > 0.0:
            raise ValueError(f"max_epochs must be > 0, got {self.max_epochs}")
        if self.eps is not None:
            _check_range("eps", self.eps, "> 0", 0.0, math.inf)
        if self.max_time is not None:
            _check_range("max_time", self.max_time, "> 0", 0.0, math.inf)
        if not 0.0 < self.overlap_ratio <= 0.5:
            raise ValueError(
                f"overlap_ratio must be in (0, 0.5], got {self.overlap_ratio}"
            )
        if not self.growth_cap > 1.0:
            raise ValueError(f"growth_cap must be > 1, got {self.growth_cap}")
        for name in ("tol", "l2"):
            value = getattr(self, name)
            if not (value >= 0.0 and math.isfinite(value)):
                raise ValueError(f"{name} must be finite and >= 0, got {value}")

    @property
    def first_batch(self) -> int:
        """`batch_size` once `sized` has filled it in."""
        assert self.batch_size is not None
        return self.batch_size

    @property
    def largest_batch(self) -> int:
        """`max_batch` once `sized` has filled it in."""
        assert self.max_batch is not None
        return self.max_batch

    @property
    def uses_groups(self) -> bool:
        """Whether group means of the gradient are needed."""
        from_groups = self.variance == "groups" and (
            self.init_step in ("variance", "variance_unbiased") or self.test == "norm"
        )
        return from_groups or self.test == "ipqn_unbiased"

    @property
    def uses_gradient_variance(self) -> bool:
        """Whether Var(g_i) is needed, for the step or for the norm test."""
        return (
            self.init_step in ("variance", "variance_unbiased") or self.test == "norm"
        )

    def sized(self, population: int | None) -> "Options":
        """Fills in what depends on the number of samples.

        Args:
          population: N; None for a stream.

        Returns:
          Options with `batch_size`, `max_batch` and `groups` that fit.

        Raises:
          ValueError: fewer than two samples, more groups than samples in a batch, or
            a stream without `max_batch` or a limit on the iterations.
        """
        if population is None:
            return self._sized_for_stream()
        if population < 2:
            raise ValueError(
                f"data must hold at least 2 samples, got {population}: the variance "
                "of one sample is undefined"
            )
        batch = self.batch_size
        largest = population if self.max_batch is None else self.max_batch
        if batch is None:
            batch = min(population, largest, default_batch_size(population))
        elif batch > population:
            warnings.warn(
                f"batch_size {batch} is more than the {population} samples there are; "
                f"using {population}",
                stacklevel=3,
            )
            batch = population
        return self._checked(batch, min(largest, population))

    def _sized_for_stream(self) -> "Options":
        if self.max_batch is None:
            raise ValueError(
                "a stream has no size: give max_batch, the largest batch allowed"
            )
        if self.max_iterations is None and self.max_time is None:
            raise ValueError(
                "a stream has no epochs: give max_iterations or max_time to end the run"
            )
        if self.finite_population:
            raise ValueError(
                "finite_population needs data of a known size, got a stream"
            )
        batch = self.batch_size
        if batch is None:
            batch = min(LARGEST_DEFAULT_BATCH, self.max_batch)
        return self._checked(batch, self.max_batch)

    def _checked(self, batch: int, largest: int) -> "Options":
        if batch > largest:
            raise ValueError(
                f"max_batch must be >= batch_size, got {largest} < {batch}"
            )
        if self.uses_groups and self.groups > batch:
            raise ValueError(
                f"groups must be <= batch_size, got {self.groups} groups for "
                f"{batch} samples"
            )
        return dataclasses.replace(self, batch_size=batch, max_batch=largest)


def default_batch_size(population: int) -> int:
    """Initial batch: an eighth of the data as a power of two, within [32, 512]."""
    wanted = max(population / 8, SMALLEST_DEFAULT_BATCH)
    return min(LARGEST_DEFAULT_BATCH, 2 ** round(math.log2(wanted)))


def _check_count(name: str, value: int, smallest: int) -> None:
    if isinstance(value, bool) or int(value) != value or value < smallest:
        raise ValueError(f"{name} must be an integer >= {smallest}, got {value!r}")


def _check_range(
    name: str, value: float, allowed: str, lower: float, upper: float
) -> None:
    if not lower < value < upper:
        raise ValueError(f"{name} must be {allowed}, got {value}")
