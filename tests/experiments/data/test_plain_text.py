import gzip
import pathlib

import pytest

from experiments.data.documents import split_corpus
from experiments.data.plain_text import cut_documents, read_text_files


def test_files_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b.txt").write_text("second ü", encoding="utf-8")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst")  # a byte order mark
    (tmp_path / "deep").mkdir()
    with gzip.open(tmp_path / "deep" / "c.txt.gz", "wt") as file:
        file.write("third")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "notes.md").write_text("not text by name")
    corpus = read_text_files(str(tmp_path), "data.path")
    assert corpus.texts == ["first", "second ü", "third"]
    names = [pathlib.Path(file).name for file in corpus.files]
    assert names == ["a.txt", "b.txt", "blank.txt", "c.txt.gz"]
    assert read_text_files(str(tmp_path / "?.txt"), "data.path").texts[0] == "first"
    assert read_text_files(str(tmp_path / "**" / "*.gz"), "p").texts == ["third"]
    # A file that is named need not end in .txt.
    assert read_text_files(str(tmp_path / "notes.md"), "p").texts


def test_moving_the_folder_keeps_the_hash(tmp_path):
    digests = set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        (folder / "a.txt").write_text("same")
        digests.add(read_text_files(str(folder), "data.path").sha256)
    assert len(digests) == 1


def test_long_files_are_cut_at_line_ends():
    text = "".join(f"line {i} of a long file\n" for i in range(4000))
    documents = cut_documents(text)
    assert "".join(documents) == text and len(documents) > 5
    assert all(document.endswith("\n") for document in documents)
    assert max(map(len, documents)) <= 16_384
    assert "".join(cut_documents("x" * 50_000)) == "x" * 50_000
    train, held_out = split_corpus(documents, 0.05)
    assert train and held_out and len(train) + len(held_out) == len(documents)


def test_errors_name_the_file(tmp_path):
    def read(name):
        return read_text_files(str(tmp_path / name), "data.path")

    with pytest.raises(ValueError, match=r"data.path='.*gone.txt': there is no such f"):
        read("gone.txt")
    with pytest.raises(ValueError, match="the folder holds no file named .*txt or"):
        read("")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="the file .*empty.txt is empty"):
        read("")
    (tmp_path / "white.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="nothing but white space"):
        read("white.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="latin.txt is not UTF-8 text: byte 3 is 0xe9"):
        read("latin.txt")
    (tmp_path / "torn.txt.gz").write_bytes(gzip.compress(b"text" * 99)[:-9])
    with pytest.raises(ValueError, match="cannot read .*torn.txt.gz"):
        read("torn.txt.gz")
    (tmp_path / "fake.txt.gz").write_text("not gzipped")
    with pytest.raises(ValueError, match="cannot read .*fake.txt.gz"):
        read("fake.txt.gz")
