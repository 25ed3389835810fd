# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Progressive-batching L-BFGS
#
# L-BFGS needs no learning rate and converges fast, but it wants gradients of all data,
# even far from the minimum, where a few samples would point the same way. *Progressive
# batching* ([arXiv 1802.05374](https://arxiv.org/abs/1802.05374)) starts with a small
# sample and asks after every gradient $g$ whether the step $-Hg$ can be trusted, $H$
# being the inverse Hessian that L-BFGS has put together. With the gradients $g_i$ of
# the $b$ samples it can if
#
# $$ \frac{\mathrm{Var}_i(g_i^\top H^2 g)}{b} \;\le\; \theta^2\, \lVert Hg\rVert^4 . $$
#
# If not, the sample grows to the size at which it could. Three parts make a method of
# it: this test; a line search whose first step follows from the variance of the
# gradients; and curvature pairs whose two gradients are taken over the same samples.
#
# This notebook shows (1) a fit and what it returns, (2) its way to the minimum, and the
# batches it took, (3) why the test here is not quite the one above, (4) the same method
# behind a data loader of your own, (5) its parts in an Optax chain. It takes less than
# a minute on a CPU.

# %%
try:
    import google.colab  # noqa: F401

    ON_COLAB = True
except ImportError:
    ON_COLAB = False

if ON_COLAB:
    import subprocess
    import sys

    SOURCE = "https://…"  # the address of the repository you use
    subprocess.run(["git", "clone", "-q", SOURCE, "optim-jax"], check=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "./optim-jax[experiments]"]
    subprocess.run(pip, check=True)

# %%
import os

# All programs here are small and run briefly: compiling them is most of the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer, load_digits

import optim_jax

