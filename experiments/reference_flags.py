"""The original DLRM program's command line, translated into a run of ours.

Names, defaults and meanings are the original's (arXiv:1906.00091 and its public code),
with lists joined by dashes. What it gets wrong is done right, or refused: integer
quotients, real accumulation of gradients, booleans that mean what they say.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from experiments.batch_config import BatchConfig
from experiments.click_config import (
    ClickDataConfig,
    ClickModelConfig,
    ClickStoppingConfig,
    ClickTrainConfig,
    RateConfig,
    TableOptimizerConfig,
    numbers,
)
from experiments.config import EvaluationConfig, LoggingConfig, OptimizerConfig

_OPTIMIZERS = {
    "sgd": ("sgd", "sgd"),
    "adagrad": ("adagrad", "adagrad"),
    "rwsadagrad": ("adagrad", "row_wise_adagrad"),
}


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving the program."""

    def error(self, message: str):
        raise ValueError(message)


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise ValueError(f"must be true or false, got {text!r}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    add = parser.add_argument
    for name, default in (
        ("arch-sparse-feature-size", 2),
        ("qr-threshold", 200),
        ("qr-collisions", 4),
        ("md-threshold", 200),
        ("data-size", 1),
        ("num-batches", 0),
        ("num-indices-per-lookup", 10),
        ("mini-batch-size", 1),
        ("test-mini-batch-size", -1),
        ("nepochs", 1),
        ("numpy-rand-seed", 123),
        ("max-ind-range", -1),
        ("print-freq", 1),
        ("test-freq", -1),
        ("lr-num-warmup-steps", 0),
        ("lr-decay-start-step", 0),
        ("lr-num-decay-steps", 0),
        ("quantize-emb-with-bit", 32),
        ("quantize-mlp-with-bit", 32),
        ("mlperf-grad-accum-iter", 1),
    ):
        add(f"--{name}", type=int, default=default)
    for name, default in (
        ("md-temperature", 0.3),
        ("loss-threshold", 0.0),
        ("learning-rate", 0.01),
        ("data-sub-sample-rate", 0.0),
        ("rand-data-min", 0.0),
        ("rand-data-max", 1.0),
        ("rand-data-mu", -1.0),
        ("rand-data-sigma", 1.0),
        ("mlperf-acc-threshold", 0.0),
        ("mlperf-auc-threshold", 0.0),
    ):
        add(f"--{name}", type=float, default=default)
    for name, default in (
        ("arch-embedding-size", "4-3-2"),
        ("arch-mlp-bot", "4-3-2"),
        ("arch-mlp-top", "4-2-1"),
        ("arch-interaction-op", "dot"),
        ("weighted-pooling", None),
        ("qr-operation", "mult"),
        ("loss-function", "mse"),
        ("loss-weights", "1.0-1.0"),
        ("data-generation", "random"),
        ("data-trace-file", "./input/dist_emb_j.log"),
        ("data-set", "kaggle"),
        ("data-randomize", "total"),
        ("raw-data-file", ""),
        ("processed-data-file", ""),
        ("rand-data-dist", "uniform"),
        ("optimizer", "sgd"),
        ("save-model", ""),
        ("load-model", ""),
    ):
        add(f"--{name}", type=str, default=default)
    for name in (
        "arch-interaction-itself",
        "qr-flag",
        "md-flag",
        "md-round-dims",
        "inference-only",
    ):
        add(f"--{name}", action="store_true")
    for name in ("num-indices-per-lookup-fixed", "round-targets"):
        add(f"--{name}", type=_boolean, default=False)
    return parser


def from_reference_args(argv: Sequence[str]) -> ClickTrainConfig:
    """The run that the original program would do with these arguments.

    The schedule is the original's (`rate.mode=reference`), so are loss (squared error
    by default), initial weights, and the order in which quotient-remainder tables pool
    and combine. `save-model`, `load-model` and `inference-only` belong to the command
    line of `experiments.train_dlrm`: its folders and modes.

    Args:
      argv: arguments such as `["--mini-batch-size=128", "--learning-rate", "0.1"]`.

    Returns:
      The configuration.

    Raises:
      ValueError: an unknown flag or value, or flags that do not fit each other.
    """
    args = _parser().parse_args(list(argv))
    bottom = numbers("--arch-mlp-bot", args.arch_mlp_bot)
    dataset = args.data_generation == "dataset"
    if dataset:
        bottom = (13, *bottom[1:])
    _check(args, bottom)
    epochs_of = args.mini_batch_size * args.mlperf_grad_accum_iter
    return ClickTrainConfig(
        model=_model(args, bottom),
        epochs=float(args.nepochs),
        steps=0 if dataset and not args.num_batches else _steps(args),
        data=_data(args, bottom),
        optimizer=OptimizerConfig(
            name=_OPTIMIZERS[args.optimizer][0],
            learning_rate=args.learning_rate,
            schedule="constant",
            warmup_fraction=0.0,
            eps=1e-10,
            weight_decay=0.0,
            momentum=0.0,
            clip_norm=math.inf,
        ),
        tables=TableOptimizerConfig(
            rule=_OPTIMIZERS[args.optimizer][1],
            learning_rate=args.learning_rate,
            eps=1e-10,
        ),
        rate=RateConfig(
            mode="reference",
            warmup_steps=args.lr_num_warmup_steps,
            decay_start=args.lr_decay_start_step,
            decay_steps=args.lr_num_decay_steps,
        ),
        batch=BatchConfig(size=epochs_of, micro_batch=args.mini_batch_size),
        evaluation=EvaluationConfig(
            every=args.test_freq if args.test_freq > 0 else 2**30, batches=2**30
        ),
        stopping=ClickStoppingConfig(
            target_accuracy=args.mlperf_acc_threshold or math.inf,
            target_auc=args.mlperf_auc_threshold or math.inf,
        ),
        logging=LoggingConfig(every=args.print_freq),
        seed=args.numpy_rand_seed,
    )


def _check(args: argparse.Namespace, bottom: tuple[int, ...]) -> None:
    """Refuses what the original refuses, and what it would do wrong."""
    for name, allowed in (
        ("data_generation", ("random", "synthetic", "dataset")),
        ("data_set", ("kaggle", "terabyte")),
        ("data_randomize", ("none", "day", "total")),
        ("optimizer", tuple(_OPTIMIZERS)),
        ("quantize_emb_with_bit", (4, 8, 32)),
        ("quantize_mlp_with_bit", (8, 16, 32)),
    ):
        value = getattr(args, name)
        if value not in allowed:
            flag, choices = name.replace("_", "-"), ", ".join(map(str, allowed))
            raise ValueError(f"--{flag} must be one of {choices}, got {value!r}")
    width, compressed = args.arch_sparse_feature_size, args.qr_flag or args.md_flag
    joined = args.qr_flag and args.qr_operation == "concat"
    wanted = 2 * width if joined else width
    if bottom[-1] != wanted:
        twice = ", twice for concat" if joined else ""
        raise ValueError(
            f"--arch-mlp-bot must end in {wanted} "
            f"(--arch-sparse-feature-size={width}{twice}), got {args.arch_mlp_bot!r}"
        )
    if args.qr_flag and args.md_flag:
        raise ValueError("--qr-flag and --md-flag cannot both be given")
    if args.weighted_pooling and compressed:
        raise ValueError("--weighted-pooling goes with neither --qr-flag nor --md-flag")
    quantizes = min(args.quantize_emb_with_bit, args.quantize_mlp_with_bit) < 32
    if quantizes and compressed:
        raise ValueError("quantization goes with neither --qr-flag nor --md-flag")
    if quantizes and not args.inference_only:
        raise ValueError("quantization is for --inference-only")
    for name in ("mini_batch_size", "nepochs", "mlperf_grad_accum_iter"):
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be >= 1, got {getattr(args, name)}")


def _steps(args: argparse.Namespace) -> int:
    """Updates of all epochs."""
    batches = args.num_batches or -(-args.data_size // args.mini_batch_size)
    return max(1, args.nepochs * batches // args.mlperf_grad_accum_iter)


def _model(args: argparse.Namespace, bottom: tuple[int, ...]) -> ClickModelConfig:
    compressed: dict[str, Any] = {}
    if args.qr_flag:
        compressed = dict(
            method="qr",
            op=args.qr_operation,
            collisions=args.qr_collisions,
            threshold=args.qr_threshold,
            pool_order="pool_then_combine",
            table_init="reference_qr",
        )
    elif args.md_flag:
        compressed = dict(
            method="mixed",
            threshold=args.md_threshold,
            mixed_temperature=args.md_temperature,
            mixed_round=args.md_round_dims,
        )
    weighted = args.weighted_pooling or "none"
    if weighted not in ("none", "fixed"):
        weighted = "learned"
    return ClickModelConfig(
        dim=bottom[-1],
        bottom="-".join(map(str, bottom[1:])),
        top=args.arch_mlp_top,
        interaction=args.arch_interaction_op,
        interaction_itself=args.arch_interaction_itself,
        weighted_pooling=weighted,
        # Compressed tables draw from a generator that nobody seeded.
        init="jax" if compressed else "reference",
        loss=args.loss_function,
        loss_weights=args.loss_weights,
        loss_threshold=args.loss_threshold,
        **compressed,
    )


def _data(args: argparse.Namespace, bottom: tuple[int, ...]) -> ClickDataConfig:
    common = ClickDataConfig(seed=args.numpy_rand_seed)
    if args.data_generation != "dataset":
        batches = args.num_batches * args.mini_batch_size
        return dataclasses.replace(
            common,
            source=args.data_generation,
            path=args.data_trace_file if args.data_generation == "synthetic" else "",
            tables=args.arch_embedding_size,
            num_dense=bottom[0],
            samples=batches or args.data_size,
            ids_per_lookup=args.num_indices_per_lookup,
            fixed_bags=args.num_indices_per_lookup_fixed,
            round_targets=args.round_targets,
            distribution=args.rand_data_dist,
            gaussian_min=args.rand_data_min,
            gaussian_max=args.rand_data_max,
            gaussian_mu=args.rand_data_mu,
            gaussian_sigma=args.rand_data_sigma,
        )
    if args.processed_data_file:
        return dataclasses.replace(
            common,
            source="npz",
            path=args.processed_data_file,
            shuffle=args.data_randomize,
        )
    if not args.raw_data_file:
        raise ValueError(
            "--data-generation=dataset needs --raw-data-file or --processed-data-file"
        )
    return dataclasses.replace(
        common,
        source="criteo",
        path=args.raw_data_file,
        cache_dir=f"{args.raw_data_file}.prepared",
        vocabulary="all",
        max_ind_range=args.max_ind_range,
        sub_sample_rate=args.data_sub_sample_rate,
        shuffle=args.data_randomize,
    )
