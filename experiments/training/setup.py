"""From a configuration to everything a run needs, checked before anything compiles."""

import dataclasses
import functools
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
from experiments.training.padding import Padding, find_padding
from experiments.training.preconditioning import build_refresh, counters
from experiments.training.state import TrainState, init_state, zero_gradient_sum
from experiments.training.step import build_accumulate, build_apply
from models import Model, build_llama
from optim_jax import Plan

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
    optimizer = _optimizer_on(mesh, config, model)
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
        abstract_train_state(model, optimizer, mesh, config.seed),
        _shapes(model, _optimizer_on(None, config, model), config.seed),
        mesh,
    )
    return Setup(config, mesh, model, optimizer, data, padding)


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
    )


def _shapes(model: Model, optimizer: Optimizer, seed: int) -> TrainState:
    return jax.eval_shape(init_state(model, optimizer.transformation, seed))


def abstract_train_state(
    model: Model, optimizer: Optimizer, mesh: Mesh, seed: int
) -> TrainState:
    """Shapes, dtypes and shardings of a run's state, without computing it."""
    abstract = _shapes(model, optimizer, seed)
    plan = None if optimizer.plan is None else optimizer.plan(abstract.params)
    shardings = state_shardings(
        abstract, abstract.params, model.partition_rules, mesh, plan
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        abstract,
        shardings,
    )


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The two compiled functions of a training step, and what goes with them."""

    accumulate: Callable[..., Any]
    apply: Callable[..., Any]
    zero_sums: Callable[[], Any]  # an empty accumulation
    refresh: Callable[[TrainState], TrainState] | None  # where the loop refreshes
    counters: Callable[[TrainState], Any] | None  # of Shampoo, outliving the state
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
    programs, refresh = [accumulate, apply], None
    if setup.refresh_every:
        refresh = (
            jax.jit(
                build_refresh(setup.plan),
                in_shardings=(state_sharding,),
                out_shardings=state_sharding,
                donate_argnums=0,
            )
            .lower(state)
            .compile()
        )
        programs.append(refresh)
    copied = None
    if setup.plan is not None:
        copied = setup.in_turn(jax.jit(counters, out_shardings=whole))
    return CompiledStep(
        accumulate=setup.in_turn(accumulate),
        apply=setup.in_turn(apply),
        zero_sums=setup.in_turn(
            jax.jit(
                lambda: zero_gradient_sum(state.params), out_shardings=sums_sharding
            )
        ),
        refresh=None if refresh is None else setup.in_turn(refresh),
        counters=copied,
        temporary_bytes=max(
            compiled.memory_analysis().temp_size_in_bytes for compiled in programs
        ),
    )


def initial_state(setup: Setup) -> TrainState:
    """The state of step 0, made directly in its layout."""
    init = init_state(setup.model, setup.optimizer.transformation, setup.config.seed)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_state)
    return jax.jit(init, out_shardings=shardings)()


def stored_state(setup: Setup, state: TrainState) -> TrainState:
    """A state as checkpoints hold it, the same on every mesh."""
    return setup.in_turn(setup.padding.remove)(state)


def state_from_stored(setup: Setup, stored: TrainState) -> TrainState:
    """The inverse of `stored_state`, in the layout of this run."""
    init = init_state(setup.model, setup.optimizer.transformation, setup.config.seed)
    return setup.in_turn(setup.padding.add)(stored, init)
