"""The original command line: its defaults, its meanings, what is refused."""

import math

import pytest

from experiments.reference_flags import from_reference_args


def test_defaults_are_the_originals():
    config = from_reference_args([])
    model, data = config.model, config.data
    assert (model.dim, model.bottom, model.top) == (2, "3-2", "4-2-1")
    assert (model.interaction, model.interaction_itself) == ("dot", False)
    assert (model.loss, model.loss_threshold, model.init) == ("mse", 0.0, "reference")
    assert (data.source, data.tables, data.num_dense) == ("random", "4-3-2", 4)
    assert (data.samples, data.ids_per_lookup, data.fixed_bags) == (1, 10, False)
    assert not data.round_targets and data.seed == 123 and config.seed == 123
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("sgd", 0.01)
    assert config.optimizer.clip_norm == math.inf
    assert config.optimizer.weight_decay == config.optimizer.momentum == 0.0
    assert (config.tables.rule, config.tables.learning_rate) == ("sgd", 0.01)
    assert config.rate.mode == "reference" and config.batch.size == 1
    assert config.steps == 1


def test_the_kaggle_script():
    config = from_reference_args(
        "--arch-sparse-feature-size=16 --arch-mlp-bot=13-512-256-64-16 "
        "--arch-mlp-top=512-256-1 --data-generation=dataset --data-set=kaggle "
        "--raw-data-file=train.txt --loss-function=bce --round-targets=True "
        "--learning-rate=0.1 --mini-batch-size=128 --print-freq=1024 "
        "--test-freq=10240 --mlperf-acc-threshold=0.789".split()
    )
    assert (config.model.bottom, config.model.top) == ("512-256-64-16", "512-256-1")
    assert (config.data.source, config.data.path) == ("criteo", "train.txt")
    assert config.data.vocabulary == "all" and config.data.shuffle == "total"
    assert config.steps == 0 and config.epochs == 1.0
    assert config.evaluation.every == 10240 and config.logging.every == 1024
    assert config.stopping.target_accuracy == 0.789


def test_compressed_tables():
    config = from_reference_args(
        ["--qr-flag", "--qr-operation=concat", "--qr-collisions=8", "--qr-threshold=3"]
        + ["--arch-mlp-bot=4-3-4"]
    )
    model = config.model
    assert (model.method, model.op, model.collisions) == ("qr", "concat", 8)
    assert (model.threshold, model.dim) == (3, 4)
    assert (model.pool_order, model.table_init) == ("pool_then_combine", "reference_qr")
    assert model.init == "jax"
    mixed = from_reference_args(["--md-flag", "--md-round-dims"]).model
    assert (mixed.method, mixed.mixed_temperature) == ("mixed", 0.3)
    assert mixed.mixed_round and mixed.threshold == 200


def test_accumulation_is_real_and_booleans_mean_what_they_say():
    config = from_reference_args(
        ["--mlperf-grad-accum-iter=4", "--mini-batch-size=2", "--data-size=16"]
        + ["--round-targets=False", "--num-indices-per-lookup-fixed=true"]
    )
    assert (config.batch.size, config.batch.micro_batch) == (8, 2)
    assert config.steps == 2
    assert not config.data.round_targets and config.data.fixed_bags


@pytest.mark.parametrize(
    ("argument", "tables"),
    [("adagrad", "adagrad"), ("rwsadagrad", "row_wise_adagrad"), ("sgd", "sgd")],
)
def test_optimizers(argument, tables):
    config = from_reference_args([f"--optimizer={argument}"])
    assert config.tables.rule == tables
    assert config.optimizer.name == ("sgd" if argument == "sgd" else "adagrad")
    assert config.tables.eps == config.optimizer.eps == 1e-10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--no-such-flag=1", "unrecognized arguments: --no-such-flag=1"),
        ("--optimizer=adam", "--optimizer must be one of sgd, adagrad, rwsadagrad"),
        ("--arch-mlp-bot=4-3-3", "--arch-mlp-bot must end in 2 .*size=2"),
        ("--qr-flag --qr-operation=concat", "must end in 4 .*twice for concat"),
        ("--arch-mlp-bot=4-x-2", "numbers joined by dashes"),
        ("--weighted-pooling=learned --qr-flag", "goes with neither"),
        ("--weighted-pooling=fixed --md-flag", "goes with neither"),
        ("--qr-flag --md-flag", "cannot both"),
        ("--quantize-emb-with-bit=8", "for --inference-only"),
        ("--quantize-emb-with-bit=8 --inference-only --qr-flag", "quantization"),
        ("--quantize-mlp-with-bit=5", "must be one of 8, 16, 32"),
        ("--mini-batch-size=0", "--mini-batch-size must be >= 1"),
        ("--data-generation=dataset", "needs --raw-data-file"),
        ("--data-size=many", "invalid int value"),
        ("--round-targets=maybe", "round-targets"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_reference_args(arguments.split())
