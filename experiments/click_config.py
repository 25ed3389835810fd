"""The configuration of a run that trains DLRM or DCN on clicks.

Groups that any run has (`batch`, `mesh`, `evaluation`, …) are those of
`experiments.config`. Lists of widths are written `512-256-64`, outermost first.
"""

import dataclasses
import math

from experiments.batch_config import BatchConfig, NoiseScaleConfig
from experiments.config import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    MeshConfig,
    OptimizerConfig,
    StoppingConfig,
)
from experiments.config_checks import (
    require,
    require_at_least,
    require_fraction,
    require_one_of,
)

FAMILIES = ("dlrm", "dcn")
TABLE_METHODS = (
    "full",
    "hash",
    "qr",
    "mixed_radix",
    "crt",
    "path",
    "features",
    "mixed",
)


def numbers(name: str, text: str, kind: type = int) -> tuple:
    """A dash-separated list, `512-256-64` -> (512, 256, 64).

    Raises:
      ValueError: an entry is not a number of this kind; names the field.
    """
    try:
        return tuple(kind(entry) for entry in text.split("-"))
    except ValueError:
        raise ValueError(
            f"{name} must be numbers joined by dashes, like 512-256-64, got {text!r}"
        ) from None


@dataclasses.dataclass(frozen=True)
class ClickModelConfig:
    """Shape and loss of the model; the data say how many rows its tables have."""

    family: str = "dlrm"  # one of FAMILIES
    dim: int = 16  # width of every embedding
    bottom: str = "512-256-64-16"  # widths after the dense features; dlrm: ends in dim
    top: str = "512-256-1"  # dlrm: after the interaction; dcn: the deep side
    interaction: str = "dot"  # dlrm: dot | cat
    interaction_itself: bool = False  # dlrm: products of vectors with themselves too
    weighted_pooling: str = "none"  # dlrm: none | fixed | learned
    cross: str = "vector"  # dcn: vector | matrix | low_rank | mixture
    cross_layers: int = 3  # dcn
    rank: int = 0  # dcn: of low_rank and mixture
    head: str = "parallel"  # dcn: parallel | stacked
    method: str = "full"  # of tables above the threshold: one of TABLE_METHODS
    op: str = "mult"  # how parts are combined: concat | add | mult
    collisions: int = 4  # qr, hash, path, features: ids that share a row
    parts: int = 2  # mixed_radix, crt: number of partitions
    threshold: int = 200  # tables of at most this many rows stay full
    pool_order: str = "combine_then_pool"  # | pool_then_combine
    table_init: str = "default"  # see models.embeddings.TableConfig.init
    path_hidden: int = 16  # path: hidden width of the functions
    mixed_temperature: float = 0.3  # mixed: how fast widths fall with the rows
    mixed_round: bool = False  # mixed: widths are powers of two
    init: str = "jax"  # initial weights: jax | reference, the original's NumPy draws
    loss: str = "bce"  # bce | wbce | mse
    loss_weights: str = "1.0-1.0"  # wbce: of labels 0 and 1
    loss_threshold: float = 0.0  # clips probabilities where in (0, 1)
    compute_dtype: str = "float32"  # of the perceptrons' products

    def __post_init__(self):
        require_one_of("model.family", self.family, FAMILIES)
        require_one_of("model.method", self.method, TABLE_METHODS)
        require_one_of("model.init", self.init, ("jax", "reference"))
        require(
            self.init == "jax" or self.family == "dlrm",
            "model.init=reference are draws of a dlrm, got model.family="
            f"{self.family!r}",
        )
        require(
            self.family == "dlrm" or self.compute_dtype == "float32",
            "model.compute_dtype is for model.family=dlrm, got "
            f"{self.compute_dtype!r} with {self.family!r}",
        )
        require_at_least("model.dim", self.dim, 1)
        require_at_least("model.threshold", self.threshold, 0)
        require_at_least("model.parts", self.parts, 2)
        require(
            self.init == "jax" or self.method == "full",
            "model.init=reference draws full tables only, got model.method="
            f"{self.method!r}",
        )
        for name in ("bottom", "top"):
            text = getattr(self, name)
            if text:
                numbers(f"model.{name}", text)
        weights = numbers("model.loss_weights", self.loss_weights, float)
        require(
            len(weights) == 2,
            f"model.loss_weights must be two numbers, got {self.loss_weights!r}",
        )
        require(bool(self.top), "model.top must not be empty")


