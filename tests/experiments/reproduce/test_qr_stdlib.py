import dataclasses

import numpy as np
import pytest

from experiments.data.documents import Corpus, digest
from experiments.data.name_calls import PARTS, build_name_calls
from experiments.reproduce import qr_stdlib
from experiments.reproduce.claims import Options
from experiments.reproduce.embedding_arms import embedding_arms
from experiments.reproduce.embedding_report import embedding_markdown
from experiments.reproduce.qr_stdlib import ARMS, build_document, held_out_rows


@pytest.fixture(scope="module")
def calls():
    texts = [
        "".join(
            f"name_{(7 * row + file) % 90} = call_{row % 9}({file})\n"
            for row in range(20)
        )
        for file in range(60)
    ]
    names = [f"{number}.py" for number in range(60)]
    corpus = Corpus(texts, names, digest(names, [text.encode() for text in texts]))
    return two_features(build_name_calls(corpus))


def two_features(calls):
    """A model with two tables compiles in a fraction of the time."""

    def cut(rows):
        return dataclasses.replace(rows, ids=rows.ids[:, :2])

    parts = {part: cut(getattr(calls, part)) for part in PARTS}
    return dataclasses.replace(
        calls, rows=calls.rows[:2], features=calls.features[:2], **parts
    )


def test_held_out_are_the_rows_of_both_other_parts(calls):
    rows = held_out_rows(calls)
    sizes = len(calls.validation.labels), len(calls.test.labels)
    assert len(rows.labels) == len(rows.ids) == len(rows.dense) == sum(sizes)
    np.testing.assert_array_equal(rows.ids[sizes[0] :], calls.test.ids)
    np.testing.assert_array_equal(rows.labels[: sizes[0]], calls.validation.labels)


def test_a_short_run_gives_a_whole_document(calls, tmp_path):
    arms = {"cat": embedding_arms()[:1]}
    options = Options("qr_stdlib", steps=2, seeds=(0, 1), output_dir=tmp_path)
    made = build_document(options, calls, arms)
    (panel,) = made["panels"]
    (arm,) = panel["arms"]
    assert len(arm["loss"]) == len(arm["progressive_loss"]) == 2
    rate = held_out_rows(calls).labels.mean()
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    ratio = np.divide(arm["loss"], arm["normalized_entropy"])
    np.testing.assert_allclose(ratio, entropy, rtol=1e-6)
    text = embedding_markdown(made)
    assert calls.sha256[:16] in text and "normalised entropy" in text
    assert f"{len(calls.train.labels):,} training rows" in text


def test_the_sweep_is_with_the_dot_interaction():
    assert {name: len(arms) for name, arms in ARMS.items()} == {"dot": 37, "cat": 7}


def test_more_steps_than_one_pass_are_refused(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(qr_stdlib, "read_name_calls", lambda cache: calls)
    options = Options("qr_stdlib", steps=10_000, output_dir=tmp_path)
    with pytest.raises(ValueError, match="steps must be at most"):
        qr_stdlib.reproduce(options)
