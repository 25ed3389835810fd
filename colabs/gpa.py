# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Generalized Primal Averaging
#
# Generalized Primal Averaging (GPA, [arXiv 2512.17131](https://arxiv.org/abs/2512.17131))
# wraps any base optimizer and keeps three sequences instead of one:
#
# | | role | where it lives |
# | --- | --- | --- |
# | $z$ | the base optimizer's own sequence | optimizer state |
# | $y$ | where gradients are taken | the `params` that you hold |
# | $x$ | the smooth sequence: evaluate and ship this one | recovered from $y$ and $z$ |
#
# $$
# y_t = \mu_y x_t + (1-\mu_y) z_t, \qquad
# z_{t+1} = z_t + \mathrm{base}(\nabla f(y_t)), \qquad
# x_{t+1} = \mu_x x_t + (1-\mu_x) z_{t+1}
# $$
#
# This notebook shows in pictures (1) the three sequences, (2) the learning rates at
# which the pair of base momentum and averaging is stable, (3) a small network trained
# with AdamW, an average of AdamW, Schedule-Free, DiLoCo and GPA. It takes less than a
# minute on a CPU.

# %%
try:
    import google.colab  # noqa: F401

    ON_COLAB = True
except ImportError:
    ON_COLAB = False

if ON_COLAB:
    import subprocess
    import sys

    SOURCE = "optim-jax"  # or git+https://…, the address of the repository you use
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE], check=True)

# %%
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optim_jax

FAST = os.environ.get("FAST", "0") == "1"  # fewer steps and seeds, for tests
plt.rcParams.update(
    {"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False}
)

# %% [markdown]
# ## 1. Three sequences
#
# A quadratic whose second direction is 30 times steeper than its first, with noise on
# the gradients, and plain gradient descent as the base. `gpa` takes the base and gives
# back one more Optax transformation; `gpa_sequences` reads $x$, $y$, $z$ from its
# state.

# %%
CURVATURES = jnp.array([1.0, 30.0])
START = jnp.array([-4.0, 1.5])


def quadratic(w):
    """Half the sum of curvature times coordinate squared."""
    return 0.5 * jnp.sum(CURVATURES * w**2, axis=-1)


def sequences_on_quadratic(optimizer, steps, noise=4.0):
    """The sequences x, y, z, each [steps, 2]."""

    def step(carry, key):
        params, state = carry
        gradient = jax.grad(quadratic)(params)
        gradient += noise * jax.random.normal(key, gradient.shape)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), optim_jax.gpa_sequences(state, params)

    keys = jax.random.split(jax.random.key(1), steps)
    _, sequences = jax.lax.scan(step, (START, optimizer.init(START)), keys)
    return sequences


x, y, z = sequences_on_quadratic(
    optim_jax.gpa(optax.sgd(0.04), mu_x=0.9, mu_y=0.7), steps=120
)

# %%
COLORS = {"z": "0.65", "y": "tab:blue", "x": "tab:red"}


def draw_sequences(**sequences):
    """Paths over the level lines, and the loss along each."""
    figure, (plane, loss) = plt.subplots(1, 2, figsize=(10, 3.6))
    grid = jnp.stack(
        jnp.meshgrid(jnp.linspace(-4.5, 2, 90), jnp.linspace(-2, 2, 90)), axis=-1
    )
    plane.contour(
        grid[..., 0], grid[..., 1], quadratic(grid), levels=14, cmap="Greys", alpha=0.5
    )
    for name, path in sequences.items():
        plane.plot(path[:, 0], path[:, 1], color=COLORS[name], lw=1.2, label=name)
        loss.semilogy(quadratic(path), color=COLORS[name], lw=1.2, label=name)
    plane.plot(0, 0, "k+", ms=10)
    plane.set(xlabel="flat direction", ylabel="steep direction", title="paths")
    loss.set(xlabel="step", title="loss at each sequence")
    loss.legend(frameon=False)
    figure.tight_layout()


draw_sequences(z=z, y=y, x=x)
plt.show()

# %% [markdown]
# The base sequence $z$ jumps with the noise, $x$ glides, and the gradients are taken at
# $y$, in between. This is what the method does, **not** a proof that it helps: at a
# constant learning rate every average looks better than the raw sequence. With a
# learning rate that decays to zero, which GPA is meant to be used with, the raw
# sequence settles by itself and the comparison has to be made on a real problem.

