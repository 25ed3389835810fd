# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Shampoo, SOAP and KL-Shampoo
#
# Shampoo ([arXiv 2309.06497](https://arxiv.org/abs/2309.06497)) preconditions a matrix
# of parameters on both sides. It averages two small matrices of the gradient $G$,
#
# $$
# L \leftarrow \beta_2 L + (1-\beta_2)\, G G^\top, \qquad
# R \leftarrow \beta_2 R + (1-\beta_2)\, G^\top G, \qquad
# W \leftarrow W - \eta\, L^{-1/4} G R^{-1/4},
# $$
#
# and refreshes the roots every few steps only. SOAP
# ([arXiv 2409.11321](https://arxiv.org/abs/2409.11321)) runs Adam in the eigenbasis of
# $L$ and $R$ instead; KL-Shampoo ([arXiv 2509.03378](https://arxiv.org/abs/2509.03378))
# averages $L$ of a gradient that $R$ has preconditioned, and the other way round.
#
# This notebook shows in pictures (1) what the two sides do to one gradient, (2) why
# that helps, and when it does not, (3) how a model is cut into blocks, and what a step
# costs, (4) a small network, (5) how refreshes are spread over time and devices. It
# takes less than a minute on a CPU.

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
import time

# On CPUs XLA calls LAPACK from several threads; threads of its own would slow it down.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

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
# ## 1. One gradient
#
# A gradient of a 24 × 16 matrix whose singular values fall over three decades. The
# update of the very first Shampoo step has the same singular vectors, and all singular
# values equal: nothing that the gradient asks for is drowned by its largest direction.
# After more steps the factors are averages, and directions that keep coming back are
# damped.

# %%
rng = np.random.default_rng(0)
left = np.linalg.qr(rng.normal(size=(24, 16)))[0]
right = np.linalg.qr(rng.normal(size=(16, 16)))[0]
gradient = jnp.asarray((left * np.geomspace(1.0, 1e-3, 16)) @ right.T, jnp.float32)

# Small matrices would be merged into one vector: see section 3.
two_sided = {"target_dimensionality": 2, "b1": 0.0}


def first_update(transformation):
    """Update of the first step, without learning rate."""
    return transformation.update(gradient, transformation.init(gradient))[0]


updates = {
    "gradient": gradient,
    "Adam": first_update(optax.scale_by_adam()),
    "Shampoo": first_update(
        optim_jax.scale_by_shampoo(relative_epsilon=1e-7, **two_sided)
    ),
    "Shampoo, relative_epsilon = 1e-3": first_update(
        optim_jax.scale_by_shampoo(relative_epsilon=1e-3, **two_sided)
    ),
}

figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 2))
for name, update in updates.items():
    values = np.linalg.svd(np.asarray(update), compute_uv=False)
    axes[0].semilogy(values / values[0], "o-", ms=3, label=name)
axes[0].set(
    xlabel="singular value number", title="singular values, largest scaled to 1"
)
axes[0].legend(frameon=False, fontsize=8)
axes[1].imshow(updates["Shampoo"] @ updates["Shampoo"].T, cmap="RdBu", vmin=-1, vmax=1)
axes[1].set_title(r"$U U^\top$ of Shampoo's update: a projection", fontsize=10)
figure.tight_layout()
plt.show()

# %% [markdown]
# `relative_epsilon` says how small an eigenvalue of a factor may be before it counts as
# noise, as a share of the factor's Frobenius norm. The default, $10^{-6}$, is about
# what float32 can tell from zero.

# %% [markdown]
# ## 2. Why two sides help
#
# A quadratic of a matrix, $f(W) = \frac12 \mathrm{tr}(A W B W^\top)$, with curvatures
# $A$, $B$ over two decades each: the condition number of the whole problem is $10^4$.
# Gradients are noisy in a way that follows the curvature, as those of networks do. Once
# the axes of $A$ and $B$ are the coordinate axes, and once they are rotated. Every
# method gets the best of the same seven learning rates, each with the same cosine to
# zero.

# %%
ROWS, COLUMNS = 24, 16
STEPS = 60 if FAST else 300
RATES = np.geomspace(0.003, 3.0, 3 if FAST else 7)


