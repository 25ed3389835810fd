import numpy as np
import pytest

from experiments.data.criteo.dense_features import log1p_dense
from experiments.data.criteo.formats import (
    Rows,
    open_binary,
    open_reference_npz,
    open_torchrec,
    write_binary,
    write_reference_files,
    write_reference_npz,
    write_torchrec,
)
from experiments.data.criteo.kaggle import read_kaggle


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    dense = rng.integers(-3, 10**6, (50, 13))
    ids = rng.integers(0, 2**31 - 1, (50, 26))
    ids[7, 3] = 2**24 + 1  # float32 has no such number
    return Rows(dense, ids, rng.integers(0, 2, 50))


def same(read: Rows, expected: Rows, rows=slice(None)) -> None:
    for part, whole in zip(read, expected, strict=True):
        np.testing.assert_array_equal(part, whole[rows])
        assert type(part) is np.ndarray  # a copy, not a map
    assert read.labels.dtype == np.int32


@pytest.mark.parametrize("transposed", [True, False])
def test_reference_npz(tmp_path, rows, transposed):
    path = str(tmp_path / "train_day_0.npz")
    counts = np.arange(26)
    write_reference_npz(path, rows, transposed=transposed, counts=counts)
    with np.load(path, allow_pickle=False) as arrays:
        name = "X_cat_t" if transposed else "X_cat"
        assert sorted(arrays) == sorted([name, "X_int", "counts", "y"])
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.int32)}
        assert arrays[name].shape == ((26, 50) if transposed else (50, 26))
    opened = open_reference_npz(path)
    assert len(opened) == 50 and not opened.dense_is_log
    same(opened.read(), rows)
    same(opened.read(11, 20), rows, slice(11, 20))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_the_original_implementation(golden_dir, tmp_path, save):
    golden = golden_dir / "dlrm" / "criteo_small.npz"
    with np.load(golden, allow_pickle=False) as arrays:
        names = ("X_cat", "X_int", "y", "counts")
        whole = {name: arrays[name] for name in names}
    assert whole["X_cat"].dtype == np.float64  # as the original stores ids
    path = str(tmp_path / "kaggleAdDisplayChallenge_processed.npz")
    save(path, **whole)
    opened = open_reference_npz(path)
    read = opened.read(3, 20)
    same(read, Rows(whole["X_int"], whole["X_cat"], whole["y"]), slice(3, 20))
    assert read.ids.dtype == np.int64


def test_all_files_of_the_original_implementation(tmp_path, golden_dir):
    text = str(golden_dir / "dlrm" / "criteo_small.tsv")
    data = read_kaggle(text, vocabulary="all")
    write_reference_files(str(tmp_path), "train", data)
    assert len(list(tmp_path.iterdir())) == 7 + 1 + 1 + 26 + 1

    def load(name):
        return np.load(tmp_path / f"{name}.npz", allow_pickle=False)

    assert load("train_day_count")["total_per_file"].tolist() == [4, 4, 3, 3, 3, 3, 3]
    np.testing.assert_array_equal(load("train_fea_count")["counts"], data.counts)
    for column, values in enumerate(data.dictionaries):
        unique = load(f"train_fea_dict_{column}")["unique"]
        np.testing.assert_array_equal(unique, values)
    days = [open_reference_npz(str(tmp_path / f"train_day_{i}.npz")) for i in range(7)]
    joined = open_reference_npz(
        str(tmp_path / "kaggleAdDisplayChallenge_processed.npz")
    ).read()
    for field, whole in zip(Rows._fields, joined, strict=True):
        parts = [getattr(day.read(), field) for day in days]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(joined.ids, data.ids)


def test_binary_rows(tmp_path, rows):
    path = tmp_path / "train.bin"
    write_binary(
        str(path), [Rows(*(p[:20] for p in rows)), Rows(*(p[20:] for p in rows))]
    )
    table = np.fromfile(path, "<i4").reshape(50, 40)
    np.testing.assert_array_equal(table[:, 0], rows.labels)
    np.testing.assert_array_equal(table[:, 14:], rows.ids)
    same(open_binary(str(path)).read(), rows)
    same(open_binary(str(path)).select(5, 30).read(2, 9), rows, slice(7, 14))
    raw = rows._replace(ids=rows.ids.astype(np.uint32) | np.uint32(0x80000000))
    write_binary(str(path), [raw])
    same(open_binary(str(path)).read(), raw)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="has 7,996 bytes, which are no whole rows"):
        open_binary(str(path))
    with pytest.raises(ValueError, match="cannot read .*absent"):
        open_binary(str(tmp_path / "absent"))


