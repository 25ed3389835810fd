"""A trained model put to use: its evaluated parameters, and text from them."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from experiments.config import MeshConfig, TrainConfig
from experiments.config_fields import from_dict
from experiments.data import Tokenizer, load_tokenizer
from experiments.optimizers import build_optimizer
from experiments.sharding import make_mesh
from experiments.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    Restored,
)
from experiments.training.search_step import row_objective
from experiments.training.setup import abstract_train_state
from models import LlamaConfig, build_llama, generate
from optim_jax import gpa_eval_params


def load_for_inference(
    run_dir: str | pathlib.Path, *, which: str = "best"
) -> tuple[LlamaConfig, Any, Tokenizer]:
    """Loads a run's model from its best or newest checkpoint, onto one device.

    Args:
      run_dir: the run's output folder.
      which: `best` by validation loss (the newest where none was evaluated), or
        `latest`.

    Returns:
      The model's config, its parameters (x for averaging methods) and the tokenizer.

    Raises:
      FileNotFoundError: if the folder holds no run or no checkpoint.
      ValueError: for another `which`, or if no checkpoint can be read.
    """
    if which not in ("best", "latest"):
        raise ValueError(f"which must be best or latest, got {which!r}")
    run_dir = pathlib.Path(run_dir)
    config_path = run_dir / "config.json"
    if not config_path.exists():
        raise FileNotFoundError(f"{run_dir} holds no run: {config_path} is missing")
    config = from_dict(TrainConfig, json.loads(config_path.read_text()))
    model = build_llama(config.model)
    optimizer = build_optimizer(
        config.optimizer,
        steps=config.steps,
        matrix_axes=model.matrix_axes,
        objective=row_objective(model, config.batch.micro_size),
    )
    mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
    abstract = abstract_train_state(model, optimizer, mesh, config.seed)
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.checkpoint.keep)
    restored = restore_chosen(checkpoints, abstract, which)
    checkpoints.close()
    if restored is None:
        raise FileNotFoundError(f"{run_dir / 'checkpoints'} holds no checkpoint yet")
    params = restored.state.params
    if optimizer.averages:
        params = jax.jit(gpa_eval_params)(restored.state.opt_state, params)
    return config.model, params, load_tokenizer(config.data.tokenizer)


def restore_chosen(
    checkpoints: Checkpoints, abstract: Any, which: str
) -> Restored | None:
    """The best checkpoint (the newest where none is known or readable) or the newest.

    Args:
      checkpoints: of a run.
      abstract: what to restore, see `Checkpoints.restore_latest`.
      which: `best` or `latest`.
    """
    if which == "best":
        try:
            restored = checkpoints.restore_best(abstract)
        except CheckpointError as error:
            logging.warning("%s; taking the newest checkpoint instead", error)
            restored = None
        if restored is not None:
            return restored
    return checkpoints.restore_latest(abstract)


def sample_text(
    run_dir: str,
    prompt: str,
    *,
    which: str = "best",
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """The prompt and its continuation by the model of a finished or running run.

    Args:
      run_dir: the run's output folder.
      prompt: text to go on from; must not be empty.
      which: `best` by validation loss, or `latest`.
      max_new_tokens: how many tokens to add.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: sample among the k likeliest tokens; 0 takes all.
      top_p: sample within the smallest set of tokens of this probability mass.
      seed: of the sampling.

    Raises:
      ValueError: for numbers out of range or an empty prompt.
      FileNotFoundError: if the folder holds no run or no checkpoint.
    """
    model_config, params, tokenizer = load_for_inference(run_dir, which=which)
    prompt_tokens = np.asarray(tokenizer.encode(prompt), np.int32)[None]
    if not prompt_tokens.size:
        raise ValueError("the prompt must not be empty")
    (tokens,) = generate(
        model_config,
        params,
        prompt_tokens,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        key=jax.random.key(seed),
    )
    return prompt + tokenizer.decode(np.asarray(tokens).tolist())