def curvatures(rotated):
    """A and B."""
    generator = np.random.default_rng(1)
    sides = []
    for size in (ROWS, COLUMNS):
        basis = np.linalg.qr(generator.normal(size=(size, size)))[0]
        basis = basis if rotated else np.eye(size)
        sides.append((basis * np.geomspace(1.0, 1e-2, size)) @ basis.T)
    return [jnp.asarray(side, jnp.float32) for side in sides]


def quadratic(w, a, b):
    """Half of tr(A W B Wᵀ)."""
    return 0.5 * jnp.sum((a @ w @ b) * w)


METHODS = {
    "SGD": lambda rate: optax.sgd(rate, momentum=0.9),
    "Adam": lambda rate: optax.adam(rate, b2=0.95),
    "Shampoo": lambda rate: optim_jax.shampoo(
        rate, b2=0.95, target_dimensionality=2, precondition_frequency=10
    ),
    "SOAP": lambda rate: optim_jax.soap(rate, target_dimensionality=2),
    "KL-Shampoo": lambda rate: optim_jax.kl_shampoo(
        rate,
        b2=0.95,
        target_dimensionality=2,
        precondition_frequency=10,
        grafting="adam",
    ),
}


def descend(method, rotated, rate):
    """The quadratic after every step."""
    a, b = curvatures(rotated)
    decay = optax.cosine_decay_schedule(1.0, STEPS)
    optimizer = METHODS[method](lambda count: rate * decay(count))
    roots = [jnp.linalg.cholesky(side) for side in (a, b)]

    def step(carry, key):
        w, state = carry
        noise = roots[0] @ jax.random.normal(key, w.shape) @ roots[1].T
        updates, state = optimizer.update(a @ w @ b + 0.1 * noise, state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), quadratic(w, a, b)

    start = jnp.ones((ROWS, COLUMNS))
    keys = jax.random.split(jax.random.key(0), STEPS)
    return jax.lax.scan(step, (start, optimizer.init(start)), keys)[1]


figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
for plot, rotated in zip(axes, (False, True), strict=True):
    for method in METHODS:
        run = jax.jit(lambda rate, m=method, r=rotated: descend(m, r, rate))
        curves = np.stack([run(rate) for rate in RATES])
        best = int(np.nanargmin(curves[:, -1]))
        plot.semilogy(curves[best], label=f"{method}, {RATES[best]:.2g}")
    plot.set(xlabel="step", title="rotated axes" if rotated else "coordinate axes")
    plot.legend(frameon=False, fontsize=8, title="best learning rate")
axes[0].set_ylabel("loss")
figure.tight_layout()
plt.show()

# %% [markdown]
# Adam sees coordinates. Where they are the axes of the curvature it is ahead of all the
# others; rotate them, and its lead is gone. Shampoo, SOAP and KL-Shampoo look for the
# axes themselves and end where they ended before. Here the noise decides the end of a
# run, and the two sides gain nothing over Adam; section 4 has a problem where they do.

# %% [markdown]
# ## 3. Blocks, and what they cost
#
# Large sides are cut into blocks of at most `max_preconditioner_dim`; small neighbouring
# dims are *merged* as long as their product fits, so that a (16, 32) matrix is by
# default one vector with a full 512 × 512 factor. Who expects two sides sets
# `target_dimensionality=2`, or states the axes with `matrix_axes`.
# `plan_preconditioners` shows it without computing anything: here for a Llama of 25
# million parameters.

# %%
WIDTH, HIDDEN, LAYERS, VOCABULARY = 512, 1376, 6, 8192
shapes = {
    "embedding": (VOCABULARY, WIDTH),
    **{
        f"layer_{i}": {
            **{name: (WIDTH, WIDTH) for name in ("query", "key", "value", "output")},
            "gate": (WIDTH, HIDDEN),
            "up": (WIDTH, HIDDEN),
            "down": (HIDDEN, WIDTH),
            "norm": (WIDTH,),
        }
        for i in range(LAYERS)
    },
}
params_like = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    shapes,
    is_leaf=lambda node: isinstance(node, tuple),
)
plan = optim_jax.plan_preconditioners(params_like, max_preconditioner_dim=1024)
print(plan)

