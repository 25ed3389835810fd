import jax
import numpy as np
import pytest

from models.embeddings import TableConfig, check_unique, init_table, uniqueness
from tests.models.embeddings.tables import TABLES, draw_params


@pytest.mark.parametrize("name", ["hash", "features", "path", "frequency add"])
def test_complementary_parts_start_unique(name):
    config = TABLES[name]
    found = check_unique(config, draw_params(config))
    if config.method == "hash":
        assert not found.unique and found.distinct == 10 and found.clash == (0, 10)
        assert found.min_distance == 0.0
    else:
        assert found.unique and found.distinct == config.rows and found.clash is None
        assert found.min_distance > 0.0
    assert found.checked == config.rows


@pytest.mark.parametrize(
    ("op", "init"),
    [("concat", "default"), ("add", "default"), ("mult", "default"), ("mult", "ones")],
)
def test_initial_embeddings_are_unique(op, init):
    config = TableConfig(3000, 8, "qr", op, collisions=7, init=init)
    found = check_unique(config, init_table(config, jax.random.key(0)))
    assert found.unique and found.distinct == 3000


@pytest.mark.parametrize("m", [1, 7, 2999])
def test_hashing_leaves_exactly_m_rows(m):
    config = TableConfig(3000, 8, "hash", hash_rows=m)
    found = check_unique(config, init_table(config, jax.random.key(0)))
    assert (found.unique, found.distinct, found.clash) == (False, m, (0, m))


def test_a_zero_row_destroys_a_product_but_not_a_sum():
    params = draw_params(TABLES["qr mult"])
    params["quotient"][2] = 0.0
    found = check_unique(TABLES["qr mult"], params)
    assert found.clash == (8, 9) and found.distinct == 23 - 3
    assert check_unique(TABLES["qr add"], params).unique
    # A zero coordinate destroys that coordinate only.
    params = draw_params(TABLES["qr mult"])
    params["quotient"][2, 3] = 0.0
    assert check_unique(TABLES["qr mult"], params).unique


def test_a_negative_zero_is_a_zero():
    config = TableConfig(3, 1)
    found = check_unique(config, {"table": np.asarray([[0.0], [1.0], [-0.0]])})
    assert found.distinct == 2 and found.clash == (0, 2)


def test_distances_are_exact():
    config = TableConfig(4, 2)
    table = np.asarray([[0.0, 0.0], [3.0, 4.0], [3.0, 4.5], [-9.0, 0.0]], np.float32)
    found = check_unique(config, {"table": table}, tol=0.49)
    assert found.unique and found.min_distance == 0.5
    found = check_unique(config, {"table": table}, tol=0.5)
    assert not found.unique and found.clash == (1, 2) and found.distinct == 4
    assert check_unique(TableConfig(1, 2), {"table": table[:1]}).min_distance == np.inf


def test_close_pairs_are_found_among_many():
    config = TableConfig(20_000, 4)
    table = np.random.default_rng(0).standard_normal((20_000, 4)).astype(np.float32)
    table[12_345] = table[77] + np.float32(1e-4)
    distance = np.linalg.norm(table[12_345].astype(float) - table[77].astype(float))
    above = check_unique(config, {"table": table}, tol=1.01 * distance)
    assert above.clash == (77, 12_345)
    assert check_unique(config, {"table": table}, tol=0.99 * distance).unique


def test_close_pairs_need_not_be_neighbours_on_the_line(monkeypatch):
    monkeypatch.setattr(uniqueness, "_project", lambda v, g: v[:, 0].astype(float))
    table = np.asarray([[0.002, 0.0], [0.001, 5.0], [0.0, 0.0], [9.0, 9.0]])
    found = check_unique(TableConfig(4, 2), {"table": table}, tol=0.01)
    assert found.clash == (0, 2) and found.distinct == 4


def test_rows_on_one_line_point_are_still_told_apart(monkeypatch):
    # Different rows whose projections coincide: the slow exact comparison decides.
    monkeypatch.setattr(uniqueness, "_project", lambda v, g: np.zeros(len(v)))
    config = TableConfig(5, 2)
    table = np.asarray([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [0.0, 0.0], [2.0, 1.0]])
    found = check_unique(config, {"table": table})
    assert found.distinct == 3 and found.clash == (0, 2)


def test_larger_tables_are_sampled(monkeypatch):
    monkeypatch.setattr(uniqueness, "_MOST_IDS", 50)
    monkeypatch.setattr(uniqueness, "_CHUNK", 16)  # the last chunk is padded
    config = TableConfig(100, 4, "hash", hash_rows=3)
    found = check_unique(config, init_table(config, jax.random.key(0)))
    assert found.checked == 50 and found.distinct == 3
    a, b = found.clash
    assert a < b and (b - a) % 3 == 0
    assert check_unique(TableConfig(100, 4), {"table": np.random.rand(100, 4)}).unique


@pytest.mark.parametrize("tol", [-1.0, float("inf"), float("nan")])
def test_bad_tolerances_are_refused(tol):
    with pytest.raises(ValueError, match=f"tol must be finite and >= 0, got {tol}"):
        check_unique(TABLES["full"], draw_params(TABLES["full"]), tol)
