import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from models.click_batch import BatchRules, assemble_batch, bucket

RULES = BatchRules(rows=(9, 5), num_dense=2)
DENSE = np.arange(6.0).reshape(3, 2)
IDS = [[1, 8, 0, 3], [4, 2]]
LENGTHS = [[1, 0, 3], [0, 2, 0]]


def assemble(dense=DENSE, ids=IDS, rules=RULES, **more):
    if "offsets" not in more:
        more = {"lengths": LENGTHS} | more
    return assemble_batch(rules, dense, ids, **more)


def with_policy(policy):
    return dataclasses.replace(RULES, id_policy=policy)


def test_one_id_per_sample_is_one_array_without_segments():
    batch = assemble_batch(RULES, DENSE, [[1, 8, 0], [4, 2, 2]], labels=[0, 1, 0.5])
    assert set(batch) == {"dense", "ids", "labels", "weights"}
    np.testing.assert_array_equal(batch["ids"], [[1, 8, 0], [4, 2, 2]])
    assert batch["ids"].dtype == np.int32
    for name in ("dense", "labels", "weights"):
        assert batch[name].dtype == np.float32
    np.testing.assert_array_equal(batch["weights"], 1.0)
    # As the ids of a stored data set come: one array, one column per table.
    stored = np.asarray([[1, 4], [8, 2], [0, 2]]).T
    again = assemble_batch(RULES, DENSE, stored)
    np.testing.assert_array_equal(again["ids"], batch["ids"])


def test_bags_are_padded_to_a_power_of_two():
    batch = assemble(labels=np.ones((3, 1)), weights=np.ones((3, 1)))
    np.testing.assert_array_equal(batch["ids"], [[1, 8, 0, 3], [4, 2, 5, 5]])
    np.testing.assert_array_equal(batch["segments"], [[0, 2, 2, 2], [1, 1, 3, 3]])
    assert batch["segments"].dtype == np.int32
    assert batch["labels"].shape == batch["weights"].shape == (3,)


def test_capacities_of_their_own():
    rules = dataclasses.replace(RULES, capacities=(5, 3))
    batch = assemble(rules=rules, id_weights=[[1, 2, 3, 4], [5, 6]])
    assert isinstance(batch["ids"], tuple)
    np.testing.assert_array_equal(batch["ids"][1], [4, 2, 5])
    np.testing.assert_array_equal(batch["segments"][0], [0, 2, 2, 2, 3])
    np.testing.assert_array_equal(batch["id_weights"][0], [1, 2, 3, 4, 0])
    assert batch["id_weights"][0].dtype == np.float32
    alike = dataclasses.replace(RULES, capacities=(4, 4))
    assert assemble(rules=alike)["ids"].shape == (2, 4)


def test_offsets_are_another_way_to_say_lengths():
    batch = assemble(offsets=[[0, 1, 1], [0, 0, 2]])
    for name, array in assemble().items():
        np.testing.assert_array_equal(batch[name], array, err_msg=name)


def test_buckets_are_powers_of_two():
    assert [bucket(n) for n in (0, 1, 2, 3, 4, 5, 1000)] == [1, 1, 2, 4, 4, 8, 1024]


def test_no_tables_and_no_samples():
    none = BatchRules((), 2)
    batches = [
        assemble_batch(none, DENSE, []),
        assemble_batch(none, DENSE, [], offsets=[]),
        assemble_batch(none, DENSE, np.zeros((0, 3), np.int64), lengths=[]),
    ]
    for batch in batches:
        assert batch["ids"].shape == (0, 3) and batch["ids"].dtype == np.int32
        assert set(batch) == {"dense", "ids", "weights"}
    empty = assemble_batch(RULES, np.zeros((0, 2)), [[], []], labels=[])
    assert empty["ids"].shape == (2, 0) and empty["labels"].shape == (0,)
    bags = assemble_batch(RULES, np.zeros((0, 2)), [[], []], lengths=[[], []])
    assert bags["ids"].shape == (2, 1)


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint32, np.uint64]
)
def test_integers_of_every_kind(dtype):
    ids = [np.asarray(values, dtype) for values in IDS]
    lengths = [np.asarray(values, dtype) for values in LENGTHS]
    starts = [np.asarray(values, dtype) for values in ([0, 1, 1], [0, 0, 2])]
    for batch in (
        assemble(ids=ids, lengths=lengths),
        assemble(ids=ids, offsets=starts),
    ):
        np.testing.assert_array_equal(batch["ids"], assemble()["ids"])
        np.testing.assert_array_equal(batch["segments"], assemble()["segments"])
    on_device = assemble(ids=[jnp.asarray(values) for values in IDS])
    assert isinstance(on_device["ids"], np.ndarray)
    many = BatchRules((300, 5), 2)  # more rows than an int8 counts
    np.testing.assert_array_equal(
        assemble(rules=many, ids=ids)["ids"][0], assemble()["ids"][0]
    )


