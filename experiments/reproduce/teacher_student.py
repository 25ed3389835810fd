r"""Teacher-student regression as one pure program, vectorised over runs.

A fixed random network (the teacher) labels fresh inputs, a network of the same shape
(the student) learns from them:

.. math::

  x_i \sim 2 i^{-3/4} \mathcal{N}(0, 1), \quad
  y = \mathrm{teacher}(x) + 0.3\, \mathcal{N}(0, I),

both 16 -> 32 -> 32 -> 4 with tanh and without biases. Teacher weights are
:math:`\mathcal{N}(0, 4 / \mathrm{fan\_in})`, the student starts at
:math:`\mathcal{N}(0, 1 / \mathrm{fan\_in})`. The loss is the mean squared error over
all entries; validation is on 1024 noiseless points. Teacher and validation points are
the problem and stay the same; a seed fixes where the student starts and every batch, so
two methods on one seed differ in nothing but the method.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optim_jax import gpa_eval_params

Params = tuple[jax.Array, ...]
# learning-rate schedule -> transformation
BuildOptimizer = Callable[[optax.Schedule], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Problem:
    """The sizes of the experiment; the defaults are the ones reported on."""

    widths: tuple[int, ...] = (16, 32, 32, 4)
    teacher_variance: float = 4.0  # times 1 / fan_in
    input_scale: float = 2.0
    input_decay: float = 0.75  # input i has scale input_scale * i**-input_decay
    noise: float = 0.3  # standard deviation added to the training targets
    batch_size: int = 64
    validation_size: int = 1024
    steps: int = 3000
    warmup: int = 150  # steps
    problem_seed: int = 2512  # of the teacher and the validation points
    check_every: int = 100  # steps between validations

    def __post_init__(self):
        if not 1 <= self.check_every <= self.steps or self.steps % self.check_every:
            raise ValueError(
                "steps must be a multiple of check_every, got "
                f"steps={self.steps}, check_every={self.check_every}"
            )
        if not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"warmup must lie in [0, steps={self.steps}), got {self.warmup}"
            )

    @property
    def checks(self) -> tuple[int, ...]:
        """The steps after which the validation loss is taken."""
        return tuple(range(self.check_every, self.steps + 1, self.check_every))


class Method(NamedTuple):
    """How a configuration trains, besides its peak learning rate."""

    build: BuildOptimizer
    averages: bool  # validated at x, the evaluated sequence of an averaging method
    decays: bool = True  # cosine to zero after the warm-up; False: constant


class Curves(NamedTuple):
    """Validation losses, [learning rates, seeds, checks] from `run_grid`."""

    loss: Any  # at x
    loss_y: Any  # at the training parameters; equals `loss` without averaging


class _Data(NamedTuple):
    teacher: Params
    student: Params
    batch_key: jax.Array
    inputs: jax.Array  # validation, [points, inputs]
    targets: jax.Array  # validation, noiseless


def forward(params: Params, inputs: jax.Array) -> jax.Array:
    """The network: tanh between layers, none after the last."""
    for kernel in params[:-1]:
        inputs = jnp.tanh(inputs @ kernel)
    return inputs @ params[-1]


def mean_squared_error(
    params: Params, inputs: jax.Array, targets: jax.Array
) -> jax.Array:
    """Mean over all entries of the squared error."""
    return jnp.mean(jnp.square(forward(params, inputs) - targets))


def _sample_network(problem: Problem, key: jax.Array, variance: float) -> Params:
    keys = jax.random.split(key, len(problem.widths) - 1)
    shapes = zip(problem.widths[:-1], problem.widths[1:], strict=True)
    return tuple(
        jnp.sqrt(variance / fan_in) * jax.random.normal(layer_key, (fan_in, fan_out))
        for layer_key, (fan_in, fan_out) in zip(keys, shapes, strict=True)
    )


def _sample_inputs(problem: Problem, key: jax.Array, rows: int) -> jax.Array:
    index = jnp.arange(1, problem.widths[0] + 1, dtype=jnp.float32)
    scale = problem.input_scale * index**-problem.input_decay
    return scale[None, :] * jax.random.normal(key, (rows, problem.widths[0]))


def _sample_data(problem: Problem, seed: jax.Array) -> _Data:
    teacher_key, points_key = jax.random.split(jax.random.key(problem.problem_seed))
    # Folded in, so that no run seed repeats the problem's own keys.
    student_key, batch_key = jax.random.split(jax.random.fold_in(points_key, seed))
    teacher = _sample_network(problem, teacher_key, problem.teacher_variance)
    inputs = _sample_inputs(problem, points_key, problem.validation_size)
    return _Data(
        teacher=teacher,
        student=_sample_network(problem, student_key, 1.0),
        batch_key=batch_key,
        inputs=inputs,
        targets=forward(teacher, inputs),
    )


def sample_batch(
    problem: Problem, data: _Data, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The fresh batch of one step: inputs and noisy targets."""
    input_key, noise_key = jax.random.split(jax.random.fold_in(data.batch_key, step))
    inputs = _sample_inputs(problem, input_key, problem.batch_size)
    clean = forward(data.teacher, inputs)
    return inputs, clean + problem.noise * jax.random.normal(noise_key, clean.shape)


