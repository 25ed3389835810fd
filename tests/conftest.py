"""Eight CPU devices, a compilation cache kept between runs, float32 by default."""

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


@pytest.fixture
def golden_dir() -> pathlib.Path:
    """The folder of stored trajectories."""
    return ROOT / "tests" / "golden"


@pytest.fixture
def x64():
    """Runs the test with 64-bit types enabled."""
    with jax.enable_x64(True):
        yield
