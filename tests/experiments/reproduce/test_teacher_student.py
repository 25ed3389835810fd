import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.reproduce import teacher_student
from experiments.reproduce.teacher_student import (
    Method,
    Problem,
    learning_rate_schedule,
    mean_squared_error,
    run_grid,
    sample_batch,
)
from experiments.reproduce.teacher_student_arms import ARMS, method_of
from experiments.reproduce.tuning import require_equal_budgets
from optim_jax import gpa_eval_params

TINY = Problem(
    widths=(3, 4, 2),
    batch_size=5,
    validation_size=8,
    steps=6,
    warmup=2,
    check_every=3,
)


def plain_loop(problem, method, rate, seed):
    """The same run step by step, without scan or vmap."""
    data = jax.jit(lambda: teacher_student._sample_data(problem, seed))()
    schedule = learning_rate_schedule(problem, rate, decays=method.decays)
    optimizer = method.build(schedule)

    @jax.jit
    def step(params, state, count):
        inputs, targets = sample_batch(problem, data, count)
        gradients = jax.grad(mean_squared_error)(params, inputs, targets)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def validate(params, state):
        x = gpa_eval_params(state, params) if method.averages else params
        return mean_squared_error(x, data.inputs, data.targets)

    params, losses = data.student, []
    state = optimizer.init(params)
    for count in range(problem.steps):
        params, state = step(params, state, count)
        if (count + 1) % problem.check_every == 0:
            losses.append(float(validate(params, state)))
    return losses


@pytest.mark.parametrize("arm", ["adamw", "diloco", "gpa", "schedule_free"])
def test_the_vectorised_program_equals_a_plain_loop(arm):
    settings = next(a for a in ARMS if a.name == arm).variants[0]
    if arm == "diloco":
        settings = {**settings, "inner_steps": 2}  # so that it synchronises
    method = method_of(arm, settings)
    rates, seeds = [0.01, 0.05], [1, 3]
    curves = run_grid(TINY, method, rates, seeds)
    assert curves.loss.shape == (2, 2, 2)
    for i, j in ((0, 1), (1, 0)):
        expected = plain_loop(TINY, method, rates[i], seeds[j])
        np.testing.assert_allclose(curves.loss[i, j], expected, rtol=2e-5)


def test_without_averaging_x_is_y_and_the_ema_arm_trains_like_adam():
    rates, seeds = [0.05], [1, 2]
    adam = run_grid(TINY, method_of("adamw", {"b1": 0.9}), rates, seeds)
    ema = run_grid(TINY, method_of("adamw_ema", {"H": 4}), rates, seeds)
    np.testing.assert_array_equal(adam.loss, adam.loss_y)
    np.testing.assert_allclose(ema.loss_y, adam.loss, rtol=1e-5)
    assert np.all(np.abs(ema.loss - adam.loss) > 1e-4)


def test_a_seed_fixes_the_student_and_the_batches_but_not_the_problem():
    one, two = (teacher_student._sample_data(TINY, seed) for seed in (1, 2))
    np.testing.assert_array_equal(one.inputs, two.inputs)
    np.testing.assert_array_equal(one.teacher[0], two.teacher[0])
    assert not np.array_equal(one.student[0], two.student[0])
    first, second = (sample_batch(TINY, data, 0)[0] for data in (one, two))
    assert not np.array_equal(first, second)


def test_training_targets_are_noisy_and_validation_targets_are_not():
    problem = Problem(batch_size=4096)
    data = teacher_student._sample_data(problem, 1)
    clean = teacher_student.forward(data.teacher, data.inputs)
    np.testing.assert_array_equal(data.targets, clean)
    inputs, targets = sample_batch(problem, data, 0)
    noise = targets - teacher_student.forward(data.teacher, inputs)
    np.testing.assert_allclose(jnp.std(noise), 0.3, rtol=0.03)
    index = np.arange(1, 17)
    np.testing.assert_allclose(jnp.std(inputs, axis=0), 2 * index**-0.75, rtol=0.06)


def test_the_schedule_rises_linearly_and_falls_to_zero():
    problem = Problem()
    schedule = learning_rate_schedule(problem, 2.0, decays=True)
    np.testing.assert_allclose(schedule(0), 2.0 / 150, rtol=1e-6)
    np.testing.assert_allclose(schedule(149), 2.0, rtol=1e-6)
    np.testing.assert_allclose(schedule(149 + 1425), 1.0, rtol=1e-5)
    np.testing.assert_allclose(schedule(2999), 0.0, atol=1e-6)
    constant = learning_rate_schedule(problem, 2.0, decays=False)
    assert float(constant(2999)) == 2.0


def test_a_diverged_run_ends_at_infinity():
    explode = Method(lambda rate: optax.sgd(1e30), False)
    curves = run_grid(TINY, explode, [1.0], [1])
    assert np.all(np.isinf(curves.loss[:, :, -1]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"steps": 250}, "steps must be a multiple of check_every"),
        ({"steps": 100, "warmup": 100}, r"warmup must lie in \[0, steps=100\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Problem(**sizes)


def test_all_arms_have_the_same_budget():
    require_equal_budgets(ARMS)
    assert [arm.name for arm in ARMS] == [
        "adamw",
        "adamw_ema",
        "schedule_free",
        "diloco",
        "gpa",
    ]