def learning_rate_schedule(
    problem: Problem, peak: jax.Array | float, *, decays: bool
) -> optax.Schedule:
    """Linear warm-up `(t + 1) / warmup`, then cosine to zero or constant."""
    warmup = max(problem.warmup, 1)

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum((count + 1.0) / warmup, 1.0)
        if not decays:
            return peak * rise
        progress = (count + 1.0 - warmup) / (problem.steps - problem.warmup)
        fall = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
        return peak * rise * fall

    return schedule


def run(
    problem: Problem, method: Method, learning_rate: jax.Array, seed: jax.Array
) -> Curves:
    """Trains one student and returns its validation curves; a pure function."""
    data = _sample_data(problem, seed)
    schedule = learning_rate_schedule(problem, learning_rate, decays=method.decays)
    optimizer = method.build(schedule)

    def step(carry, count):
        params, state = carry
        inputs, targets = sample_batch(problem, data, count)
        gradients = jax.grad(mean_squared_error)(params, inputs, targets)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    def until_check(carry, first):
        counts = first + jnp.arange(problem.check_every)
        (params, state), _ = jax.lax.scan(step, carry, counts)
        evaluated = gpa_eval_params(state, params) if method.averages else params
        return (params, state), Curves(
            mean_squared_error(evaluated, data.inputs, data.targets),
            mean_squared_error(params, data.inputs, data.targets),
        )

    starts = jnp.asarray(problem.checks) - problem.check_every
    carry = (data.student, optimizer.init(data.student))
    return jax.lax.scan(until_check, carry, starts)[1]


def run_grid(
    problem: Problem,
    method: Method,
    learning_rates: list[float],
    seeds: list[int],
) -> Curves:
    """Trains every (learning rate, seed) pair of a method in one compiled program.

    The batches of a seed are drawn once and shared by all learning rates.

    Args:
      problem: sizes and schedule.
      method: optimizer and evaluation point.
      learning_rates: peaks.
      seeds: of the students and their batches.

    Returns:
      NumPy curves [learning rates, seeds, checks], non-finite losses as `inf`.
    """

    def one(rate, seed):
        return run(problem, method, rate, seed)

    over_rates = jax.vmap(one, in_axes=(0, None))
    over_seeds = jax.vmap(over_rates, in_axes=(None, 0), out_axes=1)
    curves = jax.jit(over_seeds)(
        jnp.asarray(learning_rates, jnp.float32), jnp.asarray(seeds, jnp.int32)
    )
    return Curves(
        *(
            np.where(np.isfinite(losses), losses, np.inf).astype(np.float64)
            for losses in map(np.asarray, curves)
        )
    )
