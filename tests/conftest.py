"""Eight CPU devices, a compilation cache kept between runs, float32 by default."""

import gc
import os
import pathlib

# Must be set before the first import of jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# XLA calls LAPACK from several threads; threads of its own would slow that down.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Programs with collectives on eight devices that share two cores must not overlap.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# Linux gives a process 65,530 memory maps; every compiled program keeps three or more,
# and the whole suite would need more than there are.
MEMORY_MAPS = pathlib.Path("/proc/self/maps")
MOST_MEMORY_MAPS = 30_000


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Drops the compiled programs of earlier modules before they fill the process."""
    yield
    if MEMORY_MAPS.exists():
        with MEMORY_MAPS.open("rb") as lines:
            count = sum(1 for _ in lines)
        if count > MOST_MEMORY_MAPS:
            jax.clear_caches()
            gc.collect()


@pytest.fixture
def golden_dir() -> pathlib.Path:
    """The folder of stored trajectories."""
    return ROOT / "tests" / "golden"


@pytest.fixture
def x64():
    """Runs the test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield
