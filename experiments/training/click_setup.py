"""Runs that train DLRM or DCN on clicks: the parts in which they differ from others.

Parameters and optimizer state are those of `sparse_step`: `{"dense": …, "rows": …}`.
Gradients of rows stay rows between micro-batches, one slot for each. Rows trained on
are counted in whole batches on the device: an epoch may have more than 2^31 samples.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.click_config import ClickTrainConfig, TableOptimizerConfig
from experiments.config_fields import to_dict
from experiments.data.click_data import ClickData, build_click_data
from experiments.optimizers import Optimizer, build_optimizer
from experiments.sharding import make_mesh, replicated
from experiments.sharding.table_plan import Plan as TablePlan
from experiments.sharding.table_plan import plan_tables
from experiments.training.batch_path import Change
from experiments.training.batch_rule import BatchRule
from experiments.training.click_architecture import (
    Architecture,
    architecture,
    build_model,
)
from experiments.training.click_evaluation import ClickEvaluator
from experiments.training.click_step import (
    build_click_accumulate,
    build_click_apply,
    row_rule,
)
from experiments.training.schedules import dlrm_schedule
from experiments.training.setup import DeviceBatch, HostBatch, Setup
from experiments.training.sparse_step import (
    RowGradients,
    SparseGradientSum,
    SparseStep,
    make_sparse_step,
)
from experiments.training.state import TrainState
from experiments.training.step import Accumulate, Apply
from experiments.training.table_padding import TablePadding
from models.dlrm_reference import reference_params
from optim_jax import Plan
from optim_jax.trees.paths import named_leaves


@dataclasses.dataclass(frozen=True)
class ClickSetup(Setup):
    """The parts of a run on clicks; see `Setup`."""

    config: ClickTrainConfig
    data: ClickData
    architecture: Architecture = dataclasses.field(kw_only=True)
    sparse: SparseStep = dataclasses.field(kw_only=True)

    predictions_per_row = 1
    prediction_name = "samples"

    @property
    def flops_per_prediction(self) -> float:
        """Of one sample."""
        return self.model.flops_per_example

    @property
    def compute_dtype(self) -> str:
        """Of the perceptrons' products."""
        return self.config.model.compute_dtype

    @property
    def rows_per_count(self) -> int:
        """The state counts batches."""
        return self.config.batch.size

    @functools.cached_property
    def plan(self) -> Plan | None:
        """How Shampoo cuts the dense part; None for other optimizers."""
        plan = self.optimizer.plan
        return None if plan is None else plan(self.abstract_state.params["dense"])

    @property
    def trajectory(self) -> dict[str, Any]:
        """What a continuation must share with the run it continues."""
        rows = hashlib.sha256(repr(self.data.rules.rows).encode()).hexdigest()
        return to_dict(self.config) | {
            "samples": self.data.metadata["corpus_sha256"],
            "rows_sha256": rows,
            "process_count": jax.process_count(),
        }

    @property
    def init(self) -> Any:
        """A jit-able function that makes the state of step 0."""
        return functools.partial(_initial_state, self.sparse, self.config.seed)

    def initial_state(self) -> TrainState:
        """The state of step 0; the original's draws are made on the host."""
        if self.config.model.init == "jax":
            return super().initial_state()
        params = reference_params(self.architecture, self.config.seed)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        make = functools.partial(_state_from, self.sparse)
        return jax.jit(make, out_shardings=shardings)(
            params, jax.random.key(self.config.seed)
        )

    def place(self, batch: HostBatch) -> DeviceBatch:
        """Puts this process's samples on its devices, a share on each."""
        return self.sparse.place(batch)

    def accumulate(self) -> Accumulate:
        """See `Setup.accumulate`."""
        return build_click_accumulate(self.sparse)

    def apply(self) -> Apply:
        """See `Setup.apply`."""
        return build_click_apply(
            self.sparse,
            self.optimizer,
            self.batch_rule.rate,
            self.config.tables,
            peak=self.config.optimizer.learning_rate,
            skip_nonfinite=self.config.stopping.on_nonfinite == "skip",
        )

    def zero_sums(self) -> SparseGradientSum:
        """Empty sums, with a slot of rows for each micro-batch of a step."""
        slots = self.config.batch.size // self.config.batch.micro_size
        example = jax.eval_shape(
            self.sparse.gradients, self.abstract_state, self._example_shapes
        )

        def empty(leaf: Any, fill: Any) -> jax.Array:
            shape = (self.sparse.devices, slots, *leaf.shape[1:])
            return jnp.full(shape, fill, leaf.dtype)

        beyond = np.iinfo(np.int32).max  # no table has this row
        zero = jnp.zeros((), jnp.float32)
        return SparseGradientSum(
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example.dense),
            RowGradients(
                jax.tree.map(lambda leaf: empty(leaf, beyond), example.rows.ids),
                jax.tree.map(lambda leaf: empty(leaf, 0.0), example.rows.values),
            ),
            *[zero] * 3,
        )

    def sums_sharding(self) -> Any:
        """Slots of rows lie where their samples do."""
        whole, share = replicated(self.mesh), self._share
        sums = jax.eval_shape(self.zero_sums)
        sharding = jax.tree.map(lambda _: whole, sums)
        return sharding._replace(rows=jax.tree.map(lambda _: share, sums.rows))

    def batch_sharding(self) -> Any:
        """A share on each device."""
        return self._share

    @property
    def _share(self) -> jax.sharding.NamedSharding:
        """One part of the first axis on each device."""
        spec = jax.sharding.PartitionSpec(self.mesh.axis_names)
        return jax.sharding.NamedSharding(self.mesh, spec)

    @functools.cached_property
    def _example_shapes(self) -> Any:
        """Shapes of a placed micro-batch."""
        batch = self.place(next(self.data.validation()))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch
        )

    def evaluator(self) -> ClickEvaluator:
        """What computes the validation metrics."""
        return ClickEvaluator(
            self.sparse,
            self.data.validation,
            in_turn=self.in_turn,
            averages=self.optimizer.averages,
            gradient_point=self.config.evaluation.gradient_point,
        )

    def reached_target(self, metrics: Mapping[str, float]) -> str:
        """Targets of accuracy and AUC besides that of the loss."""
        stopping = self.config.stopping
        for name, target in (
            ("eval/accuracy", stopping.target_accuracy),
            ("eval/auc", stopping.target_auc),
        ):
            if metrics[name] >= target:
                return f"{name} {metrics[name]:.4f} reached the target {target}"
        return super().reached_target(metrics)

    @property
    def gradient_names(self) -> list[str]:
        """Leaves in the order of the norms: dense ones, then those of the tables."""
        params = self.abstract_state.params
        rows = jax.eval_shape(self.sparse.tables.unpack, params["rows"])
        return [
            *(f"dense/{name}" for name, _ in named_leaves(params["dense"])),
            *(f"tables/{name}" for name, _ in named_leaves(rows)),
        ]


