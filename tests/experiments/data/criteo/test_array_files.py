import io

import numpy as np
import pytest

from experiments.data.criteo.array_files import npy_writer, open_npy, open_npz

ARRAYS = {
    "a": np.arange(12, dtype=np.int32).reshape(3, 4),
    "t": np.arange(12, dtype=np.float64).reshape(3, 4).T,
    "e": np.zeros((0, 5), np.int32),
    "s": np.array(7),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_members_are_mapped(tmp_path, save):
    path = str(tmp_path / "arrays.npz")
    save(path, **ARRAYS)
    opened = open_npz(path)
    assert list(opened) == list(ARRAYS)
    for name, array in ARRAYS.items():
        mapped = opened[name].map()
        np.testing.assert_array_equal(mapped, array)
        assert mapped.dtype == array.dtype and not mapped.flags.writeable
        assert isinstance(mapped, np.memmap) or not array.size
    # The file is not read through the map of an array that is opened anew.
    assert opened["t"].map().flags.f_contiguous


def test_npy_is_mapped(tmp_path):
    path = str(tmp_path / "a.npy")
    for array in ARRAYS.values():
        np.save(path, array)
        np.testing.assert_array_equal(open_npy(path).map(), array)


def test_writer_gives_what_numpy_reads(tmp_path):
    path = str(tmp_path / "rows.npy")
    array = np.arange(60, dtype=np.float32).reshape(12, 5)
    with npy_writer(path, np.float32, (12, 5)) as write:
        write(array[:5])
        write(array[5:, ::-1][:, ::-1])  # not contiguous
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), array)
    for rows, message in (
        (array[:3], "was to have 12 rows, got 3"),
        (array.astype(np.float64), "takes rows of float32 .5., got float64 .5."),
        (array[:, :4], "takes rows of float32 .5., got float32 .4."),
    ):
        with (
            pytest.raises(ValueError, match=message),
            npy_writer(path, np.float32, (12, 5)) as write,
        ):
            write(rows)
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), array)


def test_objects_are_not_read(tmp_path):
    # Only the header of such an array: no pickle is written here.
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": (3,)}
    np.lib.format.write_array_header_1_0(file, header)
    path = tmp_path / "objects.npy"
    path.write_bytes(file.getvalue() + b"x" * 100)
    with pytest.raises(ValueError, match="objects.npy holds Python objects"):
        open_npy(str(path))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="cannot read .*absent.npy"):
        open_npy(str(tmp_path / "absent.npy"))
    with pytest.raises(ValueError, match="cannot read .*absent.npz"):
        open_npz(str(tmp_path / "absent.npz"))
    path = tmp_path / "text.npy"
    path.write_bytes(b"no array")
    with pytest.raises(ValueError, match="text.npy is no array file of NumPy"):
        open_npy(str(path))
    with pytest.raises(ValueError, match="cannot read .*text.npy"):
        open_npz(str(path))
    np.save(path, np.arange(100))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="text.npy is torn: its int64 .100. needs"):
        open_npy(str(path))