# %% [markdown]
# ## 2. The window of stability
#
# On a quadratic without noise, with Adam's kind of momentum $\beta_1$ in the base, the
# recursion is linear and has a largest stable learning rate × curvature.
# `stability_limit` returns it. A slow average multiplies the limit of the base alone,
# $2(1+\beta_1)/(1-\beta_1)$, by about $1/(1-\mu_y)$. But if $\mu_x$ is too small for
# $\mu_y$ and $\beta_1$, the two momenta resonate and the pair is *less* stable.
#
# $\mu_x$ is easier to think of as a number of inner steps $H$, $\mu_x = 0.9^{1/H}$.

# %%
B1 = 0.9
BASE_LIMIT = 2 * (1 + B1) / (1 - B1)
INNER_STEPS = np.geomspace(1, 128, 8 if FAST else 29)
MU_YS = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95])

limits = np.array(
    [
        [
            optim_jax.stability_limit(B1, optim_jax.mu_x_from_inner_steps(h), mu_y)
            for h in INNER_STEPS
        ]
        for mu_y in MU_YS
    ]
)

# %% [markdown]
# The limit comes from eigenvalues. To see that it is true, the actual optimizers run
# below on curvature 1 at learning rate 60: above the limit of the base alone (38),
# below that of GPA with $H=32$, $\mu_y=0.7$ (126), far above that with $H=1$ (0.64).


# %%
def distances(optimizer, steps=300):
    """Distance to the minimum of w²/2 at the point that would be evaluated."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(params, state, params)  # gradient = params
        params = optax.apply_updates(params, updates)
        x = optim_jax.gpa_eval_params(state, params)
        return (params, state), jnp.abs(x)

    start = jnp.ones(())
    return jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[1]


momentum_base = optax.chain(optax.ema(B1, debias=False), optax.scale(-60.0))
arms_at_60 = {
    "base alone": optim_jax.gpa(momentum_base, mu_x=0.0),  # mu_x = 0: x = y = z
    "GPA, H = 1": optim_jax.gpa(momentum_base, mu_x=0.9),
    "GPA, H = 32": optim_jax.gpa(
        momentum_base, mu_x=optim_jax.mu_x_from_inner_steps(32)
    ),
}

figure, (window, run) = plt.subplots(1, 2, figsize=(10, 3.6))
for row, mu_y in zip(limits, MU_YS, strict=True):
    color = plt.cm.viridis((mu_y - 0.5) / 0.5)
    window.loglog(INNER_STEPS, row, color=color, label=rf"$\mu_y$ = {mu_y:g}")
window.axhline(BASE_LIMIT, color="k", ls=":", lw=1)
window.text(128, BASE_LIMIT / 1.2, "base alone", ha="right", va="top")
window.set(
    xlabel="inner steps H", ylabel="learning rate × curvature", title="largest stable"
)
window.legend(frameon=False, fontsize=8)
for name, optimizer in arms_at_60.items():
    run.semilogy(distances(optimizer), label=name)
run.set(xlabel="step", title="distance to the minimum at learning rate 60")
run.set_ylim(1e-4, 1e10)
run.legend(frameon=False)
figure.tight_layout()
plt.show()

# %% [markdown]
# With $\beta_1 = 0.9$: $\mu_y = 0.7$ wants $H \ge 4$, and $\mu_y = 0.9$ wants
# $H \ge 16$. `gpa_adamw` warns when it is built below the window.

# %% [markdown]
# ## 3. A small network
#
# A student network learns from a noisy teacher, both 16 → 32 → 32 → 4 with tanh. Every
# step draws a fresh batch of 64 points; the error is measured on 1,024 points without
# noise, at $x$ for every method that has one.

# %%
STEPS = 200 if FAST else 2000
CHECK_EVERY = STEPS // 20
WIDTHS = (16, 32, 32, 4)
INPUT_SCALE = 2.0 * np.arange(1, 17) ** -0.75


def apply_network(params, inputs):
    """tanh between the layers, none after the last."""
    for matrix in params[:-1]:
        inputs = jnp.tanh(inputs @ matrix)
    return inputs @ params[-1]


def squared_error(params, batch):
    """Mean over all entries."""
    inputs, targets = batch
    return jnp.mean((apply_network(params, inputs) - targets) ** 2)


class Problem(NamedTuple):
    """One seed: where to start and all the data."""

    start: list  # the student's matrices
    batches: tuple  # inputs [steps, 64, 16] and noisy targets [steps, 64, 4]
    validation: tuple  # inputs [1024, 16] and targets without noise


def draw_problem(seed):
    """Teacher, student and data of one seed."""
    rng = np.random.default_rng(seed)

    def network(gain):
        shapes = zip(WIDTHS[:-1], WIDTHS[1:], strict=True)
        return [
            np.float32(rng.normal(0, np.sqrt(gain / shape[0]), shape))
            for shape in shapes
        ]

    def data(*size, noise):
        inputs = np.float32(INPUT_SCALE * rng.normal(size=(*size, WIDTHS[0])))
        targets = np.asarray(apply_network(teacher, inputs))
        return inputs, targets + np.float32(noise * rng.normal(size=targets.shape))

    teacher = network(gain=4.0)
    return Problem(
        start=network(gain=1.0),
        batches=data(STEPS, 64, noise=0.3),
        validation=data(1024, noise=0.0),
    )


# %% [markdown]
# Five ways to train it, each an Optax chain that starts with gradient clipping. All
# have the same $\beta_2$, warm-up and number of steps, and all but Schedule-Free, which
# is meant to run without, have the same cosine schedule.

# %%
H = 16
MU_X = optim_jax.mu_x_from_inner_steps(H)
WARMUP = STEPS // 20


def cosine(learning_rate):
    """Linear warm-up, then a cosine to zero."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, WARMUP, STEPS)
    return lambda count: learning_rate * shape(count)