# %%
figure, (cost, load) = plt.subplots(1, 2, figsize=(10, 3.4))
tokens = np.geomspace(2**12, 2**22, 60)
for block in (256, 512, 1024):
    plans = {
        "Shampoo": optim_jax.plan_preconditioners(
            params_like, max_preconditioner_dim=block
        ),
        "SOAP": optim_jax.plan_preconditioners(
            params_like,
            max_preconditioner_dim=block,
            preconditioner=optim_jax.EigenvalueCorrected(),
        ),
    }
    for (name, of_method), line in zip(plans.items(), ("-", "--"), strict=True):
        cost.loglog(
            tokens,
            [100 * of_method.overhead(t) for t in tokens],
            line,
            color=plt.cm.viridis(np.log2(block / 256) / 2.5),
            label=f"{name}, blocks of {block}",
        )
cost.axhline(10, color="k", lw=1, ls=":")
cost.set(
    xlabel="tokens per step",
    ylabel="% of the model's FLOPs",
    title="statistics and direction, refresh apart",
)
cost.legend(frameon=False, fontsize=7)
devices = np.arange(1, 65)
load.plot(devices, [plan.refresh_imbalance(int(d)) for d in devices], color="tab:red")
load.set(
    xlabel="devices",
    ylabel="busiest device / perfect split",
    title="a refresh, spread over devices",
)
load.set_ylim(0.9, None)
figure.tight_layout()
plt.show()

# %% [markdown]
# The products of a step cost about $8b$ FLOPs per parameter for $b \times b$ blocks,
# whatever the batch, against $6$ per parameter *and token* for the model: Shampoo is
# cheap where a step sees many tokens, and dear on small batches.

# %% [markdown]
# ## 4. A small network
#
# A student learns from a noisy teacher, 16 → 48 → 48 → 4 with tanh, on inputs whose
# scales differ. Learning rates are chosen on one seed, results are from others.

# %%
NET_STEPS = 100 if FAST else 800
WIDTHS = (16, 48, 48, 4)
NET_RATES = np.geomspace(0.002, 0.128, 3 if FAST else 5)
SEEDS = (1,) if FAST else (1, 2, 3)
NET_METHODS = {name: METHODS[name] for name in ("Adam", "Shampoo", "SOAP")}
NET_METHODS["GPA + SOAP"] = lambda rate: optim_jax.gpa(
    METHODS["SOAP"](rate), mu_x=optim_jax.mu_x_from_inner_steps(16), mu_y=0.7
)


def network(key, gain):
    """Matrices of one network."""
    keys = jax.random.split(key, len(WIDTHS) - 1)
    shapes = zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    return [jnp.sqrt(gain / m) * jax.random.normal(k, (m, n)) for k, m, n in shapes]


def apply_network(params, inputs):
    """tanh between the layers, none after the last."""
    for matrix in params[:-1]:
        inputs = jnp.tanh(inputs @ matrix)
    return inputs @ params[-1]


def train(method, rate, seed):
    """Error on 1,024 points without noise, 20 times on the way, at x for GPA."""
    keys = jax.random.split(jax.random.key(seed), 4)
    teacher, student = network(keys[0], 4.0), network(keys[1], 1.0)
    scales = 2.0 * jnp.arange(1, WIDTHS[0] + 1) ** -0.75
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, NET_STEPS // 20, NET_STEPS)
    optimizer = NET_METHODS[method](lambda count: rate * shape(count))
    held_out = scales * jax.random.normal(keys[2], (1024, WIDTHS[0]))

    def loss(params, key):
        points, noise = jax.random.split(key)
        inputs = scales * jax.random.normal(points, (64, WIDTHS[0]))
        targets = apply_network(teacher, inputs)
        targets += 0.3 * jax.random.normal(noise, targets.shape)
        return jnp.mean((apply_network(params, inputs) - targets) ** 2)

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    def to_next_check(carry, keys):
        (params, state), _ = jax.lax.scan(step, carry, keys)
        x = params
        if method.startswith("GPA"):
            x = optim_jax.gpa_eval_params(state, params)
        error = apply_network(x, held_out) - apply_network(teacher, held_out)
        return (params, state), jnp.mean(error**2)

    step_keys = jax.random.split(keys[3], NET_STEPS).reshape(20, -1)
    return jax.lax.scan(to_next_check, (student, optimizer.init(student)), step_keys)[1]


