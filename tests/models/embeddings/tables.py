"""One small table of every method, and its embedding written out for one id."""

import jax
import numpy as np

from models.embeddings import TableConfig, embedding_bag, init_table

# One program for each table, in place of dozens of small ones.
compiled_bag = jax.jit(embedding_bag, static_argnums=0)
compiled_init = jax.jit(init_table, static_argnums=0)

ROWS = 23
CLASSES = (tuple(x % 5 for x in range(ROWS)), tuple(x // 5 for x in range(ROWS)))
TABLES = {
    "full": TableConfig(ROWS, 6),
    "hash": TableConfig(ROWS, 6, "hash"),
    "below the threshold": TableConfig(ROWS, 6, "qr", "concat", threshold=ROWS),
    "features": TableConfig(ROWS, 6, "features"),
    "features of digits": TableConfig(ROWS, 6, "features", moduli=(2, 3, 4)),
    "path": TableConfig(ROWS, 6, "path", path_hidden=5),
    "path of digits": TableConfig(
        ROWS, 2, "path", moduli=(3, 2, 4), path_hidden=3, path_residual=True
    ),
    "mixed": TableConfig(ROWS, 6, "mixed", component_dims=(4,)),
    "mixed of full width": TableConfig(ROWS, 6, "mixed", component_dims=(6,)),
    "mixed_radix mult": TableConfig(ROWS, 6, "mixed_radix", moduli=(3, 2, 4)),
    "crt add": TableConfig(ROWS, 6, "crt", "add", moduli=(5, 7)),
    "explicit concat": TableConfig(ROWS, 6, "explicit", "concat", classes=CLASSES),
}
for op in ("concat", "add", "mult"):
    TABLES[f"qr {op}"] = TableConfig(ROWS, 6, "qr", op)
    TABLES[f"frequency {op}"] = TableConfig(ROWS, 6, "frequency", op, hot_rows=7)


def draw_params(config, seed=0):
    """Leaves of ordinary size, with no zeros: biases and projections too."""
    key = jax.random.key(seed)
    shapes = jax.eval_shape(lambda key: init_table(config, key), key)
    leaves, tree = jax.tree.flatten(shapes)
    generator = np.random.default_rng(seed)
    drawn = [generator.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, drawn)


def parts_of(config, params, x):
    """Rows of the parts of id x, in float64."""
    c = config.collisions
    method = config.method
    if method in ("qr", "frequency"):
        q, r = divmod(x - config.hot_rows, c)
        rows = [params["quotient"][q], params["remainder"][r]]
    elif method == "explicit":
        rows = [params[f"part_{j}"][part[x]] for j, part in enumerate(config.classes)]
    elif method == "crt":
        rows = [params[f"part_{j}"][x % m] for j, m in enumerate(config.moduli)]
    else:
        classes = digits_of(config, x)
        rows = [params[f"part_{j}"][digit] for j, digit in enumerate(classes)]
    return [np.asarray(row, np.float64) for row in rows]


def digits_of(config, x):
    if config.moduli is None:
        return list(divmod(x, config.collisions))
    digits = []
    for m in config.moduli:
        digits.append(x % m)
        x //= m
    return digits


def combine(op, parts):
    if op == "concat":
        return np.concatenate(parts, axis=-1)
    total = np.array(parts[0])
    for part in parts[1:]:
        total = total + part if op == "add" else total * part
    return total


def embed(config, params, x):
    """The embedding of id x, from the definitions, in float64."""
    if config.built_method == "full":
        return np.asarray(params["table"][x], np.float64)
    if config.method == "hash":
        row = params["table"][x % (-(-config.rows // config.collisions) + 4)]
        return np.asarray(row, np.float64)
    if config.method == "mixed":
        row = np.asarray(params["table"][x], np.float64)
        return row @ params["projection"] if "projection" in params else row
    if config.method == "frequency" and x < config.hot_rows:
        return np.asarray(params["hot"][x], np.float64)
    if config.method == "features":
        return np.concatenate(parts_of(config, params, x))
    if config.method == "path":
        first, *others = digits_of(config, x)
        z = np.asarray(params["part_0"][first], np.float64)
        for j, digit in enumerate(others, start=1):
            function = {
                name: stack[digit]
                for name, stack in params["functions"][f"part_{j}"].items()
            }
            hidden = np.maximum(
                z @ function["hidden_kernel"] + function["hidden_bias"], 0
            )
            out = hidden @ function["output_kernel"] + function["output_bias"]
            z = z + out if config.path_residual else out
        return z
    return combine(config.op, parts_of(config, params, x))