def warmup_only(learning_rate):
    """Linear warm-up, then constant."""
    shape = optax.linear_schedule(0.0, 1.0, WARMUP)
    return lambda count: learning_rate * shape(count)


def adamw(schedule, b1=0.9):
    """AdamW without decay: this problem does not overfit."""
    return optax.adamw(schedule, b1=b1, b2=0.99, weight_decay=0.0)


METHODS = {
    "AdamW": lambda lr: adamw(cosine(lr)),
    "AdamW + EMA": lambda lr: optax.chain(
        adamw(cosine(lr)), optim_jax.scale_by_primal_averaging(mu_x=MU_X, mu_y=0.0)
    ),
    "Schedule-Free": lambda lr: optim_jax.schedule_free(
        adamw(warmup_only(lr), b1=0.0), warmup_only(lr), mu_y=0.9
    ),
    "DiLoCo": lambda lr: optim_jax.single_worker_diloco(
        adamw(cosine(lr)), inner_steps=H, outer_learning_rate=0.7, outer_momentum=0.9
    ),
    "GPA": lambda lr: optim_jax.gpa(adamw(cosine(lr)), mu_x=MU_X, mu_y=0.7),
}


def eval_params(method, state, params):
    """Where a method is evaluated: plain AdamW at its parameters, the others at x."""
    return params if method == "AdamW" else optim_jax.gpa_eval_params(state, params)


# %% [markdown]
# One run is a pure function of learning rate and data, so all runs of a method are one
# `vmap`. The learning rate of each method is chosen on one seed and reported on five
# others.

# %%
LEARNING_RATES = jnp.array([0.004, 0.008, 0.016, 0.032, 0.064, 0.128])
TUNING_SEEDS, REPORTED_SEEDS = (1, 1) if FAST else (1, 5)
SEEDS = range(TUNING_SEEDS + REPORTED_SEEDS)
problems = jax.tree.map(lambda *leaves: np.stack(leaves), *map(draw_problem, SEEDS))


