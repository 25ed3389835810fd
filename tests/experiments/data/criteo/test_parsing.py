import random

import numpy as np
import pytest

from experiments.data.criteo.parsing import describe_bad_line, parse_lines

GOOD = [b"1", *[b"5"] * 13, *[b"0000000a"] * 26]


def with_field(column: int, field: bytes) -> bytes:
    fields = list(GOOD)
    fields[column] = field
    return b"\t".join(fields)


def parse(lines, labelled=True):
    return parse_lines(b"".join(line + b"\n" for line in lines), labelled=labelled)


@pytest.mark.parametrize("labelled", [True, False])
def test_agrees_with_the_slow_parser(lines, arrays, labelled):
    text = lines(500, seed=1, labelled=labelled)
    parsed, expected = parse(text, labelled), arrays(text, labelled)
    assert parsed.num_lines == 500 and not len(parsed.bad_lines)
    np.testing.assert_array_equal(parsed.dense, expected.dense)
    np.testing.assert_array_equal(parsed.ids, expected.ids)
    assert (parsed.dense.dtype, parsed.ids.dtype) == (np.int64, np.uint32)
    if labelled:
        np.testing.assert_array_equal(parsed.labels, expected.labels)
        assert parsed.labels.dtype == np.int32
    else:
        assert parsed.labels is None
    fields = [line.split(b"\t")[-26:] for line in text]
    missing = [[field == b"" for field in row] for row in fields]
    np.testing.assert_array_equal(parsed.missing, missing)


def test_places_of_lines(lines):
    text = lines(9)
    text[4] = b"bad"
    parsed = parse(text)
    data = b"".join(line + b"\n" for line in text)
    assert parsed.lines.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert parsed.bad_lines.tolist() == [4]
    for number, start in zip(parsed.lines, parsed.starts, strict=True):
        assert data[start:].startswith(text[number] + b"\n")
    assert data[parsed.bad_starts[0] :].startswith(b"bad\n")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"", 0),
        (b"0", 0),
        (b"-0", 0),
        (b"-1", -1),
        (b"007", 7),
        (b"12345678", 12345678),
        (b"-12345678", -12345678),
        (b"123456789", 123456789),
        (b"-1234567890123456", -1234567890123456),
        (b"12345678901234567", 12345678901234567),
        (b"9223372036854775807", 2**63 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"00000000000000000001", 1),
    ],
)
def test_integers(field, value):
    for column in (1, 5, 13):
        parsed = parse([b"\t".join(GOOD), with_field(column, field)])
        expected = [[5] * 13, [5] * 13]
        expected[1][column - 1] = value
        assert parsed.dense.tolist() == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"", 0),
        (b"0", 0),
        (b"f", 15),
        (b"80000000", 0x80000000),
        (b"fffffffe", 0xFFFFFFFE),
        (b"ffffffff", 0xFFFFFFFF),
        (b"DeadBeef", 0xDEADBEEF),
        (b"01000001", 0x01000001),
    ],
)
def test_ids(field, value):
    for column in (14, 20, 39):
        parsed = parse([with_field(column, field), b"\t".join(GOOD)])
        assert int(parsed.ids[0, column - 14]) == value
        assert parsed.missing.sum() == (field == b"")