finals = {}
figure, (left_plot, right_plot) = plt.subplots(1, 2, figsize=(10, 3.6))
checks = np.arange(1, 21) * (NET_STEPS // 20)
for method in NET_METHODS:
    run = jax.jit(lambda rate, seed, m=method: train(m, rate, seed))
    tuning = [float(run(rate, 0)[-1]) for rate in NET_RATES]
    rate = NET_RATES[int(np.nanargmin(tuning))]
    curves = np.stack([run(rate, seed) for seed in SEEDS])
    finals[method] = curves[:, -1]
    left_plot.semilogy(checks, curves.mean(axis=0), label=f"{method}, {rate:.3g}")
    right_plot.loglog(NET_RATES, tuning, "o-", label=method)
left_plot.set(xlabel="step", ylabel="error", title=f"mean of {len(SEEDS)} seeds")
left_plot.legend(frameon=False, title="learning rate")
right_plot.set(xlabel="peak learning rate", title="final error, tuning seed")
right_plot.legend(frameon=False)
figure.tight_layout()
plt.show()
for method, values in finals.items():
    ratio = values / finals["Adam"]
    print(f"{method:12} error {values.mean():.4f}, {ratio.mean():.2f} of Adam's")

# %% [markdown]
# One small problem and few seeds: it shows that the parts fit, not which method is
# best. `python -m experiments.reproduce shampoo_llama` compares them on a language
# model, with equal tuning budgets and standard errors.

# %% [markdown]
# ## 5. Refreshes without stalls, blocks on many devices
#
# With `refresh="cond"` every so many steps all roots are computed at once, and that step
# is slow. `"staggered"` computes a share in every step. `"external"` computes nothing:
# you call `refresh_preconditioners(state, plan)`, when you like.

# %%
big = {f"w{i}": jnp.zeros((256, 256)) for i in range(4 if FAST else 20)}
big_gradients = jax.tree.map(
    lambda leaf: jax.random.normal(jax.random.key(0), leaf.shape), big
)


def step_seconds(refresh, steps=30):
    """Seconds of every update."""
    optimizer = optim_jax.shampoo(
        1e-3, precondition_frequency=10, refresh=refresh, target_dimensionality=2
    )
    state = optimizer.init(big)
    step = jax.jit(optimizer.update, donate_argnums=1)
    step = step.lower(big_gradients, state, big).compile()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        _, state = jax.block_until_ready(step(big_gradients, state, big))
        seconds.append(time.perf_counter() - started)
    return np.array(seconds), state


figure, plot = plt.subplots(figsize=(10, 2.8))
for refresh in ("cond", "staggered", "external"):
    seconds, state = step_seconds(refresh)
    plot.step(np.arange(1, 31), 1e3 * seconds, where="mid", label=refresh)
plot.set(xlabel="step", ylabel="ms", title="time of an update", yscale="log")
plot.legend(frameon=False)
plt.show()

# %% [markdown]
# Given a mesh, blocks and their factors are spread over its devices, the solvers run on
# each device alone, and the directions are gathered once per step; the result is the
# same as on one:
#
# ```python
# mesh = jax.make_mesh((jax.device_count(),), ("data",))
# optimizer = optim_jax.soap(1e-3, mesh=mesh)
# ```
#
# Use `JAX_NUM_CPU_DEVICES=8` to try it on a CPU. Failed or non-finite roots keep their
# last good value, leaves with a non-finite gradient are left alone, and both are counted:

# %%
optimizer = optim_jax.soap(1e-3, target_dimensionality=2, precondition_frequency=1)
update = jax.jit(optimizer.update)
state = optimizer.init(big)
_, state = update(big_gradients, state, big)
updates, state = update(big_gradients | {"w0": jnp.nan * big["w0"]}, state, big)
print("largest update of w0", float(jnp.abs(updates["w0"]).max()))
print(optim_jax.check_preconditioners(state))