# Ids outside their table.

OUTSIDE = [[1, -2, 0, 23], [4, 5]]
KEPT = {
    "clip": ([[1, 0, 0, 8], [4, 4, 5, 5]], [[0, 2, 2, 2], [1, 1, 3, 3]]),
    "hash": ([[1, 7, 0, 5], [4, 0, 5, 5]], [[0, 2, 2, 2], [1, 1, 3, 3]]),
    "drop": ([[1, 0], [4, 5]], [[0, 2], [1, 3]]),
}


@pytest.mark.parametrize("policy", KEPT)
def test_policies_in_bags(policy):
    batch = assemble(ids=OUTSIDE, rules=with_policy(policy))
    ids, segments = KEPT[policy]
    np.testing.assert_array_equal(batch["ids"], ids)
    np.testing.assert_array_equal(batch["segments"], segments)


def test_dropped_ids_take_their_weights_along():
    weights = [[1, 2, 3, 4], [5, 6]]
    batch = assemble(ids=OUTSIDE, rules=with_policy("drop"), id_weights=weights)
    np.testing.assert_array_equal(batch["id_weights"], [[1, 3], [5, 0]])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("clip", [[1, 0, 8], [4, 4, 0]]),
        ("hash", [[1, 7, 5], [4, 0, 0]]),
        ("drop", [[1, 9, 9], [4, 5, 0]]),
    ],
)
def test_policies_for_one_id_per_sample(policy, expected):
    ids = [[1, -2, 23], [4, 5, 0]]
    batch = assemble_batch(with_policy(policy), DENSE, ids)
    np.testing.assert_array_equal(batch["ids"], expected)


def test_the_table_the_sample_and_the_value_are_named():
    with pytest.raises(ValueError, match=r"table 0, sample 2: id -2 is outside \[0, 9"):
        assemble(ids=[[1, -2, 0, 23], [4, 2]])
    with pytest.raises(ValueError, match=r"table 1, sample 1: id 5 is outside \[0, 5"):
        assemble(ids=[IDS[0], [4, 5]])
    huge = np.asarray([1, 2**64 - 1, 0], np.uint64)
    with pytest.raises(ValueError, match="table 0, sample 1: id 18446744073709551615"):
        assemble_batch(RULES, DENSE, [huge, [4, 2, 0]])


# Values that are not finite.


