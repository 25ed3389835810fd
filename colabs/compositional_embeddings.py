# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Compositional embeddings
#
# A model of clicks keeps a vector for each of millions of ids, and nearly all of its
# parameters are these tables. Hashing saves memory by letting ids share a vector: what
# shares one can never be told apart again. *Compositional* embeddings
# ([arXiv 1909.02107](https://arxiv.org/abs/1909.02107)) look the id up in several small
# tables, in a different grouping each time, and combine what they find. Where the
# groupings are *complementary*, meaning that any two ids are apart in at least one of
# them, every id keeps a vector of its own.
#
# This notebook shows in pictures (1) the groupings, (2) how many vectors and parameters
# they leave, (3) what that means for one feature, where the best possible loss is known
# in closed form, (4) a small DLRM on four features that interact. It takes less than a
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

    SOURCE = "https://…"  # the address of the repository you use
    subprocess.run(["git", "clone", "-q", SOURCE, "optim-jax"], check=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "./optim-jax[experiments]"]
    subprocess.run(pip, check=True)
    sys.path.insert(0, "optim-jax")

# %%
import os
import pathlib
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np

import optim_jax

# The models and the experiments lie beside the library, in the checkout.
sys.path.append(str(pathlib.Path(optim_jax.__file__).parents[1]))

from experiments.data import planted
from experiments.reproduce.embedding_arms import embedding_arms
from experiments.reproduce.embedding_protocol import (
    ClickRows,
    OnePass,
    dlrm_config,
    dlrm_learner,
    train_and_predict,
)
from experiments.reproduce.qr_one_feature import linear_learner
from models import embeddings
from models.embeddings import TableConfig

FAST = os.environ.get("FAST", "0") == "1"  # fewer steps, for tests
plt.rcParams.update({"figure.dpi": 80, "legend.frameon": False, "legend.fontsize": 9})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
COLORS = {"full": "k", "hash": "tab:orange", "QR mult": "tab:blue"}
COLORS |= {"QR add": "tab:red"}

# %% [markdown]
# ## 1. Groupings
#
# Each maps an id to a row of a table, with integers only:
#
# * **hashing**: $x \bmod m$, one table;
# * **quotient and remainder**: $\lfloor x/c \rfloor$ and $x \bmod c$. Each quotient is
#   shared by $c$ ids, and these differ in their remainders;
# * **mixed radix**: the digits of $x$ for bases $m_1, m_2, \dots$ whose product is at
#   least $n$; quotient and remainder are the case of two digits;
# * **Chinese remainder**: $x \bmod m_1$, $x \bmod m_2, \dots$ for coprime $m_i$.

# %%
ids = np.arange(60)
groupings = {
    "hashing, m = 16": (embeddings.hashing(ids, 16),),
    "quotient and remainder, c = 4": embeddings.quotient_remainder(ids, 4),
    "mixed radix (4, 4, 4)": embeddings.mixed_radix(ids, (4, 4, 4)),
    "Chinese remainder (7, 9)": embeddings.chinese_remainder(ids, (7, 9)),
}
figure, plots = plt.subplots(4, 1, figsize=(10, 5.2), layout="constrained")
for plot, (name, classes) in zip(plots, groupings.items(), strict=True):
    rows = np.stack(classes)
    plot.imshow(rows, cmap="viridis", aspect="auto", interpolation="nearest")
    for (part, number), row in np.ndenumerate(rows):
        shade = "w" if row < 0.6 * rows.max() else "k"
        plot.text(number, part, row, ha="center", va="center", fontsize=6, color=shade)
    complementary = embeddings.is_complementary(classes)
    told = "complementary" if complementary else "not complementary"
    plot.set_title(f"{name}: {told}", fontsize=9)
    plot.set_yticks(range(len(rows)), [f"table {part}" for part in range(len(rows))])
    plot.set_xticks([])
plots[-1].set_xlabel("id 0 … 59; the number in a cell is the row that it looks up")
plt.show()

# %% [markdown]
# ## 2. Vectors and parameters
#
# The parts are put side by side (`concat`), added or multiplied entry by entry (`mult`).
# With random initial weights all three give as many vectors as there are ids when the
# groupings are complementary. `check_unique` embeds every id and looks for two that
# agree.

# %%
KINDS = {
    "full": {},
    "hash": {"method": "hash"},
    "QR mult": {"method": "qr", "op": "mult"},
    "QR add": {"method": "qr", "op": "add"},
    "QR concat": {"method": "qr", "op": "concat"},
    "mixed radix, k = 3": {"method": "mixed_radix", "component_dims": (16,) * 3},
    "Chinese remainder, k = 3": {"method": "crt", "component_dims": (16,) * 3},
}
LARGE = 10_131_227  # the largest column of a well-known data set of clicks
print(f"{'':26}{'different vectors':>18}{'smallest distance':>19}{'parameters':>15}")
print(f"{'ids':26}{1000:18,}{'':19}{LARGE:15,}")
for name, fields in KINDS.items():
    small = TableConfig(1000, 16, **fields)
    found = embeddings.check_unique(
        small, embeddings.init_table(small, jax.random.key(0))
    )
    params = embeddings.count_table_params(TableConfig(LARGE, 16, **fields))
    print(f"{name:26}{found.distinct:18,}{found.min_distance:19.4f}{params:15,}")

# %% [markdown]
# Quotient and remainder at $c = 4$ take a quarter of the memory, three digits next to
# none. That vectors differ does not mean that a model can use the difference: with
# three digits the vectors of ten million ids are made from 651 rows.

