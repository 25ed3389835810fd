"""Two JAX processes over loopback; one of them cannot read the newest checkpoint."""

import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]

PROGRAM = """
    import sys

    import jax

    port, index, folder = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))

    import pathlib

    import grain
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    from experiments.training.checkpoints import CheckpointError, Checkpoints

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))

    @jax.jit
    def make(value):
        state = {"w": jnp.arange(64.0) * value, "key": jax.random.key(3)}
        return jax.lax.with_sharding_constraint(state, {"w": split, "key": whole})

    def iterator(moved):
        source = grain.MapDataset.range(100)[int(index) :: 2].to_iter_dataset()
        position = iter(source)
        for _ in range(moved):
            next(position)
        return position

    def abstract(state):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )

    def correct(state, value):
        difference = jnp.abs(state["w"] - jnp.arange(64.0) * value).max()
        return float(difference) == 0.0

    checkpoints = Checkpoints(folder, keep=3)
    for step in (1, 2):
        metrics = {"eval/loss": float(step)}
        checkpoints.save(step, make(step), iterator(step), {"step": step}, metrics)
    checkpoints.close()
    wanted = abstract(make(0))

    data = iterator(0)
    restored = Checkpoints(folder, keep=3).restore_latest(wanted, data)
    assert restored.step == 2 and correct(restored.state, 2)
    assert next(data) == next(iterator(2))

    multihost_utils.sync_global_devices("about to damage")
    if jax.process_index() == 0:
        (pathlib.Path(folder) / "2" / "data" / "process_1-of-2.json").unlink()
    multihost_utils.sync_global_devices("damaged")

    data = iterator(0)
    checkpoints = Checkpoints(folder, keep=3)
    restored = checkpoints.restore_latest(wanted, data)
    assert restored.step == 1 and restored.metadata == {"step": 1}
    assert correct(restored.state, 1)
    assert next(data) == next(iterator(1))

    checkpoints.save(2, make(7), data, {"step": "2 again"}, None)
    assert not checkpoints.reached_preemption(2)
    checkpoints.close()
    assert checkpoints.steps() == [1, 2] and checkpoints.best_step() == 1
    assert correct(checkpoints.restore_latest(wanted, data).state, 7)
    assert checkpoints.read_metadata() == {"step": "2 again"}
    print("all well", index)
"""


@pytest.mark.multiprocess
@pytest.mark.slow
def test_processes_fall_back_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    }
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(PROGRAM),
                port,
                str(index),
                str(tmp_path / "checkpoints"),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for index, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0 and f"all well {index}" in output, output
    assert (tmp_path / "checkpoints" / "2.unreadable.0").is_dir()