def _initial_state(sparse: SparseStep, seed: int) -> TrainState:
    init_key, run_key = jax.random.split(jax.random.key(seed))
    return _state_from(sparse, sparse.model.init(init_key), run_key)


def _state_from(sparse: SparseStep, params: Any, run_key: jax.Array) -> TrainState:
    state = sparse.init_state(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        samples=jnp.zeros((), jnp.int32),
        params=state.params,
        opt_state=state.opt_state,
        key=run_key,
    )


def build_click_setup(
    config: ClickTrainConfig, devices: Sequence[jax.Device] | None = None
) -> ClickSetup:
    """Builds mesh, data, model and optimizers, refusing what cannot work.

    Raises:
      ValueError, OSError, ImportError: one sentence that names what to change.
    """
    mesh = make_mesh(config.mesh, devices)
    processes, micro_size = jax.process_count(), config.batch.micro_size
    if micro_size % processes:
        raise ValueError(
            f"a micro-batch of {micro_size} samples (batch.micro_batch, or batch.size) "
            f"does not split over {processes} processes"
        )
    data = build_click_data(
        config.data,
        rows=micro_size,
        evaluation_rows=micro_size,
        evaluation_batches=config.evaluation.batches,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=processes,
    )
    config = _with_steps(config, data.samples)
    shape = architecture(config.model, data.rules)
    model = build_model(shape)
    optimizer = build_optimizer(
        config.optimizer, steps=config.steps, matrix_axes=model.matrix_axes
    )
    sparse = make_sparse_step(
        model,
        optimizer.transformation,
        row_rule(config.tables, config.tables.learning_rate),
        mesh=mesh,
        plan=table_plan(config.tables, shape, mesh.size),
    )
    schedule = _schedule(config, optimizer)
    rule = BatchRule(
        (Change(0, config.batch.size),), lambda counts, size: schedule(counts)
    )
    return ClickSetup(
        config=config,
        mesh=mesh,
        model=model,
        optimizer=optimizer,
        batch_rule=rule,
        measurement=None,
        data=data,
        padding=TablePadding.of(sparse, _layout(sparse, mesh, config.seed)),
        architecture=shape,
        sparse=sparse,
    )


def table_plan(
    config: TableOptimizerConfig, shape: Architecture, devices: int
) -> str | TablePlan:
    """Where the tables of a run lie.

    Raises:
      ValueError: they do not fit the budget.
    """
    if config.layout != "auto":
        return config.layout
    if devices == 1 and not config.byte_budget:
        return "replicated"
    budget = config.byte_budget or 1 << 62
    return plan_tables(shape, devices, budget, rule=config.rule)


def _with_steps(config: ClickTrainConfig, samples: int) -> ClickTrainConfig:
    """The config with its number of updates."""
    if config.steps:
        return config
    per_epoch = -(-samples // config.batch.micro_size)
    accumulated = config.batch.size // config.batch.micro_size
    steps = max(1, round(config.epochs * per_epoch / accumulated))
    return dataclasses.replace(config, steps=steps)


def _schedule(config: ClickTrainConfig, optimizer: Optimizer) -> optax.Schedule:
    rate = config.rate
    if rate.mode == "optimizer":
        return optimizer.schedule
    return dlrm_schedule(
        config.optimizer.learning_rate,
        warmup_steps=rate.warmup_steps,
        decay_start=rate.decay_start,
        decay_steps=rate.decay_steps,
        mode=rate.mode,
        end_value=rate.end_value,
    )


def _layout(sparse: SparseStep, mesh: jax.sharding.Mesh, seed: int) -> TrainState:
    """Shapes, dtypes and shardings of the state; what is no table is on all devices."""
    abstract = jax.eval_shape(functools.partial(_initial_state, sparse, seed))
    specs = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), abstract)
    if sparse.mesh is not None:
        of_tables = sparse.state_specs()
        specs.params["rows"] = of_tables.params["rows"]
        specs.opt_state["rows"] = of_tables.opt_state["rows"]
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(mesh, spec)
        ),
        abstract,
        specs,
    )