def train(method, learning_rate, problem):
    """Validation errors at every check, [20]."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), METHODS[method](learning_rate)
    )

    def step(carry, batch):
        params, state = carry
        gradients = jax.grad(squared_error)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    def to_next_check(carry, batches):
        (params, state), _ = jax.lax.scan(step, carry, batches)
        x = eval_params(method, state, params)
        return (params, state), squared_error(x, problem.validation)

    start = problem.start, optimizer.init(problem.start)
    batches = jax.tree.map(
        lambda leaf: leaf.reshape(-1, CHECK_EVERY, *leaf.shape[1:]), problem.batches
    )
    return jax.lax.scan(to_next_check, start, batches)[1]


def train_all(method):
    """Validation errors, [learning rate, seed, check]."""
    over_seeds = jax.vmap(lambda lr, problem: train(method, lr, problem), (None, 0))
    return jax.jit(jax.vmap(over_seeds, (0, None)))(LEARNING_RATES, problems)


errors = {method: np.asarray(train_all(method)) for method in METHODS}

# %%
best = {
    method: int(np.argmin(e[:, :TUNING_SEEDS, -1].mean(axis=1)))
    for method, e in errors.items()
}
reported = {method: e[:, TUNING_SEEDS:] for method, e in errors.items()}


def state_copies(method):
    """Size of the optimizer state in copies of the parameters."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), problems.start)
    state = METHODS[method](0.01).init(params)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(t)) for t in (state, params)]
    return sizes[0] / sizes[1]


def mean_and_error(values):
    """Mean over seeds and its standard error, as text."""
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.4f} ({spread:.4f})"


lines = ["method         best rate       error at x        / AdamW's   state / params"]
final = {method: e[best[method], :, -1] for method, e in reported.items()}
for method, values in final.items():
    lines.append(
        f"{method:14} {LEARNING_RATES[best[method]]:9.3f} {mean_and_error(values):>16} "
        f"{mean_and_error(values / final['AdamW']):>16} {state_copies(method):16.1f}"
    )
print("\n".join(lines))

# %%
figure, (curves, rates) = plt.subplots(1, 2, figsize=(10, 3.8))
checks = np.arange(1, STEPS // CHECK_EVERY + 1) * CHECK_EVERY
for method, e in reported.items():
    curves.semilogy(checks, e[best[method]].mean(axis=0), label=method)
    rates.loglog(LEARNING_RATES, e[:, :, -1].mean(axis=1), "o-", label=method)
curves.set(xlabel="step", ylabel="validation error at x", title="at the best rate")
rates.set(xlabel="peak learning rate", title="final error against learning rate")
rates.set_xticks(LEARNING_RATES, [f"{rate:g}" for rate in LEARNING_RATES], minor=False)
rates.minorticks_off()
rates.legend(frameon=False)
figure.tight_layout()
plt.show()

# %% [markdown]
# How to read this (mean over five seeds, standard error in brackets; the third column
# is the ratio seed by seed):
#
# * GPA ends below AdamW, **because it takes a larger learning rate**. At AdamW's own
#   best rate the two are about equal: who reuses the old rate sees no gain. That is
#   section 2 again.
# * AdamW evaluated at an exponential average with the same $\mu_x$ ends where AdamW
#   ends: what GPA gains is not the averaging of the result.
# * Schedule-Free also gains and needs no schedule. DiLoCo with these usual outer
#   settings wants a smaller rate, does not gain here, and keeps one more copy of the
#   parameters than GPA. Neither had settings of its own tuned; GPA had the one value
#   $H = 16$ chosen for this problem.
# * This is one small problem that suits the method. Others do not: noisy quadratics
#   with a tuned cosine schedule show no gain, and short runs of small transformers may
#   show none. Measure on your own problem, with a rate tuned for each method.

# %% [markdown]
# ## 4. In your own loop
#
# Everything after the base is one wrapper, and it comes last in the chain. Gradients
# are taken at the `params` you hold; validation, samples and the model that you ship
# use `gpa_eval_params`.

# %%
optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optim_jax.gpa(adamw(cosine(0.064)), mu_x=MU_X, mu_y=0.7),
)
problem = draw_problem(seed=7)
params = jax.tree.map(jnp.asarray, problem.start)
state = optimizer.init(params)


@jax.jit
def train_step(params, state, batch):
    """One ordinary Optax step."""
    gradients = jax.grad(squared_error)(params, batch)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


for batch in zip(*problem.batches, strict=True):
    params, state = train_step(params, state, batch)

at_y = squared_error(params, problem.validation)
at_x = squared_error(optim_jax.gpa_eval_params(state, params), problem.validation)
print(f"validation error at x {at_x:.4f}, at y {at_y:.4f}")