CLICK_SOURCES = (
    "planted",
    "name_calls",
    "random",
    "synthetic",
    "criteo",
    "prepared",
    "npz",
    "torchrec",
)
SHUFFLES = ("none", "day", "total")


@dataclasses.dataclass(frozen=True)
class ClickDataConfig:
    """Where the samples come from."""

    source: str = "planted"  # one of CLICK_SOURCES; the first three need no files
    path: str = ""  # criteo: a text file (Kaggle) or a folder of day files; prepared:
    # the folder that `--mode=preprocess` wrote; npz: the original implementation's
    # joined file; torchrec: folder of day_*_{dense,sparse,labels}.npy; synthetic: the
    # profiles of the tables, with a j for the number of the table
    world: str = "P1"  # planted: P1 | O1
    train_rows: int = 200_000  # planted: training samples
    test_rows: int = 50_000  # planted: validation samples
    tables: str = "4-3-2"  # random: rows of the tables
    num_dense: int = 4  # random: dense features
    samples: int = 1024  # random: samples of an epoch
    ids_per_lookup: int = 10  # random: largest bag
    fixed_bags: bool = False  # random: every bag is that large
    round_targets: bool = True  # random, synthetic: labels are 0 or 1
    distribution: str = "uniform"  # random: uniform | gaussian
    gaussian_min: float = 0.0  # random, gaussian: ids are clipped to this range
    gaussian_max: float = 1.0
    gaussian_mu: float = -1.0  # -1: the middle of the range
    gaussian_sigma: float = 1.0
    vocabulary: str = "train"  # criteo: train | all | frequency | hash
    min_count: int = 0  # criteo, frequency: rarer ids share a row
    hash_rows: int = 0  # criteo, hash: rows of every table
    max_ind_range: int = -1  # criteo: ids modulo this, if > 0
    sub_sample_rate: float = 0.0  # criteo: share of label-0 rows left out
    on_bad_line: str = "error"  # criteo: error | skip
    dense_transform: str = "log1p_clip"  # criteo: log1p_clip | log_shift | none
    halves: str = "test_first"  # criteo: halves of the last part, or validation_first
    multi_hot: bool = False  # criteo: every id becomes a fixed bag, as in MLPerf v2
    shuffle: str = "total"  # none | day | total: order of the training samples
    id_policy: str = "error"  # id outside its table: error | clip | drop | hash
    nan_policy: str = "error"  # non-finite dense feature: error | zero
    shuffle_rows: int = 1 << 18  # criteo: rows of the buffer that shuffles an epoch
    cache_dir: str = ""  # criteo: folder the text is prepared into, once; name_calls:
    # keeps the tokenised corpus here
    seed: int = 123  # of generated data and sub-sampling

    def __post_init__(self):
        require_one_of("data.source", self.source, CLICK_SOURCES)
        require_one_of("data.shuffle", self.shuffle, SHUFFLES)
        needs_path = self.source in CLICK_SOURCES[3:]
        require(
            bool(self.path) or not needs_path,
            f"data.path must be given for data.source={self.source!r}",
        )
        require_one_of("data.halves", self.halves, ("test_first", "validation_first"))
        require_fraction("data.sub_sample_rate", self.sub_sample_rate)
        for name in (
            "train_rows",
            "test_rows",
            "samples",
            "ids_per_lookup",
            "shuffle_rows",
        ):
            require_at_least(f"data.{name}", getattr(self, name), 1)
        numbers("data.tables", self.tables)


TABLE_RULES = ("sgd", "adagrad", "row_wise_adagrad")
TABLE_LAYOUTS = ("auto", "replicated", "table", "row", "column")


