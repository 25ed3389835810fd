import dataclasses

import pytest

from experiments.reproduce.embedding_arms import (
    FAMILIES,
    SWEPT_COLLISIONS,
    embedding_arms,
)
from models.embeddings import count_table_params

ROWS = (2000, 2000, 1000, 20)


def table_params(arm, threshold=100):
    return sum(map(count_table_params, arm.tables(ROWS, threshold)))


def named(**settings):
    return {arm.name: arm for arm in embedding_arms(**settings)}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("full", 80_320),
        ("hash_c4", 20_512),
        ("qr_mult_c4", 20_512),
        ("qr_add_c4", 20_512),
        ("qr_mult_c4_original_init", 20_512),
        ("qr_concat_c4", 15_368),
        ("features_c4", 20_512),
        # The quotients and, for each of four remainders, 16 -> 16 -> 16 with biases.
        ("path_c4", 16 * (500 + 500 + 250 + 20) + 3 * 4 * (2 * 16 * 16 + 32)),
        ("mixed_radix_k3", 2_048),  # 13 + 13 + 13 twice, 10 + 10 + 10, and 20
        ("hash_k3", 2_048),
        ("mixed_radix_k2", 16 * (90 + 90 + 64 + 20)),
        ("qr_mult_c4_t0", 16 * (504 + 504 + 254 + 9)),
        ("qr_mult_c4_t1000", 16 * (504 + 504 + 1000 + 20)),
    ],
)
def test_tables_have_the_stated_sizes(name, params):
    arms = named(thresholds=(0, 1000), original_init=True)
    assert table_params(arms[name]) == params


def test_every_peer_is_a_hashing_arm_that_comes_first_and_is_about_as_large():
    arms = embedding_arms(thresholds=(0, 1000), original_init=True)
    seen = {}
    for arm in arms:
        if arm.peer:
            peer = seen[arm.peer]
            assert peer.family == "hash" and not peer.peer
            ratio = table_params(arm) / table_params(peer)
            if arm.family in ("qr_mult", "qr_add", "features", "mixed_radix"):
                assert ratio == 1
            elif arm.family == "crt":
                assert 1 <= ratio < 1.2
        seen[arm.name] = arm
    assert {arm.family for arm in arms} == set(FAMILIES)
    without = {arm.name for arm in arms if not arm.peer}
    assert without == {name for name in seen if name.startswith(("full", "hash"))}


def test_names_and_labels_are_unique_and_sweeps_are_complete():
    arms = embedding_arms(thresholds=(0,), original_init=True)
    for field in ("name", "label"):
        values = [getattr(arm, field) for arm in arms]
        assert len(set(values)) == len(values)
    families = ("hash", "qr_mult", "qr_add", "qr_concat", "features", "path")
    for family in families:
        for collisions in SWEPT_COLLISIONS:
            assert f"{family}_c{collisions}" in {arm.name for arm in arms}


def test_variations_stand_beside_their_line():
    arms = named(thresholds=(0,), original_init=True)
    beside = {name for name, arm in arms.items() if arm.variation}
    assert beside == {
        "hash_c4_t0",
        "qr_mult_c4_t0",
        "qr_mult_c4_original_init",
        "qr_add_c4_original_init",
    }
    assert arms["qr_mult_c4_t0"].peer == "hash_c4_t0"
    assert arms["qr_mult_c4_t0"].label == "QR mult, c = 4, threshold 0"


def test_moduli_follow_the_rows_and_are_coprime_only_for_the_chinese_remainder():
    arms = named()
    assert arms["mixed_radix_k3"].table(1000, 0).part_moduli == (10, 10, 10)
    moduli = arms["crt_k3"].table(1000, 0).part_moduli
    assert len(set(moduli)) == 3 and moduli != (10, 10, 10)
    assert arms["hash_k3"].table(1000, 0).stored_hash_rows == 30


def test_arms_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        embedding_arms()[0].name = "other"
