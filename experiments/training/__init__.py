"""The trainer: `run(config, output_dir)` and what it is made of."""

from experiments.training.launch import RunResult, prepare, read_summary, run

__all__ = ["RunResult", "prepare", "read_summary", "run"]
