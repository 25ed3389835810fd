# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gradient noise scales and adaptive batch sizes
#
# How large a batch is worth its samples? The gradient noise scale compares the noise of
# a one-sample gradient with the gradient itself, *in the norm that the optimizer
# descends in* ([arXiv 2602.03001](https://arxiv.org/abs/2602.03001)):
#
# | geometry | optimizers | direction $p$ | noise scale $\mathcal{B}$ |
# | --- | --- | --- | --- |
# | `l2` | SGD | $g$ | $\mathrm{tr}\,C \,/\, \lVert\nabla L\rVert_2^2$ |
# | `sign` | signSGD, Signum, AdamW | $\mathrm{sign}(g)$ | $\lVert\sigma\rVert_1^2 \,/\, \lVert\nabla L\rVert_1^2$ |
# | `spectral` | specSGD, Muon | $U V^\top$ of $G = U \Sigma V^\top$ | $(\mathrm{tr}\,C_\mathrm{row}^{1/2})^2 \,/\, \lVert\nabla L\rVert_{S1}^2$ |
#
# with $\sigma$ the standard deviations of the coordinates, $C$ their covariance,
# $C_\mathrm{row} = \mathbb{E}[(G-\nabla L)(G-\nabla L)^\top]$ that of a matrix, and
# $\lVert\cdot\rVert_{S1}$ the sum of singular values. A batch of
# $B = \mathcal{B}/\theta^2$ samples keeps the noise below a fraction $\theta$ of the
# signal.
#
# This notebook shows in pictures (1) the three directions, (2) the noise scales of a
# quadratic against their closed forms, and where the estimates are biased, (3) what a
# batch of a given size is worth, (4) the controller that sets the batch, on a quadratic,
# (5) a small Llama with a batch that adapts. It takes less than a minute on a CPU.

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
    sys.path.insert(0, "optim-jax")

# %%
import os
import pathlib
import sys
import tempfile

# On CPUs XLA calls LAPACK from several threads; threads of its own would slow it down.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
PROGRAMS = tempfile.TemporaryDirectory()  # the runs of section 5 share most of theirs
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", PROGRAMS.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import optim_jax
from optim_jax import noise_scale as ns

# The trainer of section 5 lies beside the library, in the checkout.
sys.path.append(str(pathlib.Path(optim_jax.__file__).parents[1]))