def test_dense_features_are_finite_or_set_to_zero():
    dense = DENSE.copy()
    dense[1, 0], dense[2, 1] = np.nan, -np.inf
    with pytest.raises(ValueError, match=r"dense\[1, 0\] is nan; .*nan_policy='zero'"):
        assemble(dense=dense)
    zeroed = assemble(dense=dense, rules=dataclasses.replace(RULES, nan_policy="zero"))
    np.testing.assert_array_equal(zeroed["dense"], [[0, 1], [0, 3], [4, 0]])
    with pytest.raises(ValueError, match=r"dense\[0, 1\] is inf"):
        assemble(dense=[[0.0, 1e300], [0.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dense": np.zeros((3, 4))}, r"dense must have shape \[B, 2\], got \(3, 4\)"),
        ({"dense": np.zeros(3)}, r"dense must have shape \[B, 2\], got \(3,\)"),
        ({"ids": IDS[:1]}, "the model has 2 tables, got ids of 1"),
        ({"ids": [*IDS, [0]]}, "the model has 2 tables, got ids of 3"),
        ({"lengths": LENGTHS[:1]}, "the model has 2 tables, got lengths of 1"),
        ({"id_weights": [[1, 1, 1, 1]]}, "has 2 tables, got id_weights of 1"),
        ({"ids": [[[1, 8], [0, 3]], [4, 2]]}, r"table 0 must be flat, got .* \(2, 2\)"),
        ({"lengths": [[1, 0, 2], [0, 2, 0]]}, "of table 0 add up to 3, .* are 4 ids"),
        (
            {"lengths": [[5, -1, 0], [0, 2, 0]]},
            "lengths of table 0 must be >= 0, got -1 for sample 1",
        ),
        (
            {"lengths": [[4], [2]]},
            r"lengths of table 0 must have shape \(3,\), got \(1",
        ),
        ({"offsets": [[1, 1, 1], [0, 0, 0]]}, "of table 0 must start at 0, got 1"),
        (
            {"offsets": [[0, 1, 1], [0, 2, 1]]},
            "offsets of table 1 must not decrease, got 1 for bag 2 after 2",
        ),
        (
            {"offsets": [[0, 1, 5], [0, 0, 0]]},
            "offsets of table 0 must be at most the number of ids 4, got 5",
        ),
        ({"offsets": [[0, 1], [0, 0]]}, r"of table 0 must have shape \(3,\), got \(2,"),
        ({"offsets": [[0] * 3] * 2, "lengths": LENGTHS}, "offsets or lengths .* not b"),
        (
            {"id_weights": [[1, 2, 3], [1, 2]]},
            r"id_weights of table 0 must have shape \(4,\), got \(3,\)",
        ),
        (
            {"id_weights": [[1, 2, 3, 4], [1, np.nan]]},
            "id_weights of table 1 must be finite, got nan at 1",
        ),
        ({"labels": [0, 1]}, r"labels must have shape \(3,\), got \(2,\)"),
        ({"labels": [0, 1, 1.5]}, r"labels\[2\] is 1.5; it must be in \[0, 1\]"),
        ({"labels": [0, np.nan, 1]}, r"labels\[1\] is nan; it must be in \[0, 1\]"),
        ({"weights": [1, -1, 1]}, r"weights\[1\] is -1.0; it must be >= 0 and finite"),
        ({"weights": [1, 1, np.inf]}, r"weights\[2\] is inf; it must be >= 0 and fin"),
        (
            {"rules": dataclasses.replace(RULES, capacities=(3, 3))},
            "table 0: 4 ids exceed its capacity of 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        assemble(**more)


def test_without_lengths_every_sample_has_one_id():
    with pytest.raises(ValueError, match="each of the 3 samples has one id in table 1"):
        assemble_batch(RULES, DENSE, [[1, 2, 3], [1, 2]])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ids": [IDS[0], [4.0, 2.0]]}, "ids of table 1 must be integers, got float64"),
        ({"ids": [IDS[0], [True, False]]}, "ids of table 1 must be integers, got bool"),
        (
            {"offsets": [[0.0, 1.0, 1.0], [0] * 3]},
            "of table 0 must be integers, got fl",
        ),
        (
            {"lengths": [LENGTHS[0], [0.0, 2.0, 0.0]]},
            "of table 1 must be integers, got",
        ),
    ],
)
def test_only_integers_count(more, message):
    with pytest.raises(TypeError, match=message):
        assemble(**more)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id_policy": "wrap"}, "must be one of error, clip, drop, hash, got 'wrap'"),
        ({"nan_policy": "drop"}, "nan_policy must be one of error, zero, got 'drop'"),
        ({"capacities": (4,)}, r"each of 2 tables, got \(4,\)"),
        ({"capacities": (4, 0)}, r"each of 2 tables, got \(4, 0\)"),
    ],
)
def test_bad_rules_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RULES, **fields)