jax.config.update("jax_enable_x64", True)  # gaps below 1e-7 are rounding in float32
FAST = os.environ.get("FAST", "0") == "1"  # fewer steps and repetitions, for tests
plt.rcParams.update({"figure.dpi": 80, "legend.frameon": False, "legend.fontsize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. A fit
#
# Logistic regression with a penalty of $\lambda = 1/N$ on 569 tumours with 30 measured
# features. The solver is given a function with **one loss per sample** and the data.
# Nothing is tuned: the first batch is an eighth of the data as a power of two.


# %%
def losses(w, batch):
    """One loss for each sample."""
    return jax.nn.softplus(-batch["y"] * (batch["x"] @ w))


features, benign = load_breast_cancer(return_X_y=True)
features = (features - features.mean(axis=0)) / features.std(axis=0)
features = np.column_stack([features, np.ones(len(features))])
tumours = {"x": jnp.asarray(features), "y": jnp.asarray(2.0 * benign - 1.0)}
N, DIM = features.shape

solver = optim_jax.pb_lbfgs(losses, tumours, l2=1 / N)
result = solver.run(jnp.zeros(DIM), jax.random.key(0))
print(f"{result.reason} after {result.n_iter} iterations, value {result.value:.12f}")
print(f"largest entry of the gradient of all data: {result.grad_norm:.1e}")
print(f"times all samples: {result.grad_evals / N:.1f} gradients,", end=" ")
print(f"{result.fn_evals / N:.1f} losses, {result.jvp_evals / N:.1f} derivatives")

# %% [markdown]
# `"certified"` means that the batch has come to hold all samples and that no entry of
# the gradient exceeds `tol`; where the solver cannot get there it says why, and never
# raises. `history` has a row for each iteration:

# %%
log = result.history
PAIRS = ("skipped", "stored", "damped")
print("      batch                first   accepted   curvature sample's")
print("  k   tested, used  ratio   step       step   pair       value      epochs")
for k in [*range(9), result.n_iter - 1]:
    pair = PAIRS[log.pair[k]]
    print(
        f"{k:3} {log.b_tested[k]:8} {log.b[k]:5} {log.ratio[k]:6.2f} "
        f"{log.alpha0[k]:6.2f} {log.alpha[k]:10.2f}   {pair:9} "
        f"{log.value[k]:.6f} {log.epochs[k]:8.2f}"
    )

# %% [markdown]
# A `ratio` above one asks for a larger batch, which the step is then made with; one
# iteration doubles it at most (`growth_cap`). With all samples there is nothing to test
# any more, and the method is L-BFGS with its natural first step of one. `value` is the
# loss of the *sample*: it need not fall from row to row.

# %% [markdown]
# ## 2. The way to the minimum
#
# Now 7,000 made-up samples with 50 features of unequal scale, from a first batch of 64,
# against full-batch L-BFGS (Optax's) and against SGD and Adam with batches of 32 at
# three learning rates each, none of which anybody knows beforehand. An epoch is one
# gradient of every sample, and a trial of Optax's line search costs a gradient too.

# %%
ROWS, COLUMNS, EPOCHS = 7000, 50, 15 if FAST else 40
SEEDS = (0,) if FAST else (0, 1, 2)
rng, scales = np.random.default_rng(0), np.logspace(0, 1, COLUMNS)
features = rng.normal(size=(ROWS, COLUMNS)) * scales / np.sqrt(np.mean(scales**2))
chances = 1 / (1 + np.exp(-features @ rng.normal(size=COLUMNS)))
labels = np.where(rng.random(ROWS) < chances, 1.0, -1.0)
samples = {"x": jnp.asarray(features), "y": jnp.asarray(labels)}
start = jnp.zeros(COLUMNS)


def objective(w, batch):
    """Mean loss with its penalty."""
    return losses(w, batch).mean() + 0.5 / ROWS * jnp.vdot(w, w)


values = jax.jit(jax.vmap(lambda w: objective(w, samples)))  # at many points
progressive = optim_jax.pb_lbfgs(losses, samples, batch_size=64, l2=1 / ROWS)
runs = []
for seed in SEEDS:
    state = progressive.init(start, jax.random.key(seed))
    points, infos = [start], []
    while int(state.reason) == 0:  # `run` does this on the device, and keeps no points
        state, info = progressive.step(state)
        points.append(state.params)
        infos.append(info)
    infos = jax.tree.map(lambda *rows: np.array(rows), *infos)
    epochs, work = np.append(0, infos.epochs), np.append(0, infos.work / ROWS)
    runs.append((values(jnp.stack(points)), (epochs, work), infos.b))

# %%
lbfgs = optax.lbfgs(memory_size=10)


def full_batch(carry, _):
    """An iteration of L-BFGS; returns the next value and the gradients it took."""
    w, state = carry
    whole = lambda w: objective(w, samples)  # noqa: E731
    value, gradient = optax.value_and_grad_from_state(whole)(w, state=state)
    updates, state = lbfgs.update(
        gradient, state, w, value=value, grad=gradient, value_fn=whole
    )
    trials = optax.tree.get(state, "num_linesearch_steps")
    return (optax.apply_updates(w, updates), state), (state[-1].value, trials)


def values_by_epoch(optimizer):
    """Values of a first-order method after each epoch."""

    def step(carry, rows):
        w, state = carry
        batch = jax.tree.map(lambda leaf: leaf[rows], samples)
        updates, state = optimizer.update(jax.grad(objective)(w, batch), state)
        return (optax.apply_updates(w, updates), state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, ROWS)[: ROWS // 32 * 32]
        carry, _ = jax.lax.scan(step, carry, order.reshape(-1, 32))
        return carry, objective(carry[0], samples)

    keys = jax.random.split(jax.random.key(0), EPOCHS)
    return jax.lax.scan(epoch, (start, optimizer.init(start)), keys)[1]


carry = start, lbfgs.init(start)
_, (full_values, trials) = jax.lax.scan(full_batch, carry, length=EPOCHS)
full_values = np.concatenate([values(start[None]), full_values])
full_epochs = np.concatenate([[0], 1 + np.cumsum(trials)])
FIRST_ORDER = {
    "SGD": ("tab:gray", optax.sgd, jnp.array([0.01, 0.1, 1.0])),
    "Adam": ("tab:olive", optax.adam, jnp.array([0.001, 0.01, 0.1])),
}
found = {
    name: jax.jit(jax.vmap(lambda rate, make=make: values_by_epoch(make(rate))))(rates)
    for name, (_, make, rates) in FIRST_ORDER.items()
}

# %%
least = min(float(run_values.min()) for run_values, *_ in runs)
figure, (gaps, sizes) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
for name, (color, _, rates) in FIRST_ORDER.items():
    for style, rate, by_epoch in zip((":", "--", "-"), rates, found[name], strict=True):
        label = f"{name}, rate {rate:g}"
        gaps.plot(range(1, EPOCHS + 1), by_epoch - least, style, c=color, label=label)
gaps.plot(full_epochs, full_values - least, "k.-", ms=4, label="L-BFGS, all samples")
for seed, (run_values, (epochs, _), batches) in zip(SEEDS, runs, strict=True):
    label = None if seed else "progressive batching"
    gaps.plot(epochs, run_values - least, ".-", ms=4, color="tab:red", label=label)
    sizes.plot(epochs[1:], batches, ".-", ms=5, label=f"seed {seed}")
sizes.axhline(ROWS, color="k", ls=":", lw=1)
gaps.set(yscale="log", xlim=(0, EPOCHS), ylim=(1e-9, 1), xlabel="epochs")
gaps.set(title="gap to the least value")
sizes.set(xscale="log", yscale="log", xlabel="epochs", title="batch of the step")
sizes.set_yticks([64, 256, 1024, 4096, ROWS], [64, 256, 1024, 4096, ROWS])
sizes.tick_params(axis="y", which="minor", left=False, labelleft=False)
gaps.legend(fontsize=8, ncols=2, loc="lower left")
sizes.legend(loc="lower right")
plt.show()


def reached(gap, run_values, costs):
    """What the first point cost whose value is that close to the least."""
    return min(costs[run_values - least <= gap], default=np.inf)


print("       progressive batching, median       L-BFGS")
print("  gap         epochs            work      epochs")
for gap in (1e-2, 1e-3, 1e-4, 1e-6):
    spent = [[reached(gap, found, cost) for cost in costs] for found, costs, _ in runs]
    epochs, work = np.median(spent, axis=0)
    full = reached(gap, full_values, full_epochs)
    print(f"{gap:5.0e} {epochs:14.1f} {work:15.1f} {full:11.0f}")
print(f"programs compiled for the steps of all sizes: {infos.compilations[-1]}")

# %% [markdown]
# A gap of 0.01 takes two epochs in place of nine, since the early steps are made on few
# samples. The lead stays: from where all samples are needed the lines are about
# parallel. `work` also counts what is no gradient, a loss of the line search as a third
# of one and a directional derivative of the test as two thirds.
#
# SGD and Adam depend on their rate, and stay where their steps meet the noise of 32
# samples. A rate that falls would carry them on, and is one more thing to choose.
#
# Batches are evaluated in chunks, so that one program serves them all.

# %% [markdown]
# ## 3. Why the default test is unbiased
#
# The test in the introduction compares noise with $r = \lVert Hg\rVert^2$. But $g$ is
# itself a mean over the sample, and carries its noise:
#
# $$ \mathbb{E}\, r = \lVert H\nabla F\rVert^2 + \mathrm{tr}(H\Sigma H)/b . $$
#
# Near a minimum the second part is all that is left, and the noise is compared with
# noise. In $d$ directions of equal variance the ratio then is about $1/(d\,\theta^2)$
# whatever $b$ is: the test passes, the sample stays as it is, and the method stalls.
#
# The default test splits the sample into eight groups and takes the mean product of
# *different* groups' steps, $r_U = \frac{1}{M(M-1)} \sum_{i \ne j} \langle H g^{(i)}, H
# g^{(j)}\rangle$, whose noise is independent, so that $\mathbb{E}\, r_U = \lVert
# H\nabla F\rVert^2$. If $r_U \le 0$ nothing of a signal is to be seen, and the ratio is
# infinite.
#
# Here both are measured on many samples of 64 tumours, with the $H$ of section 1: at
# $w = 0$, where the fit began, and at the minimum that it found, where the gradient is
# zero and every sample should be called too small.

# %%
THETA, SIZE, DRAWS = 0.9, 64, 60 if FAST else 1000


@jax.jit
def measured(w, key):
    """The statistics of many independent samples at a point."""

    def one(key):
        rows = jax.random.randint(key, SIZE, 0, N)
        batch = jax.tree.map(lambda leaf: leaf[rows], tumours)
        penalised = lambda w: losses(w, batch) + 0.5 / N * jnp.vdot(w, w)  # noqa: E731
        gradient = jax.grad(lambda w: penalised(w).mean())(w)
        return optim_jax.ipqn_statistics(
            penalised, w, gradient, result.state.memory, theta=THETA
        )

    return jax.lax.map(one, jax.random.split(key, DRAWS), batch_size=50)


POINTS = {"at w = 0": jnp.zeros(DIM), "at the minimum": result.params}
COLORS = ("tab:gray", "tab:red")
UNSEEN = 3.4  # where an infinite ratio stands, in powers of ten
bins = [*np.linspace(-3, 3, 49), UNSEEN - 0.1, UNSEEN + 0.1]
figure, plots = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
for plot, (name, point) in zip(plots, POINTS.items(), strict=False):
    stats = measured(point, jax.random.key(1))
    plain = stats.var / (SIZE * THETA**2 * stats.r**2)  # that of test="ipqn"
    tests = {"the paper's": plain, "unbiased": stats.ratio}
    for color, (label, ratio) in zip(COLORS, tests.items(), strict=True):
        places = np.where(np.isinf(ratio), UNSEEN, np.clip(np.log10(ratio), -3, 3))
        label = f"{label}: {np.mean(ratio <= 1):.0%} pass"
        plot.hist(places, bins, color=color, alpha=0.6, label=label)
    plot.axvline(0, color="k", ls=":", lw=1)
    plot.set_xticks([-2, 0, 2, UNSEEN], ["0.01", "1", "100", "∞"])
    plot.set(title=f"ratio {name}", xlabel="noise / what is tolerated", yticks=[])
    plot.legend(loc="upper left" if name == "at the minimum" else "upper right")
scale = float(stats.r.mean())
signals = {"$r$": stats.r / scale, "$r_U$": stats.r_U / scale}
for color, (label, signal) in zip(COLORS, signals.items(), strict=True):
    label = f"{label}: mean {signal.mean():.2f}"
    bins = np.linspace(-3, 5, 61)
    plots[2].hist(signal, bins, color=color, alpha=0.6, label=label)
plots[2].axvline(0, color="k", ls=":", lw=1)
plots[2].set(title="signal at the minimum, truly 0", xlabel="in means of r", yticks=[])
plots[2].legend()
plt.show()

# %% [markdown]
# Far from the minimum the two agree. At the minimum the paper's test calls most samples
# large enough, while the unbiased one asks for more: more often than not it sees no
# signal at all. It is noisy, and passes now and then by chance; but as samples never
# shrink one refusal is enough. That noise is why one iteration may only double them.

# %% [markdown]
# ## 4. Behind a data loader of your own
#
# Where batches come from elsewhere, `as_optax` makes an Optax transformation of the
# same method. It needs the batch, besides gradients and parameters, and returns steps
# that need no learning rate. An update costs about three gradients: yours, one for the
# test, and one at the new point, over the same batch, for the curvature pair. The batch
# cannot grow by itself: `state.info` is a row like those of `history`, and its `b` is
# the size that the test asks for.
#
# A network with 32 hidden units reads digits, in batches of 128. Its loss is not
# convex: with `damping` a pair of too little curvature is mended, not skipped.

# %%
images, classes = load_digits(return_X_y=True)
images, classes = jnp.asarray(images / 16, jnp.float32), jnp.asarray(classes)
order = np.random.default_rng(0).permutation(len(classes))
TRAINED, TESTED, BATCH, PASSES = order[:1400], order[1400:], 128, 3 if FAST else 20


def logits(params, pixels):
    """A perceptron with one hidden layer."""
    hidden = jnp.tanh(pixels @ params["in"] + params["bias"])
    return hidden @ params["out"]


def penalised_losses(params, batch):
    """One cross-entropy for each image, with a penalty in each of them."""
    found = logits(params, batch["pixels"])
    fit = optax.softmax_cross_entropy_with_integer_labels(found, batch["class"])
    return fit + 0.5e-4 * optax.tree.norm(params, squared=True)


def load(rows):
    """The batch of some rows."""
    return {"pixels": images[rows], "class": classes[rows]}


optimizer = optim_jax.pb_lbfgs(penalised_losses, None, damping=True).as_optax()


@jax.jit
def train_step(params, state, batch):
    """An update on one batch."""
    mean_loss = lambda params: penalised_losses(params, batch).mean()  # noqa: E731
    value, grads = jax.value_and_grad(mean_loss)(params)
    updates, state = optimizer.update(grads, state, params, batch=batch, value=value)
    return optax.apply_updates(params, updates), state


@jax.jit
def evaluate(params):
    """Loss of all training images, and accuracy on the others."""
    hits = jnp.argmax(logits(params, images[TESTED]), axis=1) == classes[TESTED]
    return penalised_losses(params, load(TRAINED)).mean(), hits.mean()


keys = jax.random.split(jax.random.key(0))
params = {
    "in": jax.random.normal(keys[0], (64, 32), jnp.float32) / 8,
    "bias": jnp.zeros(32, jnp.float32),
    "out": jax.random.normal(keys[1], (32, 10), jnp.float32) / np.float32(32**0.5),
}
state = optimizer.init(params)
infos, evaluations = [], [evaluate(params)]
for epoch in range(PASSES):
    order = np.random.default_rng(epoch).permutation(TRAINED)
    for rows in np.split(order[: len(order) // BATCH * BATCH], len(order) // BATCH):
        params, state = train_step(params, state, load(rows))
        infos.append(state.info)
    evaluations.append(evaluate(params))
infos = jax.tree.map(lambda *rows: np.array(rows), *infos)
train_loss, accuracy = np.array(evaluations).T

# %%
figure, plots = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
fits, ratios, steps = plots
passes = (infos.k + 1) / (len(TRAINED) // BATCH)
fits.semilogy(passes, infos.value, ".", color="0.6", ms=3, label="batch")
fits.semilogy(np.arange(PASSES + 1), train_loss, "k", label="training images")
fits.set(title=f"loss; {accuracy[-1]:.1%} of test images right", xlabel="pass")
fits.legend()
seen = np.isfinite(infos.ratio)
ratios.semilogy(passes[seen], infos.ratio[seen], ".", ms=4, color="tab:red")
top = 10 * infos.ratio[seen].max()
ratios.semilogy(passes[~seen], np.full(np.sum(~seen), top), "^", ms=4, color="tab:red")
ratios.axhline(1, color="k", ls=":", lw=1)
ratios.set(title="ratio of the test; triangles: ∞", xlabel="pass")
steps.plot(passes, infos.alpha, ".", ms=4, color="tab:blue")
first = np.mean(infos.backtracks == 0)
title = f"accepted step, the first trial in {first:.0%}"
steps.set(title=title, xlabel="pass", ylim=(0, 1.05))
plt.show()
print(f"sizes that the last ten batches of {BATCH} ask for:", infos.b[-10:])

# %% [markdown]
# After a pass or two a batch rarely tells which way is down, and the steps get shorter:
# a loader that can follow `info.b` would double its batches there. Every new size is a
# new shape, and so a compilation here; powers of two keep them few.
#
# ## 5. The parts in a chain
#
# `scale_by_multibatch_lbfgs` multiplies a gradient by $H$, and `scale_by_armijo`
# shortens a step until the objective falls enough. They are transformations like any
# other. Here on the valley of Rosenbrock's function, with plain gradients behind the
# same line search for comparison.


# %%
def valley(point):
    """Rosenbrock's function, least at (1, 1)."""
    return 100 * (point["y"] - point["x"] ** 2) ** 2 + (1 - point["x"]) ** 2


def path(direction):
    """Points, values and trials of the line search."""
    chain = optax.chain(direction, optax.scale(-1.0), optim_jax.scale_by_armijo())

    def step(carry, _):
        point, state = carry
        value, grad = jax.value_and_grad(valley)(point)
        updates, state = chain.update(
            grad, state, point, value=value, grad=grad, value_fn=valley
        )
        following = optax.apply_updates(point, updates)
        return (following, state), (point, value, state[-1].trials)

    point = {"x": jnp.float64(-1.2), "y": jnp.float64(1.0)}
    return jax.lax.scan(step, (point, chain.init(point)), length=50)[1]


DIRECTIONS = {
    "L-BFGS": ("tab:red", optim_jax.scale_by_multibatch_lbfgs()),
    "gradient": ("tab:gray", optax.identity()),
}
figure, (plane, falls) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
x, y = np.meshgrid(np.linspace(-1.6, 1.4, 120), np.linspace(-0.6, 1.8, 120))
heights = np.log10(valley({"x": x, "y": y}))
plane.contour(x, y, heights, np.arange(-1.5, 3.5, 0.5), colors="0.85", linewidths=1)
for name, (color, direction) in DIRECTIONS.items():
    points, heights, trials = path(direction)
    plane.plot(points["x"], points["y"], ".-", ms=5, lw=1, color=color, label=name)
    label = f"{name}: {trials[heights > 0].mean():.1f} trials a step"
    falls.semilogy(heights[heights > 0], ".-", ms=5, color=color, label=label)
plane.plot(1, 1, "k*", ms=9)
plane.set(title="50 steps from (-1.2, 1)")
falls.set(title="value", xlabel="step", ylim=(1e-26, 1e3))
plane.legend(loc="lower left")
falls.legend(loc="lower left")
plt.show()

# %% [markdown]
# $H$ turns the step along the valley, and its first trial nearly always does. The
# gradient has to shorten its steps over and over, and creeps; its leap is luck.
#
# With mini-batches the two gradients of a pair must be over the same samples, or their
# difference is mostly noise: give the update those over what two batches share, as
# `overlap_grad` and, at the next point, `overlap_grad_new`. `init_step` is the first
# trial of the line search, such as `alpha0` of `ipqn_statistics`.
#
# How to read these pictures:
#
# * The answer is that of full-batch L-BFGS, certificate included. What is saved are
#   early gradients: a rough answer gets much cheaper, an exact one a little.
# * Near the minimum of a finite sum all samples are needed, and the batch has to get
#   there. That takes a test which noise cannot satisfy.
# * The network in section 4 shows that nothing had to be tuned, and not that a tuned
#   Adam would be worse.
# * These are **few runs of small problems**.
#   `python -m experiments.reproduce pblbfgs_convex` and `pblbfgs_network` compare over
#   more seeds, with the rates of the others tuned.
