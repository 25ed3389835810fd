"""Freed blocks are used again; in a process of its own, which it changes for good."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROGRAM = """
import resource
import sys
import numpy as np
from experiments.training.host_memory import keep_freed_memory

def page_faults():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(2**23)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

mapped = page_faults()
if not keep_freed_memory():
    sys.exit("not supported")
print(mapped, page_faults())
"""


def test_large_blocks_are_not_faulted_in_again():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True
    )
    if "not supported" in done.stderr:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    mapped, kept = map(int, done.stdout.split())
    # Every page of a block, perhaps in pages of 2 MiB; then none.
    assert mapped > 30 and kept < mapped / 2
