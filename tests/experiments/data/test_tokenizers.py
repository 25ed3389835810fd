import pickle
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from experiments.data.tokenizers import describe_tokenizer, load_tokenizer

settings = hypothesis.settings(max_examples=50, deadline=None)
unicode = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
TEXTS = [
    "The gradient of the loss, and the step it takes.\n",
    "def update(params, state):\n    return params - rate * state\n",
    "Ångström, λ and 東京 are words too.",
] * 30


@pytest.fixture(scope="module")
def bpe_path(tmp_path_factory):
    library = pytest.importorskip("tokenizers")
    bpe = library.ByteLevelBPETokenizer()
    marks = ["<s>", "</s>", "<pad>"]
    bpe.train_from_iterator(TEXTS, vocab_size=320, special_tokens=marks)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    # A post-processor that adds marks, as many published files have one.
    bpe.post_processor = library.processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    bpe.save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def sentencepiece_path(tmp_path_factory):
    library = pytest.importorskip("sentencepiece")
    prefix = str(tmp_path_factory.mktemp("sentencepiece") / "pieces")
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=prefix,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    return prefix + ".model"


@pytest.fixture(params=["byte", "byte_special", "bpe_path", "sentencepiece_path"])
def tokenizer(request):
    name = request.param
    path = request.getfixturevalue(name) if name.endswith("_path") else name
    return load_tokenizer(path)


def test_text_comes_back(tokenizer):
    @settings
    @hypothesis.given(unicode)
    def check(text):
        ids = tokenizer.encode(text)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.decode(ids) == text
        # And ids come back from the text they stand for.
        assert tokenizer.encode(tokenizer.decode(ids)) == ids

    check()


def test_batches_equal_single_texts(tokenizer):
    texts = ["a", "", "λ rows\n", TEXTS[1]]
    arrays = tokenizer.encode_batch(texts)
    assert [array.tolist() for array in arrays] == [tokenizer.encode(t) for t in texts]
    assert tokenizer.encode_batch([]) == []


def test_pickles(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])
    assert describe_tokenizer(copy) == describe_tokenizer(tokenizer)


def test_marks_and_padding_leave_no_text(tokenizer):
    marks = [tokenizer.bos_id, *tokenizer.encode("step"), tokenizer.eos_id]
    assert tokenizer.decode(marks) == "step"


def test_marks():
    byte, special = load_tokenizer("byte"), load_tokenizer("byte_special")
    assert byte.vocab_size == 256
    assert (byte.pad_id, byte.bos_id, byte.eos_id) == (0, 0, 0)
    assert special.vocab_size == 320
    assert (special.pad_id, special.bos_id, special.eos_id) == (256, 257, 258)
    assert byte.encode("é") == special.encode("é") == [0xC3, 0xA9]


def test_marks_of_files(bpe_path, sentencepiece_path):
    bpe, pieces = load_tokenizer(bpe_path), load_tokenizer(sentencepiece_path)
    assert (bpe.bos_id, bpe.eos_id, bpe.pad_id) == (0, 1, 2)
    assert bpe.encode("loss")[0] not in (0, 1)  # the post-processor stays out
    # SentencePiece's defaults: <unk> 0, <s> 1, </s> 2 and no padding.
    assert (pieces.bos_id, pieces.eos_id, pieces.pad_id) == (1, 2, 0)
    assert pieces.vocab_size == 340


def test_an_end_mark_alone_begins_documents_too(tmp_path):
    library = pytest.importorskip("tokenizers")
    bpe = library.ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<|endoftext|>"])
    bpe.save(str(tmp_path / "end.json"))
    end = load_tokenizer(str(tmp_path / "end.json"))
    assert (end.bos_id, end.eos_id, end.pad_id) == (0, 0, 0)
    bpe = library.ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=300)
    bpe.save(str(tmp_path / "none.json"))
    none = load_tokenizer(str(tmp_path / "none.json"))
    assert (none.bos_id, none.eos_id, none.pad_id) == (None, None, 0)


def test_what_utf8_cannot_hold_is_replaced():
    byte = load_tokenizer("byte")
    assert byte.decode(byte.encode("a\ud800b")) == "a?b"
    assert byte.decode([0xFF, 65]) == "\ufffdA"
    special = load_tokenizer("byte_special")
    assert special.decode(special.encode("a\0b")) == "a\0b"  # 0 is a byte like others


def test_unknown_names_list_what_exists():
    with pytest.raises(ValueError, match="byte, byte_special, .*json.*got 'bytes'"):
        load_tokenizer("bytes")


@pytest.mark.parametrize("name", ["missing.json", "missing.model"])
def test_a_missing_file_is_named(name):
    with pytest.raises(ValueError, match=f"{name}': there is no such file"):
        load_tokenizer(name)


@pytest.mark.parametrize("name", ["broken.json", "broken.model"])
def test_a_broken_file_is_named(tmp_path, name):
    (tmp_path / name).write_text("not a tokenizer")
    with pytest.raises(ValueError, match=rf"{name}' is not a "):
        load_tokenizer(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "package"), [("a.json", "tokenizers"), ("a.model", "sentencepiece")]
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_text("")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"'{package}' of the `data` extra: pip"):
        load_tokenizer(str(tmp_path / name))
