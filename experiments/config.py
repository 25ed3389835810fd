"""The configuration of a training run: frozen dataclasses, checked when made.

Presets (`experiments/presets/`) are functions that return a complete `TrainConfig`;
every field can be overridden on the command line as `--config.group.field=value`.
"""

import dataclasses
import math

from experiments.batch_config import BatchConfig, NoiseScaleConfig
from experiments.config_checks import (
    require,
    require_at_least,
    require_fraction,
    require_one_of,
)
from models.llama import LlamaConfig

DATA_SOURCES = ("stdlib", "text", "jsonl", "parquet", "array_record", "huggingface")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it becomes batches."""

    source: str = "stdlib"  # one of DATA_SOURCES; stdlib needs no files
    path: str = (
        ""  # file, folder or glob of the training text; Hub name for huggingface
    )
    validation_path: str = ""  # same for validation; empty: hold out a share of `path`
    validation_fraction: float = 0.05  # share of documents held out, by content hash
    text_field: str = "text"  # record field that holds the text
    tokenizer: str = "byte"  # byte | byte_special | a tokenizer.json | a .model file
    seq_len: int = 64  # tokens predicted per row
    shuffle_window: int = 8192  # rows mixed together when a source is only streamed
    num_threads: int = 1  # reader threads; does not change the order of the data
    prefetch: int = 8  # batches read ahead

    def __post_init__(self):
        require_one_of("data.source", self.source, DATA_SOURCES)
        require(
            self.source == "stdlib" or bool(self.path),
            f"data.path must be given for data.source={self.source!r}",
        )
        require_fraction("data.validation_fraction", self.validation_fraction)
        require_at_least("data.seq_len", self.seq_len, 2)
        require_at_least("data.shuffle_window", self.shuffle_window, 1)
        require_at_least("data.num_threads", self.num_threads, 0)
        require_at_least("data.prefetch", self.prefetch, 0)


SCHEDULES = ("cosine", "linear", "constant")
REFRESH_MODES = ("cond", "staggered", "external")
GRAFTINGS = ("adam", "adagrad", "rmsprop", "sgd", "none")
POLAR_METHODS = ("svd", "polar")
LINE_SEARCHES = (
    "armijo",
    "armijo_interp",
    "weak_wolfe",
    "weak_wolfe_interp",
    "strong_wolfe",
    "fixed",
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Which transformation, and its numbers; unused fields are ignored."""

    name: str = "adamw"  # a key of experiments.optimizers, or gpa+<key>
    learning_rate: float = 1e-3  # peak
    schedule: str = "cosine"  # one of SCHEDULES, after a linear warm-up
    warmup_fraction: float = 0.05  # share of the run
    final_fraction: float = 0.0  # last learning rate as a share of the peak
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # on matrices and embeddings, not on norms and biases
    momentum: float = 0.9  # sgd, signum, specsgd, muon
    spectral_method: str = "svd"  # specsgd: svd (exact) | polar (products only)
    consistent_rms: float = 0.0  # muon: RMS of an update over the rate; 0: Muon's own
    clip_norm: float = 1.0  # global gradient norm; inf switches clipping off
    mu_x: float = 0.9967  # gpa: smoothing of the evaluated sequence
    mu_y: float = 0.7  # gpa: how close gradients are taken to it
    decay_mode: str = (
        "shrink_z"  # gpa_adamw: shrink_z | shrink_y | coupled_z | coupled_y
    )
    inner_steps: int = 16  # diloco
    outer_learning_rate: float = 0.7  # diloco
    outer_momentum: float = 0.9  # diloco
    ema_decay: float = 0.99  # adamw_ema
    precondition_frequency: int = 10  # shampoo family: steps between refreshes
    max_preconditioner_dim: int = 1024  # shampoo family: size of a block's side
    refresh: str = (
        "cond"  # shampoo family: cond (all at once) | staggered (a share at each step)
        # | external (all at once, in a program of its own)
    )
    relative_epsilon: float = 1e-6  # shampoo family: damping over a factor's norm
    grafting: str = "adam"  # shampoo, kl_shampoo: whose norm a block's update gets
    memory_size: int = 10  # pb_lbfgs: curvature pairs kept
    theta: float = 0.9  # pb_lbfgs: noise of a step it tolerates before asking for rows
    line_search: str = "armijo"  # pb_lbfgs: one of LINE_SEARCHES
    damping: bool = True  # pb_lbfgs: Powell damping in place of skipping pairs

    def __post_init__(self):
        require_one_of("optimizer.schedule", self.schedule, SCHEDULES)
        require_one_of("optimizer.refresh", self.refresh, REFRESH_MODES)
        require_one_of("optimizer.grafting", self.grafting, GRAFTINGS)
        require_one_of("optimizer.spectral_method", self.spectral_method, POLAR_METHODS)
        require_one_of("optimizer.line_search", self.line_search, LINE_SEARCHES)
        for name in ("precondition_frequency", "max_preconditioner_dim", "memory_size"):
            require_at_least(f"optimizer.{name}", getattr(self, name), 1)
        require_fraction("optimizer.relative_epsilon", self.relative_epsilon)
        for name in (
            "learning_rate",
            "eps",
            "weight_decay",
            "final_fraction",
            "consistent_rms",
        ):
            require_at_least(f"optimizer.{name}", getattr(self, name), 0.0)
        for name in ("warmup_fraction", "b1", "b2", "momentum", "ema_decay"):
            require_fraction(f"optimizer.{name}", getattr(self, name))
        for name in ("clip_norm", "theta"):
            value = getattr(self, name)
            require(value > 0, f"optimizer.{name} must be > 0, got {value}")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes all that remain (at most one -1)."""

    data: int = -1  # replicas of the parameters
    fsdp: int = 1  # parameters split, batch split
    model: int = 1  # tensor parallel

    def __post_init__(self):
        sizes = dataclasses.astuple(self)
        require(
            all(size == -1 or size >= 1 for size in sizes) and sizes.count(-1) <= 1,
            "mesh axes must be >= 1, with at most one -1 (all that remain), got "
            f"data={self.data}, fsdp={self.fsdp}, model={self.model}",
        )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """When and on how much the validation loss is computed."""

    every: int = 100  # steps of batch.size rows; the last step is always evaluated
    batches: int = 16  # of batch.micro_size rows, the same ones every time
    gradient_point: bool = True  # averaging methods: also the loss at y

    def __post_init__(self):
        require_at_least("evaluation.every", self.every, 1)
        require_at_least("evaluation.batches", self.batches, 1)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept so that a run can go on."""

    every: int = 500  # steps of batch.size rows; 0: only at the end, on preemption
    keep: int = 3  # newest ones kept; the best one by validation loss is kept besides

    def __post_init__(self):
        require_at_least("checkpoint.every", self.every, 0)
        require_at_least("checkpoint.keep", self.keep, 1)


