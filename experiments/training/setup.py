"""From a configuration to everything a run needs, checked before anything compiles."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.config import TrainConfig
from experiments.config_fields import to_dict
from experiments.data import TextData, build_text_data
from experiments.optimizers import Optimizer, build_optimizer
from experiments.sharding import (
    batch_sharding,
    make_mesh,
    param_shardings,
    replicated,
    require_divisible_batch,
    state_shardings,
)
from experiments.training.batch_rule import BatchRule, build_batch_rule
from experiments.training.evaluation import Evaluator
from experiments.training.measurement import (
    Measurement,
    build_measurement,
    require_draws,
)
from experiments.training.padding import Padding, find_padding
from experiments.training.search_step import (
    build_search_accumulate,
    build_search_apply,
    require_searchable,
    row_objective,
    search_sum_sharding,
    with_split_memory,
    zero_search_sum,
)
from experiments.training.state import TrainState, init_state, zero_gradient_sum
from experiments.training.step import (
    Accumulate,
    Apply,
    build_accumulate,
    build_apply,
)
from models import Model, build_llama
from optim_jax import Plan
from optim_jax.noise_scale import BatchSizeController
from optim_jax.trees.paths import named_leaves

HostBatch = Mapping[str, np.ndarray]
DeviceBatch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run; nothing is compiled yet.

    This one trains a language model on text. Other kinds of runs derive from it and
    replace what differs; the loop knows no other way to them.
    """

    config: TrainConfig
    mesh: Mesh
    model: Model
    optimizer: Optimizer
    batch_rule: BatchRule
    measurement: Measurement | None  # of the noise scale; None where none is asked for
    data: TextData
    padding: Padding  # between the run's layout and what checkpoints hold

    @property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the run's state."""
        return self.padding.state

    @functools.cached_property
    def plan(self) -> Plan | None:
        """How Shampoo cuts the parameters; None for other optimizers."""
        plan = self.optimizer.plan
        return None if plan is None else plan(self.abstract_state.params)

    @property
    def refresh_every(self) -> int:
        """Steps between refreshes by the loop; 0 where the optimizer sees to it."""
        external = self.config.optimizer.refresh == "external"
        if self.optimizer.plan is None or not external:
            return 0
        return self.config.optimizer.precondition_frequency

    @property
    def trajectory(self) -> dict[str, Any]:
        """What a continuation must share with the run it continues."""
        corpus = self.data.metadata
        path = str([tuple(change) for change in self.batch_rule.path])
        return to_dict(self.config) | {
            # The text itself, wherever its files lie; and so the batch path.
            "corpus": {name: corpus[name] for name in ("corpus_sha256", "tokenizer")},
            "batch_path_sha256": hashlib.sha256(path.encode()).hexdigest(),
            "process_count": jax.process_count(),
        }

    def in_turn(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function itself, or one that waits, where programs must not overlap.

        The devices of one CPU process share a pool of threads. Two programs with
        collectives in flight can each hold some of the threads and wait for the rest
        forever, so on several CPU devices every program ends before the next starts.
        """
        if self.mesh.size == 1 or self.mesh.devices.flat[0].platform != "cpu":
            return function

        def waiting(*arguments):
            return jax.block_until_ready(function(*arguments))

        return waiting

    # What a row is.

    @property
    def predictions_per_row(self) -> int:
        """What rates and utilisation count: the tokens of a row."""
        return self.config.data.seq_len

    prediction_name = "tokens"
    rows_per_count = 1  # rows that the state counts as one

    @property
    def flops_per_prediction(self) -> float:
        """Analytic forward + backward FLOPs."""
        return self.model.flops_per_example / self.config.model.max_seq_len

    @property
    def compute_dtype(self) -> str:
        """Of the products, by name."""
        return self.config.model.compute_dtype

    @property
    def tokens_per_step(self) -> int:
        """Tokens predicted in a step of `batch.size` rows, over all devices."""
        return self.config.batch.size * self.predictions_per_row

    # The two halves of a step, and what goes between them.

    def accumulate(self) -> Accumulate:
        """`(state, sums, batch, micro_index) -> sums`, to be compiled."""
        if self.optimizer.searches:
            return build_search_accumulate(self.model)
        return build_accumulate(self.model)

    def apply(self) -> Apply:
        """`(state, sums, rows, size, measurement) -> (state, sums, metrics)`."""
        skip_nonfinite = self.config.stopping.on_nonfinite == "skip"
        if self.optimizer.searches:
            return build_search_apply(self.optimizer, skip_nonfinite=skip_nonfinite)
        return build_apply(
            self.optimizer,
            self.batch_rule.rate,
            controller=self.batch_rule.controller,
            skip_nonfinite=skip_nonfinite,
        )

    def zero_sums(self) -> Any:
        """An empty accumulation, to be compiled."""
        params = self.abstract_state.params
        if self.optimizer.searches:
            batch = self.config.batch
            slots = batch.size // batch.micro_size
            return zero_search_sum(params, self._micro_batch, slots)
        return zero_gradient_sum(params)

    @functools.cached_property
    def _micro_batch(self) -> DeviceBatch:
        """Shapes of a placed micro-batch."""
        batch = self.place(next(self.data.validation()))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch
        )

    def sums_sharding(self) -> Any:
        """How an accumulation lies on the devices."""
        whole = replicated(self.mesh)
        sums = jax.eval_shape(self.zero_sums)
        gradients = param_shardings(
            self.abstract_state.params, self.model.partition_rules, self.mesh
        )
        if self.optimizer.searches:
            return search_sum_sharding(sums, gradients, self.mesh)
        return jax.tree.map(lambda _: whole, sums)._replace(gradients=gradients)

    def batch_sharding(self) -> Any:
        """How a micro-batch lies on the devices; one sharding for all of it."""
        return batch_sharding(self.mesh)

    def evaluator(self) -> Evaluator:
        """What computes the validation metrics; opens the validation data."""
        return Evaluator(
            self.model,
            [self.place(batch) for batch in self.data.validation()],
            in_turn=self.in_turn,
            averages=self.optimizer.averages,
            gradient_point=self.config.evaluation.gradient_point,
            bytes_per_token=self.data.bytes_per_token,
        )

    @property
    def gradient_names(self) -> list[str]:
        """The leaves whose squared gradient norms `apply` reports, in its order."""
        return [name for name, _ in named_leaves(self.abstract_state.params)]

    def reached_target(self, metrics: Mapping[str, float]) -> str:
        """Which target of `stopping` an evaluation reached, for a person; or ""."""
        loss, target = metrics["eval/loss"], self.config.stopping.target_loss
        if loss <= target:
            return f"eval/loss {loss:.4f} reached the target {target}"
        return ""

    @property
    def init(self) -> Callable[[], TrainState]:
        """A jit-able function that makes the state of step 0."""
        return init_state(
            self.model,
            self.optimizer.transformation,
            self.config.seed,
            self.batch_rule.controller,
        )

    def initial_state(self) -> TrainState:
        """The state of step 0, made directly in its layout."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return jax.jit(self.init, out_shardings=shardings)()

    def place(self, batch: HostBatch) -> DeviceBatch:
        """Puts this process's rows on its devices, as part of the global batch."""
        sharding = batch_sharding(self.mesh)
        if jax.process_count() == 1:
            return jax.device_put(dict(batch), sharding)
        return {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }


def build_setup(
    config: TrainConfig, devices: Sequence[jax.Device] | None = None
) -> Setup:
    """Builds mesh, data, model and optimizer, refusing what cannot work.

    Raises:
      ValueError, OSError, ImportError: one sentence that names what to change.
    """
    mesh = make_mesh(config.mesh, devices)
    rows = config.batch.micro_size
    require_divisible_batch(rows, mesh)
    processes = jax.process_count()
    model = build_llama(config.model)
    optimizer = _optimizer_on(mesh, config, model)
    require_searchable(config, optimizer)
    rule = build_batch_rule(config, optimizer.schedule)
    _require_measurable(config, mesh, optimizer)
    data = build_text_data(
        config.data,
        rows=rows // processes,
        evaluation_rows=rows // processes,
        evaluation_batches=config.evaluation.batches,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=processes,
    )
    if data.tokenizer.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"model.vocab_size={config.model.vocab_size} is smaller than the "
            f"{data.tokenizer.vocab_size} tokens of data.tokenizer="
            f"{config.data.tokenizer!r}"
        )
    padding = find_padding(
        abstract_train_state(model, optimizer, mesh, config.seed, rule.controller),
        _shapes(
            model, _optimizer_on(None, config, model), config.seed, rule.controller
        ),
        mesh,
    )
    measurement = None
    if config.batch.adaptive != "none":
        params = padding.state.params
        measurement = build_measurement(model, config, mesh, params)
    return Setup(config, mesh, model, optimizer, rule, measurement, data, padding)


