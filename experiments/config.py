"""The configuration of a training run: frozen dataclasses, checked when made.

Presets (`experiments/presets/`) are functions that return a complete `TrainConfig`;
every field can be overridden on the command line as `--config.group.field=value`.
"""

import dataclasses
import math

from models.llama import LlamaConfig


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(
        value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}"
    )


def _require_at_least(name: str, value: float, low: float) -> None:
    # Written so that NaN fails.
    _require(value >= low, f"{name} must be >= {low}, got {value}")


def _require_fraction(name: str, value: float) -> None:
    _require(0.0 <= value < 1.0, f"{name} must lie in [0, 1), got {value}")


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
        _require_one_of("data.source", self.source, DATA_SOURCES)
        _require(
            self.source == "stdlib" or bool(self.path),
            f"data.path must be given for data.source={self.source!r}",
        )
        _require_fraction("data.validation_fraction", self.validation_fraction)
        _require_at_least("data.seq_len", self.seq_len, 2)
        _require_at_least("data.shuffle_window", self.shuffle_window, 1)
        _require_at_least("data.num_threads", self.num_threads, 0)
        _require_at_least("data.prefetch", self.prefetch, 0)


SCHEDULES = ("cosine", "linear", "constant")
REFRESH_MODES = ("cond", "staggered", "external")
GRAFTINGS = ("adam", "adagrad", "rmsprop", "sgd", "none")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Which transformation, and its numbers; unused fields are ignored."""

    name: str = "adamw"  # a key of experiments.optimizers, or gpa+<key>
    learning_rate: float = 1e-3  # peak
    schedule: str = "cosine"  # one of SCHEDULES, after a linear warm-up
    warmup_fraction: float = 0.05  # share of the run's steps
    final_fraction: float = 0.0  # last learning rate as a share of the peak
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # on matrices and embeddings, not on norms and biases
    momentum: float = 0.9  # sgd, muon
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

    def __post_init__(self):
        _require_one_of("optimizer.schedule", self.schedule, SCHEDULES)
        _require_one_of("optimizer.refresh", self.refresh, REFRESH_MODES)
        _require_one_of("optimizer.grafting", self.grafting, GRAFTINGS)
        for name in ("precondition_frequency", "max_preconditioner_dim"):
            _require_at_least(f"optimizer.{name}", getattr(self, name), 1)
        _require_fraction("optimizer.relative_epsilon", self.relative_epsilon)
        for name in ("learning_rate", "eps", "weight_decay", "final_fraction"):
            _require_at_least(f"optimizer.{name}", getattr(self, name), 0.0)
        for name in ("warmup_fraction", "b1", "b2", "momentum", "ema_decay"):
            _require_fraction(f"optimizer.{name}", getattr(self, name))
        _require(
            self.clip_norm > 0,
            f"optimizer.clip_norm must be > 0, got {self.clip_norm}",
        )


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """The batch is a number of micro-batches of one fixed size."""

    size: int = 16  # rows per step, over all devices
    micro_batch: int = 0  # rows per accumulation, over all devices; 0: the whole batch

    def __post_init__(self):
        _require_at_least("batch.size", self.size, 1)
        _require_at_least("batch.micro_batch", self.micro_batch, 0)
        _require(
            self.size % self.micro_size == 0,
            f"batch.size={self.size} is not a multiple of "
            f"batch.micro_batch={self.micro_batch}",
        )

    @property
    def micro_size(self) -> int:
        """Rows per accumulation, over all devices."""
        return self.micro_batch or self.size

    @property
    def accumulations(self) -> int:
        """Micro-batches per step."""
        return self.size // self.micro_size


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes all that remain (at most one -1)."""

    data: int = -1  # replicas of the parameters
    fsdp: int = 1  # parameters split, batch split
    model: int = 1  # tensor parallel

    def __post_init__(self):
        sizes = dataclasses.astuple(self)
        _require(
            all(size == -1 or size >= 1 for size in sizes) and sizes.count(-1) <= 1,
            "mesh axes must be >= 1, with at most one -1 (all that remain), got "
            f"data={self.data}, fsdp={self.fsdp}, model={self.model}",
        )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """When and on how much the validation loss is computed."""

    every: int = 100  # steps; the last step is always evaluated
    batches: int = 16  # of batch.micro_size rows, the same ones every time
    gradient_point: bool = True  # averaging methods: also the loss at y

    def __post_init__(self):
        _require_at_least("evaluation.every", self.every, 1)
        _require_at_least("evaluation.batches", self.batches, 1)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """What is kept so that a run can go on."""

    every: int = 500  # steps; 0: only at the end and on preemption
    keep: int = 3  # newest ones kept; the best one by validation loss is kept besides

    def __post_init__(self):
        _require_at_least("checkpoint.every", self.every, 0)
        _require_at_least("checkpoint.keep", self.keep, 1)


@dataclasses.dataclass(frozen=True)
class StoppingConfig:
    """When a run ends before its last step."""

    target_loss: float = -math.inf  # stop once eval/loss is at or below
    max_seconds: float = math.inf  # of training, compilation not counted
    on_nonfinite: str = "stop"  # stop | skip: a step with a non-finite loss or gradient

    def __post_init__(self):
        _require_one_of("stopping.on_nonfinite", self.on_nonfinite, ("stop", "skip"))
        _require(
            self.max_seconds > 0,
            f"stopping.max_seconds must be > 0, got {self.max_seconds}",
        )


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """What is written while the run goes on."""

    every: int = 10  # steps between rows of training metrics
    tensorboard: bool = True
    progress: bool = True  # a bar on a terminal; nothing elsewhere

    def __post_init__(self):
        _require_at_least("logging.every", self.every, 1)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One whole run."""

    model: LlamaConfig
    steps: int
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    batch: BatchConfig = BatchConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stopping: StoppingConfig = StoppingConfig()
    logging: LoggingConfig = LoggingConfig()
    seed: int = 0  # parameters, data order and dropout
    deterministic: bool = False  # accelerators: deterministic kernels, slower

    def __post_init__(self):
        _require_at_least("steps", self.steps, 1)
        _require(
            self.data.seq_len <= self.model.max_seq_len,
            f"data.seq_len={self.data.seq_len} exceeds "
            f"model.max_seq_len={self.model.max_seq_len}",
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
    "data.num_threads",
    "data.prefetch",
)
