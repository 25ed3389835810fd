import pytest

from experiments.data.criteo.atomic_files import atomic_file, atomic_folder


def test_file_appears_at_the_end(tmp_path):
    path = tmp_path / "rows.bin"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"torn")
        raise RuntimeError
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.bin"]


def test_folder_appears_at_the_end(tmp_path):
    path = tmp_path / "deep" / "data"
    with atomic_folder(path) as folder:
        (folder / "a").write_text("x")
        assert not path.exists()
    assert (path / "a").read_text() == "x"
    other = tmp_path / "deep" / "other"
    with pytest.raises(RuntimeError), atomic_folder(other) as folder:
        (folder / "a").write_text("x")
        raise RuntimeError
    assert [p.name for p in path.parent.iterdir()] == ["data"]


def test_folder_with_content_is_not_replaced(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(OSError), atomic_folder(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "x"
