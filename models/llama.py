"""Llama: a decoder-only transformer (arXiv:2302.13971) as plain functions."""

import dataclasses
import functools
import math

import jax
from flax import nnx
from jax.sharding import PartitionSpec

from models.decoder import Decoder, bind
from models.flops import llama_flops_per_token
from models.losses import token_cross_entropy
from models.model import Batch, Model, Params
from optim_jax import MatrixAxes, matrix_axes_from_rules

INITS = ("scaled", "llama")
REMAT_POLICIES = (
    "none",
    "full",
    "nothing_saveable",
    "everything_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape and numerics of a Llama, checked when made."""

    d_model: int  # width of the residual stream
    d_ff: int  # width of the gated feed-forward layer
    num_layers: int
    num_heads: int  # query heads; d_model / num_heads must be an even integer
    num_kv_heads: int  # key-value heads; divides num_heads
    vocab_size: int
    max_seq_len: int  # longest row, in tokens
    norm_eps: float = 1e-5
    rope_theta: float = 1e4  # base of the rotary frequencies
    tie_embeddings: bool = False  # logits from the embedding table, no head
    init: str = "scaled"  # scaled: normal(0.02) cut at 3 sigma, residual outputs
    # / sqrt(2 L); llama: normal(0.02) everywhere
    scan_layers: bool = False  # one compiled block, kernels stacked [L, in, out]
    remat: str = "none"  # recompute blocks in the backward pass: one of REMAT_POLICIES
    compute_dtype: str = "float32"  # of activations; norms, softmax, loss are float32
    param_dtype: str = "float32"
    dropout: float = 0.0  # on what each block adds to the residual stream
    z_loss: float = 0.0  # coefficient of mean(logsumexp(logits)^2); typical 1e-4

    def __post_init__(self):
        for name in _SIZES:
            _check_size(name, getattr(self, name))
        for name in ("norm_eps", "rope_theta"):
            value = getattr(self, name)
            _require(0 < value < math.inf, name, f"must be positive, got {value}")
        self._check_heads()
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            choices = ", ".join(allowed)
            _require(value in allowed, name, f"must be one of {choices}, got {value!r}")
        _require(
            0 <= self.dropout < 1, "dropout", f"must lie in [0, 1), got {self.dropout}"
        )
        _require(
            0 <= self.z_loss < math.inf,
            "z_loss",
            f"must be >= 0 and finite, got {self.z_loss}",
        )

    def _check_heads(self):
        heads, kv_heads = self.num_heads, self.num_kv_heads
        _require(
            self.d_model % (2 * heads) == 0,
            "d_model",
            f"must be a multiple of 2 * model.num_heads={2 * heads} (rotary embedding "
            f"pairs the features of a head), got {self.d_model}",
        )
        _require(
            heads % kv_heads == 0,
            "num_kv_heads",
            f"must divide model.num_heads={heads}, got {kv_heads}",
        )

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.d_model // self.num_heads


_SIZES = (
    "d_model",
    "d_ff",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "vocab_size",
    "max_seq_len",
)
_CHOICES = {
    "init": INITS,
    "remat": REMAT_POLICIES,
    "compute_dtype": DTYPES,
    "param_dtype": DTYPES,
}


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise ValueError(f"model.{field} {message}")


def _check_size(name: str, value: int) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    _require(is_integer and value >= 1, name, f"must be an integer >= 1, got {value!r}")


def partition_rules(config: LlamaConfig) -> tuple[tuple[str, PartitionSpec], ...]:
    """Splits kernels over `fsdp` and `model`, column-parallel then row-parallel.

    Query, key, value, gate, up and head are split over `model` on the output side,
    attention output and down on the input side, so that a block needs one reduction
    over `model` per residual branch (arXiv:1909.08053).
    """
    stack = (None,) if config.scan_layers else ()
    column = PartitionSpec(*stack, "fsdp", "model")
    row = PartitionSpec(*stack, "model", "fsdp")
    return (
        (r"^token_embedding/embedding$", PartitionSpec("model", "fsdp")),
        (r"^head/kernel$", PartitionSpec("fsdp", "model")),
        (r"/attention/(query|key|value)/kernel$", column),
        (r"/attention/output/kernel$", row),
        (r"/feed_forward/(gate|up)/kernel$", column),
        (r"/feed_forward/down/kernel$", row),
        (r"norm/scale$", PartitionSpec()),
    )


def matrix_rules(config: LlamaConfig) -> tuple[tuple[str, MatrixAxes], ...]:
    """Says what every leaf is; layers stacked by `scan_layers` are a batch axis.

    A tied table has kind `embedding` although it is also the head.
    """
    if config.scan_layers:
        hidden = MatrixAxes("hidden", (0,), (1,), (2,))
    else:
        hidden = MatrixAxes("hidden")
    return (
        (r"^token_embedding/embedding$", MatrixAxes("embedding")),
        (r"^head/kernel$", MatrixAxes("head")),
        (r"^layers/(.*/)?(attention|feed_forward)/\w+/kernel$", hidden),
        (r"norm/scale$", MatrixAxes("norm")),
    )


def _check_batch(config: LlamaConfig, batch: Batch) -> None:
    shape = batch["tokens"].shape
    if len(shape) != 2 or shape[1] > config.max_seq_len:
        raise ValueError(
            "batch tokens must have shape [rows, length] with length <= "
            f"model.max_seq_len={config.max_seq_len}, got {shape}"
        )
    for name in ("targets", "weights", "positions", "segment_ids"):
        if batch.get(name) is not None and batch[name].shape != shape:
            raise ValueError(
                f"batch {name} must have the shape {shape} of tokens, "
                f"got {batch[name].shape}"
            )


def _dropout_key(
    config: LlamaConfig, key: jax.Array | None, train: bool
) -> jax.Array | None:
    if not train or not config.dropout:
        return None
    if key is None:
        raise ValueError(f"model.dropout={config.dropout} needs a key when train=True")
    return key


@functools.lru_cache
def build_llama(config: LlamaConfig) -> Model:
    """Builds the pure functions of a Llama.

    A batch maps names to arrays `[B, T]`: `tokens` and, for the loss, `targets`
    (int32; a negative label carries no weight); optional are `weights` (float32),
    `positions` (int32, the place within the packed example) and `segment_ids` (int32,
    which packed example; 0 is padding). Without them every row is one example, and
    every token that is not padding weighs 1.

    Args:
      config: shape and numerics.

    Returns:
      The model. The same config gives the same object, so compiled functions are
      found again.
    """

    @jax.jit
    def init(key: jax.Array) -> Params:
        decoder = Decoder(config, rngs=nnx.Rngs(params=key))
        return nnx.to_pure_dict(nnx.state(decoder))

    def apply(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        _check_batch(config, batch)
        return bind(config, params)(
            batch["tokens"],
            batch.get("positions"),
            batch.get("segment_ids"),
            _dropout_key(config, key, train),
        )

    def loss(
        params: Params,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = apply(params, batch, key=key, train=train)
        weights = batch.get("weights")
        if weights is None and batch.get("segment_ids") is not None:
            weights = batch["segment_ids"] != 0
        return token_cross_entropy(
            logits, batch["targets"], weights, z_loss=config.z_loss
        )

    seq_len = config.max_seq_len
    return Model(
        init=init,
        apply=apply,
        loss=loss,
        partition_rules=partition_rules(config),
        matrix_axes=matrix_axes_from_rules(matrix_rules(config)),
        flops_per_example=seq_len * llama_flops_per_token(config, seq_len),
    )