def _require_measurable(config: TrainConfig, mesh: Mesh, optimizer: Optimizer) -> None:
    require_draws(config, mesh)
    if config.batch.adaptive == "spectral" and not optimizer.uses_matrices:
        raise ValueError(
            "batch.adaptive=spectral measures the hidden matrices of a spectral "
            f"optimizer, and optimizer.name={config.optimizer.name!r} has none; "
            "sign or l2 measure every parameter"
        )


def _optimizer_on(mesh: Mesh | None, config: TrainConfig, model: Model) -> Optimizer:
    """The optimizer of a run, laid out for a mesh; None for one device."""
    specs = None
    if mesh is not None and mesh.size == 1:
        mesh = None
    if mesh is not None:
        params = jax.eval_shape(model.init, jax.random.key(config.seed))
        shardings = param_shardings(params, model.partition_rules, mesh)
        specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    return build_optimizer(
        config.optimizer,
        steps=config.steps,
        matrix_axes=model.matrix_axes,
        mesh=mesh,
        param_specs=specs,
        objective=row_objective(model, config.batch.micro_size),
    )


def _shapes(
    model: Model,
    optimizer: Optimizer,
    seed: int,
    controller: BatchSizeController | None,
) -> TrainState:
    init = init_state(model, optimizer.transformation, seed, controller)
    return jax.eval_shape(init)


def abstract_train_state(
    model: Model,
    optimizer: Optimizer,
    mesh: Mesh,
    seed: int,
    controller: BatchSizeController | None = None,
) -> TrainState:
    """Shapes, dtypes and shardings of a run's state, without computing it."""
    abstract = _shapes(model, optimizer, seed, controller)
    plan = None if optimizer.plan is None else optimizer.plan(abstract.params)
    shardings = state_shardings(
        abstract, abstract.params, model.partition_rules, mesh, plan
    )
    shardings = with_split_memory(shardings, shardings.params, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        abstract,
        shardings,
    )
