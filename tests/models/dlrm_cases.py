"""The original implementation's numbers, read as configs and batches of ours."""

import json

import numpy as np

from models.dlrm import DLRMConfig, make_batch
from models.embeddings import TableConfig

NAMES = (
    "dlrm_dot_multihot",
    "dlrm_dot_self_mse",
    "dlrm_cat_wbce",
    "dlrm_onehot_criteo_like",
    "dlrm_weighted_learned",
    "dlrm_qr_mult",
)


def read_case(golden_dir, name):
    """The settings and the arrays of one case."""
    folder = golden_dir / "dlrm"
    settings = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        return settings, dict(arrays)


def config_of(settings):
    compressed = {}
    if settings.get("qr"):
        compressed = {
            "method": "qr",
            "pool_order": "pool_then_combine",
            "init": "reference_qr",
            **settings["qr"],
        }
    dim = settings["emb_dim"]
    tables = [TableConfig(rows, dim, **compressed) for rows in settings["ln_emb"]]
    loss_weights = settings.get("loss_weights", "1-1").split("-")
    return DLRMConfig(
        tables,
        settings["ln_bot"],
        settings["ln_top"][1:],
        interaction=settings.get("interaction_op", "dot"),
        interaction_itself=settings.get("interaction_itself", False),
        weighted_pooling=settings.get("weighted_pooling") or "none",
        loss=settings.get("loss_function", "mse"),
        loss_weights=tuple(map(float, loss_weights)),
        loss_threshold=settings.get("loss_threshold", 0.0),
    )


def batch_of(config, arrays):
    tables = range(len(config.tables))
    return make_batch(
        config,
        arrays["in/dense"],
        [arrays[f"in/indices_{t}"] for t in tables],
        offsets=[arrays[f"in/offsets_{t}"] for t in tables],
        labels=arrays["in/label"],
    )


def state_of(arrays, prefix):
    """Weights, or gradients, by the original's names."""
    start = f"{prefix}/"
    return {
        key.removeprefix(start): value
        for key, value in arrays.items()
        if key.startswith(start)
    }
