"""A trained click model: loaded, evaluated, quantised, asked about new samples."""

import dataclasses
import gzip

import jax
import numpy as np
import pytest

from experiments.click_config import ClickDataConfig
from experiments.data.click_inputs import read_samples
from experiments.training import run
from experiments.training.click_inference import (
    evaluate,
    load_click_model,
    predict,
    quantize,
)
from tests.experiments.training.click_runs import tiny_clicks
from tests.experiments.training.runs import ONE_DEVICE


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clicks") / "run"
    config = tiny_clicks(
        steps=40, evaluation__every=20, data__train_rows=4000, data__test_rows=1000
    )
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, batches=100)
    )
    result = run(config, folder, devices=ONE_DEVICE)
    return folder, result.summary


def test_the_loaded_model_has_the_metrics_of_the_run(trained):
    folder, summary = trained
    model = load_click_model(folder, which="latest")
    metrics = evaluate(model)
    assert model.step == 40
    assert metrics["loss"] == pytest.approx(summary["eval/loss"], abs=1e-6)
    assert metrics["auc"] == pytest.approx(summary["eval/auc"], abs=1e-9)
    assert metrics["weight"] == 1000


@pytest.mark.parametrize(("bits", "loss"), [(8, 2e-4), (4, 2e-2)])
def test_rounded_tables_are_smaller_and_nearly_as_good(trained, bits, loss):
    model = load_click_model(trained[0], which="latest")
    small = quantize(model.params, table_bits=bits)
    dense = sum(
        leaf.nbytes
        for side in ("bottom", "top")
        for leaf in jax.tree.leaves(model.params[side])
    )
    tables = small.bytes_before - dense
    # A row of 16 float32 takes 64 bytes, then 16 or 8 and a pair of float32.
    ratio = {8: (16 + 8) / 64, 4: (8 + 8) / 64}[bits]
    assert (small.bytes_after - dense) / tables == pytest.approx(ratio, rel=0.05)
    plain, rounded = evaluate(model), evaluate(model, small.params)
    assert rounded["loss"] != plain["loss"]
    assert abs(rounded["loss"] - plain["loss"]) < loss
    assert plain["auc"] - rounded["auc"] < (0.001 if bits == 8 else 0.02)


def test_rounded_perceptrons(trained):
    model = load_click_model(trained[0], which="latest")
    small = quantize(model.params, table_bits=32, perceptron_dtype="bfloat16")
    assert evaluate(model, small.params)["loss"] == pytest.approx(
        evaluate(model)["loss"], abs=5e-3
    )
    with pytest.raises(ValueError, match="table_bits must be 4, 8 or 32"):
        quantize(model.params, table_bits=5)
    with pytest.raises(ValueError, match="perceptron_dtype must be one of"):
        quantize(model.params, perceptron_dtype="int3")


def test_predictions_do_not_depend_on_the_batch(trained, tmp_path):
    model = load_click_model(trained[0])
    generator = np.random.default_rng(0)
    ids = np.stack([generator.integers(0, n, 50) for n in (2000, 2000, 1000, 20)], 1)
    path = str(tmp_path / "new.npz")
    np.savez(path, dense=generator.normal(size=(50, 4)), ids=ids)
    found = [
        np.concatenate(
            [
                *predict(
                    model,
                    read_samples(
                        path, model.setup.config.data, model.setup.data.rules, size
                    ),
                )
            ]
        )
        for size in (7, 64)
    ]
    assert found[0].shape == (50,)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_new_criteo_text_is_numbered_like_the_training_text(golden_dir, tmp_path):
    text = (golden_dir / "dlrm" / "criteo_small.tsv").read_bytes()
    (tmp_path / "train.txt").write_bytes(text * 4)
    config = tiny_clicks(steps=2, batch__size=16)
    data = ClickDataConfig(
        source="criteo",
        path=str(tmp_path / "train.txt"),
        cache_dir=str(tmp_path / "prepared"),
    )
    folder = tmp_path / "run"
    run(dataclasses.replace(config, data=data), folder, devices=ONE_DEVICE)
    model = load_click_model(folder)
    lines = text.splitlines()
    labelled = tmp_path / "labelled.txt"
    labelled.write_bytes(b"\n".join(lines))
    # Without labels, gzipped, and the first line with an id nobody has seen.
    bare = [line.split(b"\t", 1)[1] for line in lines]
    fields = bare[0].split(b"\t")
    fields[20] = b"deadbeef"
    strange = tmp_path / "bare.gz"
    strange.write_bytes(gzip.compress(b"\n".join([b"\t".join(fields), *bare[1:]])))

    def probabilities(path):
        batches = read_samples(str(path), data, model.setup.data.rules, 16)
        return np.concatenate([*predict(model, batches)])

    known, unknown = probabilities(labelled), probabilities(strange)
    assert len(known) == len(unknown) == len(lines)
    np.testing.assert_allclose(known[1:], unknown[1:], rtol=1e-6)
    assert known[0] != unknown[0]


def test_what_cannot_be_loaded(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_click_model(tmp_path)
    with pytest.raises(ValueError, match="which must be best or latest"):
        load_click_model(trained[0], which="first")
    wider = lambda config: dataclasses.replace(  # noqa: E731
        config,
        model=dataclasses.replace(config.model, dim=8, bottom="8-8", threshold=0),
    )
    with pytest.raises(ValueError, match="params/"):
        load_click_model(trained[0], change=wider)