@dataclasses.dataclass(frozen=True)
class StoppingConfig:
    """When a run ends before its last step."""

    target_loss: float = -math.inf  # stop once eval/loss is at or below
    max_seconds: float = math.inf  # of training, compilation not counted
    on_nonfinite: str = "stop"  # stop | skip: a step with a non-finite loss or gradient

    def __post_init__(self):
        require_one_of("stopping.on_nonfinite", self.on_nonfinite, ("stop", "skip"))
        require(
            self.max_seconds > 0,
            f"stopping.max_seconds must be > 0, got {self.max_seconds}",
        )


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """What is written while the run goes on."""

    every: int = 10  # steps of batch.size rows between rows of training metrics
    tensorboard: bool = True
    progress: bool = True  # a bar on a terminal; nothing elsewhere

    def __post_init__(self):
        require_at_least("logging.every", self.every, 1)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One whole run.

    It trains on `steps * batch.size` rows. Schedules, evaluations, checkpoints and log
    rows are placed by the rows trained on, in units of `batch.size`: as long as the
    batch keeps its size these are steps.
    """

    model: LlamaConfig
    steps: int
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch: BatchConfig = BatchConfig()
    noise_scale: NoiseScaleConfig = NoiseScaleConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stopping: StoppingConfig = StoppingConfig()
    logging: LoggingConfig = LoggingConfig()
    seed: int = 0  # parameters, data order and dropout
    deterministic: bool = False  # accelerators: deterministic kernels, slower

    @property
    def total_samples(self) -> int:
        """Rows the run trains on, whatever the batch does meanwhile."""
        return self.steps * self.batch.size

    def __post_init__(self):
        require_at_least("steps", self.steps, 1)
        require(
            self.total_samples < 2**31,
            f"steps * batch.size = {self.total_samples} rows do not fit 32 bits",
        )
        require(
            self.batch.apply_lag < self.noise_scale.every,
            f"batch.apply_lag={self.batch.apply_lag} must be below "
            f"noise_scale.every={self.noise_scale.every}",
        )
        require(
            self.data.seq_len <= self.model.max_seq_len,
            f"data.seq_len={self.data.seq_len} exceeds "
            f"model.max_seq_len={self.model.max_seq_len}",
        )
        self._check_estimators()

    def _check_estimators(self):
        geometry, noise_scale = self.batch.adaptive, self.noise_scale
        require(
            noise_scale.signal != "debiased" or geometry in ("none", "l2"),
            "noise_scale.signal=debiased exists for batch.adaptive=l2 only, got "
            f"{geometry!r}; alignment is the unbiased signal of the others",
        )
        require(
            noise_scale.sqrt_bias == "none" or geometry != "spectral",
            "noise_scale.sqrt_bias=gaussian exists for batch.adaptive=sign, got "
            f"{geometry!r}",
        )


# Fields that may differ between a run and its continuation: they change what is
# written or when the run stops, not the trajectory up to a given step. The mesh is
# among them because a checkpoint restores onto any mesh.
FREE_ON_RESUME = (
    "mesh",
    "evaluation",
    "checkpoint",
    "stopping",
    "logging",
    "data.path",  # the text is compared by its hash
    "data.validation_path",
    "batch.path",  # so is what stands in it
    "data.num_threads",
    "data.prefetch",
)