@pytest.mark.parametrize(
    ("column", "field", "message"),
    [
        (0, b"", "the label is '', expected 0 or 1"),
        (0, b"2", "the label is '2', expected 0 or 1"),
        (0, b"01", "the label is '01', expected 0 or 1"),
        (0, b"1.0", "the label is '1.0', expected 0 or 1"),
        (1, b"1.5", "column I1 holds '1.5', expected an integer or nothing"),
        (3, b"nan", "column I3 holds 'nan', expected an integer or nothing"),
        (4, b"inf", "column I4 holds 'inf', expected an integer or nothing"),
        (4, b"-inf", "column I4 holds '-inf', expected an integer or nothing"),
        (5, b"-", "column I5 holds '-', expected an integer or nothing"),
        (5, b"--1", "column I5 holds '--1', expected an integer or nothing"),
        (5, b"+1", "column I5 holds '.1', expected an integer or nothing"),
        (5, b"1-", "column I5 holds '1-', expected an integer or nothing"),
        (5, b" 1", "column I5 holds ' 1', expected an integer or nothing"),
        (6, b"12a", "column I6 holds '12a', expected an integer or nothing"),
        (7, b"1_0", "column I7 holds '1_0', expected an integer or nothing"),
        (8, b"1234567x9012345", "column I8 holds '1234567x90"),
        (8, b"123456789x12345", "column I8 holds '123456789x"),
        (13, b"9223372036854775808", "column I13 holds '9223372036854775808', exp"),
        (13, b"-9223372036854775809", "column I13 holds '-9223.*an integer of 64"),
        (13, b"0" * 21, "column I13 holds '0{21}', expected .* 20 characters"),
        (14, b"0000000g", "column C1 holds '0000000g', expected hexadecimal"),
        (15, b"1ffffffff", "column C2 holds '1f{8}', expected at most 8 hex"),
        (20, b"-1", "column C7 holds '-1', expected hexadecimal digits"),
        (20, b"0x1f", "column C7 holds '0x1f', expected hexadecimal digits"),
        (20, b"\x00", r"column C7 holds '\\x00', expected hexadecimal digits"),
        (20, b"\xff\xfe", "column C7 holds '\ufffd\ufffd', expected hexadecimal"),
        (39, b"12 ", "column C26 holds '12 ', expected hexadecimal digits"),
        (39, b"a\r", r"column C26 holds 'a\\r', expected hexadecimal digits"),
    ],
)
def test_bad_fields_are_refused_and_named(column, field, message):
    line = with_field(column, field)
    # A carriage return at the very end would be part of the line end.
    end = b"\r\n" if field.endswith(b"\r") else b"\n"
    good = b"\t".join(GOOD) + b"\n"
    parsed = parse_lines(good + line + end + good)
    assert parsed.bad_lines.tolist() == [1] and parsed.lines.tolist() == [0, 2]
    assert parsed.dense.tolist() == [[5] * 13] * 2
    assert parsed.ids.tolist() == [[10] * 26] * 2
    with pytest.raises(ValueError, match=message):
        raise ValueError(describe_bad_line(line + end))


def test_wrong_number_of_fields_is_named():
    for fields in (GOOD[:-1], [*GOOD, b""], [b""]):
        line = b"\t".join(fields)
        assert parse([line]).bad_lines.tolist() == [0]
        message = describe_bad_line(line)
        assert message.startswith(
            "expected 40 fields (a label, 13 integers, 26 hexadecimal ids), "
            f"found {len(fields)};"
        )
        assert message.endswith(f"the line begins {line[:80].decode()!r}")
    unlabelled = describe_bad_line(b"\t".join(GOOD), labelled=False)
    assert unlabelled.startswith("expected 39 fields (no label, ")
    assert "found 40" in unlabelled


def test_a_good_line_has_nothing_to_describe():
    with pytest.raises(ValueError, match="good"):
        describe_bad_line(b"\t".join(GOOD) + b"\r\n")


def test_line_ends_may_be_mixed(lines, arrays):
    text = lines(40, seed=2)
    text[3] = text[3].rpartition(b"\t")[0] + b"\t"  # the last field is empty
    ends = [b"\r\n" if i % 3 else b"\n" for i in range(40)]
    data = b"".join(line + end for line, end in zip(text, ends, strict=True))
    parsed = parse_lines(data)
    np.testing.assert_array_equal(parsed.ids, arrays(text).ids)
    assert parsed.missing[3, -1]


def test_nothing_in_nothing_out():
    for data, bad in ((b"", []), (b"\n", [0]), (b"\n\nx\n", [0, 1, 2])):
        parsed = parse_lines(data)
        assert parsed.bad_lines.tolist() == bad
        assert parsed.dense.shape == (0, 13) and parsed.ids.shape == (0, 26)


def corrupt(line: bytes, draw: random.Random) -> bytes:
    """Changes, drops or adds a few bytes."""
    data = bytearray(line)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(data) + 1)
        byte = draw.choice(b"\t\t-09afgF. x\r\x00\xff+_")
        match draw.randrange(3):
            case 0:
                data[place : place + 1] = bytes([byte])
            case 1:
                del data[place : place + draw.randint(1, 3)]
            case _:
                data.insert(place, byte)
    return bytes(data)


@pytest.mark.parametrize("labelled", [True, False])
def test_same_verdict_as_the_slow_parser_on_damaged_lines(lines, slow, labelled):
    draw = random.Random(7)
    text = lines(3000, seed=3, labelled=labelled)
    text = [corrupt(line, draw) if draw.random() < 0.5 else line for line in text]
    parsed = parse(text, labelled)
    # One carriage return at the end belongs to the line end.
    rows = [slow(line.removesuffix(b"\r"), labelled) for line in text]
    good = [i for i, row in enumerate(rows) if row is not None]
    assert 1600 < len(good) < 2900  # both verdicts are common
    assert parsed.lines.tolist() == good
    assert parsed.bad_lines.tolist() == sorted(set(range(3000)) - set(good))
    np.testing.assert_array_equal(parsed.dense, [rows[i][1] for i in good])
    np.testing.assert_array_equal(parsed.ids, [rows[i][2] for i in good])
    for number in parsed.bad_lines:
        assert "the line begins" in describe_bad_line(text[number], labelled=labelled)
