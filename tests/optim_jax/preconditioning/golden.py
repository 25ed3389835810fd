"""Stored trajectories of the original implementation, and ours with their options."""

import functools
import json
import math
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim_jax

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "golden" / "shampoo"

_METHODS = {
    "eigh": optim_jax.Eigh,
    "eigh_root": optim_jax.Eigh,
    "qr": optim_jax.QR,
    "coupled_newton": optim_jax.CoupledNewton,
    "coupled_higher_order": optim_jax.CoupledHigherOrder,
    "newton_schulz": optim_jax.NewtonSchulz,
    "svd": optim_jax.SVD,
}
_PRECONDITIONERS = {
    "root_inverse": optim_jax.RootInverse,
    "kl_root_inverse": optim_jax.KLRootInverse,
    "eigendecomposed": optim_jax.Eigendecomposed,
    "kl_eigendecomposed": optim_jax.KLEigendecomposed,
    "eigenvalue_corrected": optim_jax.EigenvalueCorrected,
    "spectral": optim_jax.Spectral,
    "sign": optim_jax.Sign,
}
_RENAMED = {
    "rel_epsilon": "rel_eps",
    "abs_epsilon": "abs_eps",
    "perturb_before_computation": "perturb_before",
}
_SCALES = {
    "muon": lambda d_in, d_out: max(1.0, d_out / d_in) ** 0.5,
    "modula": lambda d_in, d_out: (d_out / d_in) ** 0.5,
}


@functools.cache
def read_cases():
    return json.loads((FOLDER / "cases.json").read_text())["cases"]


def _unlimited(value):
    return math.inf if value == "inf" else value


def _integer_keys(table):
    if not isinstance(table, dict):
        return table
    return {int(key): _integer_keys(value) for key, value in table.items()}


def _method(options):
    options = dict(options)
    kind, rank = options.pop("type"), options.pop("rank_deficiency", {})
    options.pop("scale_by_dims", None)
    rank = dict(rank)
    options["pseudo_inverse"] = rank.pop("type", None) == "pseudo_inverse"
    if not options["pseudo_inverse"]:
        del options["pseudo_inverse"]
    options.update(rank)
    return _METHODS[kind](
        **{_RENAMED.get(name, name): value for name, value in options.items()}
    )


def _diagonal(constructor, options):
    names = {"type": "kind", "beta2": "b2", "epsilon": "eps"}
    options = {names.get(name, name): value for name, value in options.items()}
    return constructor(**options)


def make_preconditioner(options):
    kind = options["type"]
    if kind in ("sgd", "adagrad", "rmsprop", "adam"):
        return _diagonal(optim_jax.Diagonal, options)
    keywords = {
        name: _integer_keys(options[name])
        for name in (
            "inverse_exponent_override",
            "ignored_basis_change_dims",
            "drop_weighting_factor",
        )
        if name in options
    }
    if options.get("use_trace_scaling"):
        exponent = options.get("trace_scaling_exponent", 0.5)
        keywords["trace_scaling_exponent"] = exponent
    function = options.get("matrix_function", {})
    if function:
        keywords["method"] = _method(function)
    if "scale_by_dims" in function:
        keywords["scale_by_dims"] = _SCALES[function["scale_by_dims"]]
    if options.get("scale") == "l1_norm":
        keywords["scale"] = lambda block: jnp.sum(jnp.abs(block))
    return _PRECONDITIONERS[kind](**keywords)


def direction_options(case, dtype):
    """The keywords of `scale_by_shampoo` that a stored case stands for."""
    config = case["config"]
    preconditioner, grafting = config["preconditioner"], config["grafting"]
    method = make_preconditioner(preconditioner)
    pseudo = getattr(getattr(method, "method", None), "pseudo_inverse", False)
    return {
        "b1": config["beta1"],
        "b2": config["beta2"],
        "b3": config["beta3"],
        "eps": 0.0 if pseudo else config["epsilon"],
        "relative_epsilon": 0.0,
        "max_preconditioner_dim": _unlimited(config["max_preconditioner_dim"]),
        "target_dimensionality": _unlimited(config["target_parameter_dimensionality"]),
        "precondition_frequency": config["precondition_frequency"],
        "start_preconditioning_step": config["start_preconditioning_step"],
        "bias_correction": config["use_bias_correction"],
        "grafting": grafting and _diagonal(optim_jax.Graft, grafting),
        "preconditioner": method,
        "factor_dtype": preconditioner.get("factor_dtype", dtype),
        "inverse_dtype": preconditioner.get("inverse_dtype", dtype),
    }