@dataclasses.dataclass(frozen=True)
class TableOptimizerConfig:
    """How the rows of the embedding tables are updated, and where they lie."""

    rule: str = "row_wise_adagrad"  # one of TABLE_RULES
    learning_rate: float = 0.01  # peak; follows the schedule of the dense part
    eps: float = 1e-8
    lr_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    layout: str = "auto"  # on several devices: auto | replicated | table | row | column
    byte_budget: int = 0  # auto: bytes of a device for tables; 0: whatever is needed

    def __post_init__(self):
        require_one_of("tables.rule", self.rule, TABLE_RULES)
        require_one_of("tables.layout", self.layout, TABLE_LAYOUTS)
        for name in ("learning_rate", "eps", "lr_decay", "initial_accumulator_value"):
            require_at_least(f"tables.{name}", getattr(self, name), 0.0)
        require_at_least("tables.byte_budget", self.byte_budget, 0)


RATE_MODES = ("optimizer", "standard", "reference")


@dataclasses.dataclass(frozen=True)
class RateConfig:
    """Warm-up, plateau and quadratic decay of the learning rate, in steps."""

    mode: str = "optimizer"  # optimizer: its own schedule; standard | reference: this
    warmup_steps: int = 0
    decay_start: int = 0
    decay_steps: int = 0  # 0: no decay
    end_value: float = 1e-7  # standard: rate after the decay

    def __post_init__(self):
        require_one_of("rate.mode", self.mode, RATE_MODES)
        for name in ("warmup_steps", "decay_start", "decay_steps", "end_value"):
            require_at_least(f"rate.{name}", getattr(self, name), 0)


@dataclasses.dataclass(frozen=True)
class ClickStoppingConfig(StoppingConfig):
    """When a run ends before its last step."""

    target_accuracy: float = math.inf  # stop once eval/accuracy is at or above
    target_auc: float = math.inf  # stop once eval/auc is at or above


@dataclasses.dataclass(frozen=True)
class ClickTrainConfig:
    """One whole run.

    The batch has one size; `batch.micro_batch` accumulates gradients over parts of it.
    """

    model: ClickModelConfig = ClickModelConfig()
    epochs: float = 1.0  # passes over the training samples, where steps = 0
    steps: int = 0  # updates; 0: as many as `epochs` need
    data: ClickDataConfig = ClickDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()  # of everything but the tables
    tables: TableOptimizerConfig = TableOptimizerConfig()
    rate: RateConfig = RateConfig()
    batch: BatchConfig = BatchConfig(size=128)
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig(every=1000, batches=1000)
    checkpoint: CheckpointConfig = CheckpointConfig()
    stopping: ClickStoppingConfig = ClickStoppingConfig()
    logging: LoggingConfig = LoggingConfig()
    seed: int = 0  # parameters and data order
    deterministic: bool = False  # accelerators: deterministic kernels, slower

    @property
    def total_samples(self) -> int:
        """Rows the run trains on, those that fill up last batches included."""
        return self.steps * self.batch.size

    @property
    def noise_scale(self) -> NoiseScaleConfig:
        """Not measured in these runs."""
        return NoiseScaleConfig()

    def __post_init__(self):
        require_at_least("steps", self.steps, 0)
        require(
            self.steps > 0 or (self.epochs > 0 and math.isfinite(self.epochs)),
            f"epochs must be > 0 where steps=0, got {self.epochs}",
        )
        require(self.steps < 2**31, f"steps={self.steps} does not fit 32 bits")
        require(
            not self.batch.grows and not self.batch.path,
            "runs with embedding tables keep their batch: batch.adaptive, batch.path "
            "and batch.seesaw must be off",
        )
        require(
            self.optimizer.learning_rate > 0,
            "optimizer.learning_rate must be > 0: the tables follow its schedule, got "
            f"{self.optimizer.learning_rate}",
        )
        require(
            self.mesh.model == 1,
            "mesh.model must be 1: tables lie over mesh.data and mesh.fsdp, got "
            f"{self.mesh.model}",
        )


# See `experiments.config.FREE_ON_RESUME`.
CLICK_FREE_ON_RESUME = (
    "mesh",
    "evaluation",
    "checkpoint",
    "stopping",
    "logging",
    "data.path",  # the samples are compared by their hash
    "data.cache_dir",
    "tables.layout",
    "tables.byte_budget",
)
