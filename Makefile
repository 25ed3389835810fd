# Every target sets up what it needs; re-running skips what is already there.
#   make test PYTHON=python3.12   uses another interpreter in an environment of its own.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
JOBS ?= 2
DEMO_DIR ?= runs/demo

.PHONY: demo test test-all lint bench clean

demo: $(VENV)/.installed-experiments
	$(BIN)/python -m experiments.demo --output_dir=$(DEMO_DIR)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow" --durations=15

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --durations=30

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python optim_jax

bench: $(VENV)/.installed-experiments
	$(BIN)/python -m experiments.benchmarks.step_time
	$(BIN)/python -m experiments.benchmarks.preconditioning --threads=1
	$(BIN)/python -m experiments.benchmarks.train_step
	$(BIN)/python -m experiments.benchmarks.muon --threads=1
	$(BIN)/python -m experiments.benchmarks.noise_scale
	$(BIN)/python -m experiments.benchmarks.trainer_overhead
	$(BIN)/python -m experiments.benchmarks.row_sparse --threads=1
	$(BIN)/python -m experiments.benchmarks.criteo_reader
	$(BIN)/python -m experiments.benchmarks.dlrm_step
	$(BIN)/python -m experiments.benchmarks.pb_lbfgs

$(VENV)/.installed-%: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

clean:
	rm -rf .venv .venv-* .cache build dist *.egg-info