def make_optimizer(case, dtype):
    """Our transformation with the options of a stored case."""
    config = case["config"]
    schedule = config.get("lr_schedule")
    if schedule is None:
        learning_rate = config["lr"]
    else:
        table = np.asarray(schedule)

        def learning_rate(count):
            return jnp.asarray(table)[count]

    averaging = config["iterate_averaging"] or {}
    kind = averaging.get("type")
    averaged = kind in ("gpa", "schedule_free")
    momentum = None
    if kind == "classic_momentum":
        momentum = optim_jax.Momentum(
            averaging["momentum"], averaging["dampening"], averaging["use_nesterov"]
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of delayed starts without grafting
        base = optim_jax.shampoo(
            learning_rate,
            weight_decay=0.0 if averaged else config["weight_decay"],
            weight_decay_type=config["weight_decay_type"],
            peak_lr=config["lr"],
            momentum=momentum,
            **direction_options(case, dtype),
        )
    if kind == "gpa":
        return optim_jax.gpa(
            base,
            mu_x=averaging["eval_interp_coeff"],
            mu_y=averaging["train_interp_coeff"],
            weight_decay=config["weight_decay"],
            learning_rate=learning_rate,
        )
    if kind == "schedule_free":
        return optim_jax.schedule_free(
            base,
            learning_rate,
            mu_y=averaging["train_interp_coeff"],
            weight_lr_power=averaging["eval_coeff_lr_power"],
            use_max_lr=False,
        )
    return base


def internals(case, state, params, dtype):
    """What our state holds, under the names of the stored internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = optim_jax.plan_preconditioners(params, **direction_options(case, dtype))
    canonical = optim_jax.to_canonical_state(state, plan)
    (tree,) = _canonical_nodes(canonical)
    rotated = case["config"]["preconditioner"]["type"] == "eigenvalue_corrected"
    names = {
        "second_moment": "corrected_eigenvalues" if rotated else "diag",
        "graft": "diag",
        "mu": "filtered_grad",
    }
    found = {}
    for path, blocks in tree["params"].items():
        leaf = path.strip("[]'")
        for number, entry in blocks.items():
            for name, value in entry.items():
                key = f"{names.get(name, name)}/{leaf}/block_{number}"
                if not isinstance(value, tuple):
                    found[key] = value
                    continue
                found |= {f"{key}/{i}": matrix for i, matrix in enumerate(value)}
    return found


def _canonical_nodes(tree):
    def is_canonical(node):
        return isinstance(node, dict) and "health" in node

    leaves = jax.tree.leaves(tree, is_leaf=is_canonical)
    return [leaf for leaf in leaves if is_canonical(leaf)]


def load_problem(case, dtype):
    """Initial parameters, gradients (steps, ...), and everything that was stored."""
    with np.load(FOLDER / f"problem_{case['problem']}.npz") as data:
        params = {name: data[f"init/{name}"].astype(dtype) for name in case["params"]}
        grads = {name: data[f"grads/{name}"].astype(dtype) for name in case["params"]}
    with np.load(FOLDER / case["file"]) as data:
        stored = dict(data)
    to_jax = functools.partial(jax.tree.map, jnp.asarray)
    return to_jax(params), to_jax(grads), stored


def replay(tx, params, grads):
    """Parameters before the first and after every step, and the last state."""

    def body(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @jax.jit
    def run(params, grads):
        return jax.lax.scan(body, (params, tx.init(params)), grads)

    (last, state), path = run(params, grads)
    path = jax.tree.map(
        lambda first, rest: np.concatenate([np.asarray(first)[None], np.asarray(rest)]),
        params,
        path,
    )
    return path, state, last
