"""From a configuration to everything a run needs, checked before anything compiles."""

import dataclasses
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
from experiments.training.state import TrainState, init_state, zero_gradient_sum
from experiments.training.step import build_accumulate, build_apply
from models import Model, build_llama

HostBatch = Mapping[str, np.ndarray]
DeviceBatch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run; nothing is compiled yet."""

    config: TrainConfig
    mesh: Mesh
    model: Model
    optimizer: Optimizer
    data: TextData
    abstract_state: TrainState  # shapes, dtypes and shardings

    @property
    def trajectory(self) -> dict[str, Any]:
        """What a continuation must share with the run it continues."""
        corpus = self.data.metadata
        return to_dict(self.config) | {
            # The text itself, wherever its files lie.
            "corpus": {name: corpus[name] for name in ("corpus_sha256", "tokenizer")},
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

    @property
    def tokens_per_step(self) -> int:
        """Tokens predicted per step, over all devices."""
        return self.config.batch.size * self.config.data.seq_len

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
    optimizer = build_optimizer(
        config.optimizer, steps=config.steps, matrix_axes=model.matrix_axes
    )
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
    abstract_state = abstract_train_state(model, optimizer, mesh, config.seed)
    return Setup(config, mesh, model, optimizer, data, abstract_state)


def abstract_train_state(
    model: Model, optimizer: Optimizer, mesh: Mesh, seed: int
) -> TrainState:
    """Shapes, dtypes and shardings of a run's state, without computing it."""
    abstract = jax.eval_shape(init_state(model, optimizer.transformation, seed))
    shardings = state_shardings(abstract, abstract.params, model.partition_rules, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        abstract,
        shardings,
    )


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The two compiled functions of a training step, and an empty accumulation."""

    accumulate: Callable[..., Any]
    apply: Callable[..., Any]
    zero_sums: Callable[[], Any]
    temporary_bytes: int


def compile_step(setup: Setup, example: DeviceBatch) -> CompiledStep:
    """Compiles `accumulate` and `apply` for the run's layout and a batch like this."""
    state = setup.abstract_state
    state_sharding = jax.tree.map(lambda leaf: leaf.sharding, state)
    whole = replicated(setup.mesh)
    sums = jax.eval_shape(zero_gradient_sum, state.params)
    sums_sharding = jax.tree.map(lambda _: whole, sums)._replace(
        gradients=param_shardings(state.params, setup.model.partition_rules, setup.mesh)
    )
    batch = {
        name: jax.ShapeDtypeStruct(rows.shape, rows.dtype)
        for name, rows in example.items()
    }
    accumulate = (
        jax.jit(
            build_accumulate(setup.model),
            in_shardings=(
                state_sharding,
                sums_sharding,
                batch_sharding(setup.mesh),
                whole,
            ),
            out_shardings=sums_sharding,
            donate_argnums=1,
        )
        .lower(state, sums, batch, jax.ShapeDtypeStruct((), np.int32))
        .compile()
    )
    skip = setup.config.stopping.on_nonfinite == "skip"
    apply = (
        jax.jit(
            build_apply(setup.optimizer, skip_nonfinite=skip),
            in_shardings=(state_sharding, sums_sharding),
            out_shardings=(state_sharding, sums_sharding, whole),
            donate_argnums=(0, 1),
        )
        .lower(state, sums)
        .compile()
    )
    return CompiledStep(
        accumulate=setup.in_turn(accumulate),
        apply=setup.in_turn(apply),
        zero_sums=setup.in_turn(
            jax.jit(
                lambda: zero_gradient_sum(state.params), out_shardings=sums_sharding
            )
        ),
        temporary_bytes=max(
            compiled.memory_analysis().temp_size_in_bytes
            for compiled in (accumulate, apply)
        ),
    )


def initial_state(setup: Setup) -> TrainState:
    """The state of step 0, made directly in its layout."""
    init = init_state(setup.model, setup.optimizer.transformation, setup.config.seed)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_state)
    return jax.jit(init, out_shardings=shardings)()