# %% [markdown]
# ## 3. One feature
#
# A feature of 1,000 ids, each with its own probability of a click, and a model that can
# do no more than look up and read out: $z = v \cdot e(x) + b$. What can it know?
#
# * Hashed: one value for each row. The least possible loss is an entropy over buckets.
# * Added (or concatenated): $f(q) + g(r)$, since the read-out is linear.
# * Multiplied: anything at all, as long as $c$ is at most the width. Put the $c$ values
#   that belong to quotient $q$ into $c$ coordinates of its row, and let each remainder
#   pick one coordinate.

# %%
world = planted.one_feature_world()
every = np.arange(1000)[:, None]
true = 1 / (1 + np.exp(-world.logits(every)))
drawn = planted.sample(world, 40_000 if FAST else 400_000, split=0)
train = ClickRows(drawn.ids, drawn.dense, drawn.labels)
asked = ClickRows(every, np.zeros((1000, 0)), np.zeros(1000))
one_pass = OnePass(batch_size=256, learning_rate=0.1)
ARMS = {arm.name: arm for arm in embedding_arms(collisions=(4,), parts=())}
CHOSEN = {name: ARMS[key] for name, key in (("full", "full"), ("hash", "hash_c4"))}
CHOSEN |= {"QR add": ARMS["qr_add_c4"], "QR mult": ARMS["qr_mult_c4"]}

remainders = embeddings.hashing(np.arange(1000), 254)
bounds = {"hash": planted.oracle_log_loss(world, remainders)}
bounds |= dict.fromkeys(("full", "QR mult"), planted.oracle_log_loss(world))
figure, plots = plt.subplots(1, 4, figsize=(12, 3.4), sharey=True, layout="constrained")
for plot, (name, arm) in zip(plots, CHOSEN.items(), strict=True):
    config = arm.table(1000, threshold=0)
    learner = linear_learner(config, one_pass)
    trained = train_and_predict(learner, one_pass, train, asked, world.rows, (0,))
    logits = trained.logits[0]
    loss = planted.expected_log_loss(logits, true, world.popularity(0))
    sizes = 4e3 * world.popularity(0)
    plot.scatter(true, 1 / (1 + np.exp(-logits)), sizes, color=COLORS[name], alpha=0.5)
    plot.plot((0, 1), (0, 1), color="0.6", lw=1)
    bound = f", best {bounds[name]:.4f}" if name in bounds else ""
    plot.set_title(f"{name}: loss {loss:.4f}{bound}", fontsize=9)
    params = embeddings.count_table_params(config)
    plot.set_xlabel(f"true probability; {params:,} parameters")
plots[0].set_ylabel("predicted probability")
plt.show()

# %% [markdown]
# Each dot is an id, as large as it is popular. On the diagonal the model knows the id.
# Hash, add and mult have the same number of parameters; only mult reaches the diagonal.

# %% [markdown]
# ## 4. Four features that interact
#
# A DLRM with tables of width 16, a perceptron for four dense features, dot products of
# all pairs of vectors, and a perceptron on top of them. The planted model knows the true
# probabilities, so the score is the *expected* log loss, which is free of the noise of
# the labels and cannot fall below the Bayes loss. Tables of at most 100 rows stay full.

# %%
world = planted.four_feature_world()
drawn = planted.sample(world, 20_000 if FAST else 200_000, split=0)
test = planted.sample(world, 50_000, split=1)
train = ClickRows(drawn.ids, drawn.dense, drawn.labels)
asked = ClickRows(test.ids, test.dense, test.labels)
one_pass = OnePass(batch_size=128, learning_rate=0.05)
bayes = planted.bayes_log_loss(test.p_star)
SEEDS = (0,) if FAST else (0, 1, 2)

figure, (curves, scores) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
places = []
print(f"{'':10}{'table parameters':>18}   expected log loss, one for each seed")
for name, arm in CHOSEN.items():
    config = dlrm_config(arm, world.rows, 4, "dot")
    learner = dlrm_learner(config, one_pass)
    trained = train_and_predict(learner, one_pass, train, asked, world.rows, SEEDS)
    losses = [planted.expected_log_loss(z, test.p_star) for z in trained.logits]
    params = sum(map(embeddings.count_table_params, config.tables))
    print(f"{name:10}{params:18,}   " + "  ".join(f"{loss:.4f}" for loss in losses))
    # Every row is new when it comes up: the loss before each step is that of a test.
    means = trained.losses.mean(axis=0)
    smooth = np.convolve(means, np.ones(100) / 100, "valid")
    steps = np.arange(len(smooth)) + 100
    curves.plot(steps, smooth, color=COLORS[name], label=name)
    scores.plot([len(places)] * len(losses), losses, "o", color=COLORS[name], ms=5)
    places.append(f"{name}\n{params:,}")
print(f"{'Bayes':10}{'':18}   {bayes:.4f}")
scores.axhline(bayes, color="0.4", ls=":", label="Bayes")
curves.set(xlabel="step", title="loss before each step, average over 100 steps")
scores.set(xlim=(-0.5, 3.5), title="expected log loss on test rows, by seed")
scores.set_xticks(range(len(places)), places)
scores.set_xlabel("parameters of the tables")
curves.legend()
scores.legend(loc="center right")
plt.show()

# %% [markdown]
# How to read this:
#
# * At a quarter of the parameters QR mult keeps most of what the full tables gain over
#   hashing.
# * Add is no better than hashing here. The model on top could undo the sum, being no
#   longer linear, but one pass over the rows does not teach it to.
# * This is **one size and one set of collisions**.
#   `python -m experiments.reproduce qr_planted` sweeps collisions, methods, thresholds
#   and both kinds of interaction over three seeds, `qr_one_feature` does the same for
#   section 3, and `qr_stdlib` takes a real task.