FAST = os.environ.get("FAST", "0") == "1"  # fewer steps and repetitions, for tests
plt.rcParams.update({"figure.dpi": 80, "legend.frameon": False, "legend.fontsize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
COLORS = {"l2": "tab:gray", "sign": "tab:blue", "spectral": "tab:orange"}
AXES = optim_jax.MatrixAxes("hidden")  # the parameters below are one matrix

# %% [markdown]
# ## 1. Three directions
#
# Steepest descent asks for the direction $p$ with $\lVert p\rVert \le 1$ that gains the
# most, $\langle g, p\rangle = \lVert g\rVert_*$. In the $\ell_\infty$ norm it is the
# sign of every entry; in the spectral norm it is the *polar factor* $U V^\top$ of the
# matrix, the gradient with all its singular values set to one. Muon comes near it by
# five steps of an iteration that leaves them between about 0.7 and 1.2.

# %%
rng = np.random.default_rng(0)
left = np.linalg.qr(rng.normal(size=(16, 16)))[0]
right = np.linalg.qr(rng.normal(size=(24, 16)))[0]
gradient = jnp.asarray((left * np.geomspace(1.0, 0.03, 16)) @ right.T, jnp.float32)


def nuclear(matrices):
    """Sums of singular values."""
    return np.linalg.svd(matrices, compute_uv=False).sum(axis=-1)


def direction(transformation):
    """The first update, without momentum and learning rate."""
    return transformation.update(gradient, transformation.init(gradient))[0]


spectral = optim_jax.scale_by_spectral
directions = {
    "gradient": ("k", gradient),
    "Signum": (COLORS["sign"], direction(optim_jax.scale_by_signum(b1=0.0))),
    "specSGD": (COLORS["spectral"], direction(spectral(AXES))),
    "Muon": ("tab:brown", direction(spectral(AXES, method="newton_schulz"))),
}
figure, plots = plt.subplots(1, 5, figsize=(13, 2.6), layout="constrained")
for plot, (name, (color, entries)) in zip(plots[:4], directions.items(), strict=True):
    values = np.linalg.svd(entries, compute_uv=False)
    plots[4].semilogy(np.arange(1, 17), values, "o-", ms=3, color=color, label=name)
    limit = 1.3 * jnp.abs(entries).max()
    plot.imshow(entries, cmap="RdBu", vmin=-limit, vmax=limit)
    plot.set(xticks=[], yticks=[], title=name)
    plot.set_xlabel(rf"$\langle g,p\rangle$ = {jnp.vdot(gradient, entries):.2f}")
plots[4].set(title="singular values", xticks=(1, 4, 8, 12, 16))
plots[4].legend(loc="lower left", fontsize=7)
plt.show()
sums = jnp.abs(gradient).sum(), nuclear(gradient)
print(
    "the gradient: |entries| add up to {:.2f}, singular values to {:.2f}".format(*sums)
)

# %% [markdown]
# Each direction is long in its own norm only: the matrix of signs has a large spectral
# norm, the polar factor has entries far below one. That is why the noise has to be
# weighed in the norm of the optimizer.

# %% [markdown]
# ## 2. Noise scales of a quadratic
#
# On a quadratic with Gaussian noise everything is known. Here
# $f(X) = \frac12 \mathrm{tr}(X^\top A X)$ for an 8 × 16 matrix, and every entry of the
# gradient of one sample has a standard deviation of one: then $\mathrm{tr}\,C = 128$,
# $\lVert\sigma\rVert_1 = 128$ and $\mathrm{tr}\,C_\mathrm{row}^{1/2} = 8\sqrt{16}$.
# Along the gradient flow the signal fades and the noise stays, so all noise scales grow
# like one over the loss.
#
# `moments_from_stacked` takes independent gradients, *draws*, of a known number of
# samples each, and `noise_scale` turns their mean and spread into noise and signal. As
# in the controller below, both are averaged first and divided at the end. There are
# **two biases**, and both make the noise scale look small:
#
# * *The root of the noise.* The variances are unbiased, their roots are not. With $n$
#   Gaussian draws a standard deviation comes out low by $c_4(n)$, the trace of a matrix
#   root by a Marchenko–Pastur factor; `l2` takes no root. The cure is more draws: every
#   micro-batch of every device is one.
# * *The signal.* The mean gradient still carries the noise of the batch, so that its
#   norm is too large; on pure noise the estimate *saturates* at a constant times $B$.
#   For `l2` subtracting the noise is exact (`signal="debiased"`). For the others
#   `alignment_signal` asks how well each draw agrees with the direction of the *other*
#   draws. It errs the other way: it measures what a noisy step gains, which is less
#   than the norm of the gradient.

# %%
KINDS = [(geometry, "mean") for geometry in COLORS]
KINDS += [("l2", "debiased"), ("sign", "alignment"), ("spectral", "alignment")]
COUNTS = np.array([2, 4, 8, 16])
REPEATS = 20 if FAST else 60
curvatures = np.geomspace(1.0, 0.1, 8)[:, None]  # of A, diagonal
times = np.linspace(0.0, 9.0, 6 if FAST else 16)[:, None, None]
points = np.exp(-curvatures * times) * rng.normal(size=(8, 16))
gradients = curvatures * points
losses = 0.5 * np.sum(gradients * points, axis=(1, 2))
noise = {"l2": 128, "sign": 128**2, "spectral": 8**2 * 16}  # squared
signal = {
    "l2": np.sum(gradients**2, axis=(1, 2)),
    "sign": np.abs(gradients).sum(axis=(1, 2)) ** 2,
    "spectral": nuclear(gradients) ** 2,
}


def measure(draws, samples, geometry, signal):
    """Squared noise and signal from draws [n, ...] of so many samples each."""
    axes = AXES if geometry == "spectral" else None
    layout = {"geometry": geometry, "matrix_axes": axes}
    moments = ns.moments_from_stacked(draws, sample_weights=samples, **layout)
    if signal != "alignment":
        return ns.noise_scale(moments, signal=signal, **layout)[:2]
    aligned = ns.alignment_signal(draws, sample_weights=samples, **layout)
    return ns.noise_scale(moments, **layout).noise_sq, aligned * jnp.abs(aligned)


@jax.jit
def averages(gradient, count):
    """Mean squared noise and signal [kinds, 2] of so many draws of eight samples."""
    samples = jnp.where(jnp.arange(COUNTS[-1]) < count, 8.0, 0.0)  # 0 does not count

    def one(key):
        errors = jax.random.normal(key, (COUNTS[-1], 8, 16)) / jnp.sqrt(8.0)
        draws = gradient + errors
        return jnp.array([measure(draws, samples, *kind) for kind in KINDS])

    keys = jax.random.split(jax.random.key(0), REPEATS)
    return jnp.mean(jax.lax.map(one, keys), axis=0)


factors = {
    "l2": np.ones(len(COUNTS)),
    "sign": ns.c4(COUNTS),
    "spectral": ns.marchenko_pastur_sqrt_mean(8 / (COUNTS - 1) / 16),
}
by_count = np.stack([averages(gradients[0], n) for n in COUNTS])
by_loss = np.stack([averages(gradient, 8) for gradient in gradients])
figure, (roots, scales) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(2, 3))
for index, (geometry, kind) in enumerate(KINDS):
    color, mark = COLORS[geometry], "o" if kind == "mean" else "^"
    if kind == "mean":
        found = by_count[:, index, 0] / noise[geometry]
        roots.semilogx(COUNTS, factors[geometry] ** 2, color=color, lw=1)
        roots.semilogx(COUNTS, found, "o", ms=4, color=color, label=geometry)
        scales.loglog(losses, noise[geometry] / signal[geometry], color=color, lw=1)
    found = by_loss[:, index, 0] / by_loss[:, index, 1]
    scales.loglog(losses, found, mark, ms=4, color=color, label=f"{geometry}, {kind}")
scales.axhline(64, color="k", lw=1, ls=":", label="the batch")
scales.invert_xaxis()
roots.set_xticks(COUNTS, COUNTS)
roots.minorticks_off()
roots.set(xlabel="draws n", title="bias of the root: noise², measured / true")
scales.set(xlabel="loss", title="noise scale in samples along the gradient flow")
roots.legend()
scales.legend(fontsize=8)
figure.tight_layout()
plt.show()

# %% [markdown]
# Left: lines are $c_4(n)^2$ and the Marchenko–Pastur factor, dots are measured. Right:
# lines are the closed forms, marks are measured with eight draws of eight samples. The
# three noise scales are different numbers. With the plain signal all of them saturate,
# at 1 (`l2`), 1.46 (`sign`) and here 1.13 (`spectral`) batches. The debiased one follows
# the truth on average, though single measurements soon come out negative. Alignment
# does not saturate, and leaves the truth upwards instead. None of this matters while
# $B$ is well above $\mathcal{B}$, where the rule $B = \mathcal{B}/\theta^2$ wants to be.

# %% [markdown]
# ## 3. What a batch is worth
#
# From the expected decrease on an isotropic quadratic the paper derives how much a step
# of batch $B$ gains at the best learning rate:
#
# | | gain, as a share of the gain without noise | batch for a share $\kappa$ |
# | --- | --- | --- |
# | `l2` | $(1 + \mathcal{B}/B)^{-1}$ | $\mathcal{B}\,\kappa/(1-\kappa)$ |
# | `sign`, `spectral` | at least $(1 - \sqrt{\mathcal{B}/B})^2$ for $B > \mathcal{B}$ | at most $\mathcal{B}/(1-\sqrt\kappa)^2$ |
#
# The second row is a bound for any noise. For Gaussian noise and a gradient with equal
# entries, or singular values, the gain of the sign is known, $\mathrm{erf}(\sqrt{B/2\mathcal{B}})^2$, and that of the
# polar factor is easily sampled.

# %%
sizes = np.geomspace(0.1, 100.0, 200)  # batch over noise scale


def polar_gain(size):
    """Squared share of the descent along the polar factor of a noisy gradient."""
    noise = np.random.default_rng(1).normal(size=(50, 16, 16)) / np.sqrt(16 * size)
    left, _, right = np.linalg.svd(np.eye(16) + noise)
    return np.mean(np.trace(left @ right, axis1=1, axis2=2) / 16) ** 2


some = sizes[::18]
bound = np.where(sizes > 1, (1 - np.sqrt(1 / sizes)) ** 2, np.nan)
sign_gain = jax.scipy.special.erf(np.sqrt(sizes / 2)) ** 2
polar_gains = np.array([polar_gain(size) for size in some])
curves = {
    "l2": (sizes, 1 / (1 + 1 / sizes), "-", COLORS["l2"]),
    "sign, spectral: bound": (sizes, bound, "-", "k"),
    "sign, Gaussian noise": (sizes, sign_gain, "-", COLORS["sign"]),
    "spectral, Gaussian noise": (some, polar_gains, "o", COLORS["spectral"]),
}
figure, (gains, per_sample, critical) = plt.subplots(
    1, 3, figsize=(12, 4), layout="constrained"
)
for name, (size, gain, mark, color) in curves.items():
    gains.semilogx(size, gain, mark, ms=4, color=color, label=name)
    per_sample.loglog(size, gain / size, mark, ms=4, color=color)
    if name in ("l2", "sign, spectral: bound"):
        critical.semilogy(gain, size, color=color)
for theta in (0.75, 0.6, 0.5, 0.25):
    size, share = 1 / theta**2, (1 - theta) ** 2
    gains.plot(size, share, "ko", ms=4)
    per_sample.plot(size, share / size, "ko", ms=4)
    critical.plot(share, size, "ko", ms=4)
    critical.text(share + 0.02, size * 0.7, rf"$\theta$ = {theta}", fontsize=8)
gains.set(xlabel="batch / noise scale", title="gain of a step")
per_sample.set(xlabel="batch / noise scale", title="gain per sample", ylim=(5e-3, 3))
critical.set(xlabel=r"share $\kappa$ of the gain", title="batch for it / noise scale")
figure.legend(loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# For SGD the first sample is worth the most, and every further one less: a batch is a
# matter of patience only. By the bound, signs and polar factors gain nothing from a
# batch below the noise scale, and the most per sample at four times it
# ($\theta = \frac12$). With Gaussian noise they do gain below, and every further sample
# is worth less, as for SGD: the bound is safe, not sharp, and a tuned $\theta$ makes up
# for it.

# %% [markdown]
# ## 4. The controller on a quadratic
#
# With steps $\eta_k = (1-\theta)\lVert\nabla L\rVert_1/L_s$ along the sign and batches
# $B_k = \mathcal{B}(x_k)/\theta^2$ the loss falls, in expectation, at least by the
# factor $1 - (1-\theta)^2\mu/L_s$ per step. Here the curvatures are (1, 2, 3, 4), so
# that $L_s = 10$ and $\mu = 1$ will do. The start is (1, −1, ½, ¼), where the gradient
# is (1, −2, 1.5, 1), and the noise of a sample has deviations (2, 2, 1, 1):
# $\mathcal{B}_{\ell_1} = 6^2/5.5^2$.
#
# Three ways to choose the batch, all with $\theta = \frac12$: this rule, which knows
# gradient and noise; the controller, which knows only what eight draws per step tell;
# constant batches. The last two take the norm of the measured gradient.

# %%
THETA, DRAWS, STEPS = 0.5, 8, 20 if FAST else 40
CURVATURE, NOISE = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([2.0, 2.0, 1.0, 1.0])
START, SMOOTHNESS, CONVEXITY = jnp.array([1.0, -1.0, 0.5, 0.25]), 10.0, 1.0
# Where gradients are dear, measuring every hundredth step is enough.
config = ns.BatchSizeConfig(
    theta=THETA, init_batch=8, max_batch=2**24, every=1, ema_noise=0.5, ema_signal=0.5
)
controller = ns.batch_size_controller(config)
KNOWN, CONTROLLER = -1, 0  # rules; any other number is a constant batch


def descend(rule, key):
    """Loss and batch at every step."""

    def step(carry, inputs):
        x, state = carry
        number, key = inputs
        gradient = CURVATURE * x
        norm = jnp.sum(jnp.abs(gradient))
        ideal = (jnp.sum(NOISE) / norm / THETA) ** 2
        batch = jnp.where(rule == CONTROLLER, state.batch_size, rule)
        batch = jnp.where(rule == KNOWN, ideal, batch)
        noise = NOISE * jnp.sqrt(DRAWS / batch) * jax.random.normal(key, (DRAWS, 4))
        draws = gradient + noise  # each the mean of batch / 8 samples
        weights = {"sample_weights": batch / DRAWS}
        moments = ns.moments_from_stacked(draws, geometry="sign", **weights)
        measured = ns.noise_scale(moments, geometry="sign")
        state = controller.update(state, measured, number)
        norm = jnp.where(rule == KNOWN, norm, jnp.sqrt(measured.signal_sq))
        rate = (1 - THETA) * norm / SMOOTHNESS
        loss = 0.5 * jnp.sum(CURVATURE * x**2)
        return (x - rate * jnp.sign(moments.mean), state), (loss, batch)

    inputs = jnp.arange(STEPS), jax.random.split(key, STEPS)
    return jax.lax.scan(step, (START, controller.init()), inputs)[1]


RULES = {
    KNOWN: ("tab:blue", "known noise scale"),
    CONTROLLER: ("tab:red", "controller"),
    8: ("0.75", "constant 8"),
    128: ("0.5", "constant 128"),
    2048: ("0.25", "constant 2048"),
}
keys = jax.random.split(jax.random.key(2), 20 if FAST else 200)
runs = jax.jit(jax.vmap(jax.vmap(descend, (None, 0)), (0, None)))
losses, batches = runs(jnp.array(list(RULES), jnp.float32), keys)
figure, (by_step, by_sample, sizes) = plt.subplots(
    1, 3, figsize=(12, 4), layout="constrained"
)
for (color, name), loss, batch in zip(
    RULES.values(), losses.mean(axis=1), batches.mean(axis=1), strict=True
):
    by_step.semilogy(loss, color=color, label=name)
    by_sample.loglog(np.cumsum(batch), loss, color=color)
    sizes.semilogy(batch, color=color)
contraction = 1 - (1 - THETA) ** 2 * CONVEXITY / SMOOTHNESS
guaranteed = float(losses[0, 0, 0]) * contraction ** np.arange(STEPS)
by_step.semilogy(guaranteed, ":", color="tab:blue", label="bound, known noise scale")
by_step.set(xlabel="step", title="loss, mean over runs")
by_sample.set(xlabel="samples", title="the same loss")
sizes.set(xlabel="step", title="batch, mean over runs")
figure.legend(loc="outside lower center", ncols=6)
plt.show()

# %% [markdown]
# Each constant batch is the right one for a while and then stays where its noise keeps
# it; the controller's goes on. It also spends fewer samples than the rule that knows
# the noise scale. That is no merit of its own: measurements lag behind and saturate,
# so that its batches are smaller than asked for, its norms come out a little large,
# and its steps with them; and the bound behind the rule is far from sharp. A constant
# batch that happens to be right for the loss you want is cheaper than either.

# %% [markdown]
# ## 5. A small Llama
#
# In the trainer all this is a few settings under `batch` and `noise_scale`. A Llama of
# 41 thousand parameters learns the text of Python's standard library with Signum: with
# a constant batch of 8 rows, with the batch that the `sign` noise scale asks for at
# $\theta = 0.7$, up to 64, and with a constant batch of 24, which takes about as many
# steps as the adaptive one. All train on the same rows in the same order; learning rates
# follow the rows and the root of the batch. The peak for 8 rows, $10^{-3}$, was the
# best of four, and the others take it over.

# %%
from experiments.config_fields import with_overrides
from experiments.presets import LLAMA, preset_by_name
from experiments.training import run
from experiments.training.metrics import read_metrics

ROWS = 480 if FAST else 8400  # of 32 bytes each, in all
ADAPTIVE = {
    "batch.adaptive": "sign",
    "batch.theta": 0.7,
    "batch.max_size": 64,
    "noise_scale.every": 10,
    "noise_scale.splits": 4,  # four draws of two rows in each micro-batch
}
QUIET = {"checkpoint.every": 0, "logging.tensorboard": False, "logging.progress": False}
ARMS = {
    "constant 8": ("0.2", 8, {}),
    "adaptive": ("tab:red", 8, ADAPTIVE),
    "constant 24": ("0.6", 24, {}),
}


def train(size, overrides):
    """The log of a run."""
    overrides = {
        "optimizer.name": "signum",
        "optimizer.weight_decay": 0.0,
        "optimizer.learning_rate": 1e-3 * (size / 8) ** 0.5,
        "batch.size": size,
        "batch.micro_batch": 8,
        "steps": ROWS // size,
        "evaluation.every": ROWS // size // 20,
        "evaluation.batches": 24,
        "logging.every": max(1, ROWS // size // 100),
        **QUIET,
        **overrides,
    }
    config = with_overrides(preset_by_name("llama_pico_stdlib", LLAMA), overrides)
    with tempfile.TemporaryDirectory() as folder:
        run(config, f"{folder}/run", devices=jax.devices()[:1])
        return read_metrics(f"{folder}/run")


def column(log, metric):
    """Rows trained on, steps and values where the metric was logged."""
    found = [(r["tokens"] / 32, r["step"], r[metric]) for r in log if metric in r]
    return np.array(found).T


logs = {name: train(*arm[1:]) for name, arm in ARMS.items()}

# %%
figure, (by_sample, by_step, batches) = plt.subplots(
    1, 3, figsize=(12, 4), layout="constrained"
)
_, own_steps, own_loss = column(logs["adaptive"], "eval/loss")[:, -1]
print(f"              steps   validation loss   steps to {own_loss:.3f}")
for name, (color, *_) in ARMS.items():
    samples, steps, loss = column(logs[name], "eval/loss")
    by_sample.plot(samples, loss, color=color, label=name)
    by_step.plot(steps, loss, color=color)
    # The last step takes the rows that are left.
    samples, _, size = column(logs[name], "train/batch_size")[:, :-1]
    batches.step(samples, size, color=color)
    reached = steps[loss <= own_loss][:1]
    needed = [f"{n:.0f}: {1 - own_steps / n:.0%} saved" for n in reached] or ["never"]
    print(f"{name:12} {steps[-1]:6.0f} {loss[-1]:17.3f}   {needed[0]}")
samples, _, scale = column(logs["adaptive"], "optim/noise_scale")
asked = scale / ADAPTIVE["batch.theta"] ** 2
label = r"measured noise scale / $\theta^2$"
batches.plot(samples, asked, ".", ms=4, color="tab:orange", label=label)
by_sample.set(xlabel="rows trained on", title="validation loss", ylim=(None, 3.5))
by_step.set(xlabel="step", title="the same loss", ylim=(None, 3.5))
batches.set(xlabel="rows trained on", title="batch", yscale="log")
batches.set_yticks((4, 8, 16, 32, 64, 128, 256), (4, 8, 16, 32, 64, 128, 256))
batches.minorticks_off()
figure.legend(loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# How to read this:
#
# * The adaptive batch starts small, where small batches are worth the most, and ends
#   large. At equal rows it ends a little above the small constant batch, with a third
#   of its steps; and well below the constant batch that takes as many steps.
# * Whether that saves time depends on the machine: a step of 64 rows must not cost
#   eight times a step of 8. On this CPU it nearly does; on many devices it need not.
# * The dots are single measurements, the controller averages about ten. Measured on 64
#   rows they cannot rise far above 200: the log says where they are saturated.
# * The estimates carry the two biases of section 2, and momentum is not modelled: an
#   average over ten steps has the noise of a larger batch. All three ask for a smaller
#   batch than was meant, or needed; a tuned $\theta$ makes up for them.
# * This is **one run of each on a toy**, with learning rates tuned for one of them: it
#   shows that the parts fit, and proves nothing.
#   `python -m experiments.reproduce gns_llama` compares batch rules with a learning
#   rate tuned for each, over several seeds.
