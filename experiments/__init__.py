"""Binaries that train models and reproduce claims; run from the checkout."""

import os

# On CPUs XLA calls LAPACK from several threads at once. Threads of LAPACK's own then
# make eigendecompositions ten times slower. The variable is read when the first
# decomposition is compiled.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