def test_torchrec_triples(tmp_path, rows):
    logs = rows._replace(dense=log1p_dense(rows.dense))
    prefix = str(tmp_path / "day_0")
    write_torchrec(
        prefix,
        [Rows(*(part[:9] for part in logs)), Rows(*(part[9:] for part in logs))],
        50,
    )
    forms = {"dense": (50, 13), "sparse": (50, 26), "labels": (50, 1)}
    for name, shape in forms.items():
        array = np.load(f"{prefix}_{name}.npy", allow_pickle=False)
        assert array.shape == shape
        assert array.dtype == (np.float32 if name == "dense" else np.int32)
    opened = open_torchrec(prefix)
    assert opened.dense_is_log
    same(opened.read(4, 44), logs, slice(4, 44))
    with pytest.raises(ValueError, match="was to have 51 rows, got 50"):
        write_torchrec(prefix, [logs], 51)
    same(open_torchrec(prefix).read(), logs)  # the old ones are still there
    with pytest.raises(ValueError, match="cannot read .*day_1_dense.npy"):
        open_torchrec(str(tmp_path / "day_1"))


def save(path, **changes) -> str:
    arrays = {
        "X_int": np.zeros((4, 13), np.int32),
        "X_cat": np.zeros((4, 26)),
        "y": np.zeros(4, np.int32),
    }
    np.savez(path, **arrays | changes)
    return str(path)


def test_ids_never_pass_through_small_floats(tmp_path):
    for dtype in (np.float32, np.float16):
        path = save(tmp_path / "a.npz", X_cat=np.zeros((4, 26), dtype))
        with pytest.raises(ValueError, match="'X_cat', holds ids as float.., expected"):
            open_reference_npz(path)
    for value in (0.5, -1.0, np.nan, np.inf, 2.0**32):
        ids = np.zeros((4, 26))
        ids[2, 5] = value
        opened = open_reference_npz(save(tmp_path / "a.npz", X_cat=ids))
        with pytest.raises(ValueError, match="row 2: the id of column C6 is "):
            opened.read(1)
        assert len(opened.read(3).labels) == 1
    ids[2, 5] = 2.0**32 - 1
    opened = open_reference_npz(save(tmp_path / "a.npz", X_cat=ids))
    assert opened.read().ids[2, 5] == 2**32 - 1


def test_shapes_and_names_are_checked(tmp_path):
    path = save(tmp_path / "a.npz", X_int=np.zeros((4, 12), np.int32))
    with pytest.raises(ValueError, match=r"shape \[4, 12\], expected \[4, 13\] for 4"):
        open_reference_npz(path)
    path = save(tmp_path / "a.npz", y=np.zeros(5, np.int32))
    with pytest.raises(ValueError, match=r"shape \[4, 13\], expected \[5, 13\] for 5"):
        open_reference_npz(path)
    np.savez(path, X_int=np.zeros((4, 13)))
    with pytest.raises(ValueError, match="lacks X_cat and y; it has X_int"):
        open_reference_npz(path)
    opened = open_reference_npz(save(tmp_path / "a.npz"))
    with pytest.raises(ValueError, match=r"has 4 rows, no range \[2, 5\)"):
        opened.read(2, 5)


def test_numbers_must_fit_in_32_bits(tmp_path, rows):
    path = str(tmp_path / "a.npz")
    rows.dense[20, 4] = 2**31
    with pytest.raises(ValueError, match="dense, row 20, column I5: 2147483648 does"):
        write_reference_npz(path, rows)
    with pytest.raises(ValueError, match="dense, row 20, column I5"):
        write_binary(path, [rows])
    rows.dense[20, 4] = 0
    rows.ids[3, 0] = 2**31
    with pytest.raises(ValueError, match="ids, row 3: 2147483648 does not fit"):
        write_binary(path, [rows])
    with pytest.raises(ValueError, match="ids must be integers, got float32"):
        write_binary(path, [rows._replace(ids=np.zeros((50, 26), np.float32))])
    assert not list(tmp_path.iterdir())
