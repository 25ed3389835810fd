"""Stack distances by their definition; drawn traces have those of their profile."""

import numpy as np
import pytest

from experiments.data import stack_distances
from experiments.data.stack_distances import (
    StackDistances,
    draw_trace,
    profile_trace,
    read_profile,
    read_trace,
    write_profile,
    write_trace,
)


def _distances(trace):
    """By a stack that is searched from the top."""
    stack, found = [], []
    for line in trace:
        if line in stack:
            found.append(stack[::-1].index(line) + 1)
            stack.remove(line)
        else:
            found.append(0)
        stack.append(line)
    return found


def _counts(trace):
    values, counts = np.unique(_distances(trace), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _zipf_trace(length, rows=30, seed=0):
    mass = 1.0 / np.arange(1, rows + 1)
    generator = np.random.default_rng(seed)
    return generator.choice(rows, length, p=mass / mass.sum())


def test_a_trace_worked_out_by_hand():
    # a b b a c b: distances 0 0 1 2 0 3.
    profile = profile_trace([10, 20, 20, 10, 30, 20])
    assert profile.lines.tolist() == [10, 20, 30]
    assert profile.distances.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(profile.cumulative, [3 / 6, 4 / 6, 5 / 6, 1.0])


def test_a_profile_is_the_count_of_a_searched_stack():
    trace = _zipf_trace(2000)
    counts, profile = _counts(trace), profile_trace(trace)
    assert profile.distances.tolist() == list(counts)
    shares = np.diff(profile.cumulative, prepend=0.0) * 2000
    np.testing.assert_allclose(shares, list(counts.values()), atol=1e-9)
    assert profile.cumulative[-1] == 1.0
    first_seen = list(dict.fromkeys(trace.tolist()))
    assert profile.lines.tolist() == first_seen


def test_a_drawn_trace_has_the_distances_of_its_profile():
    shares = {0: 0.1, 1: 0.3, 2: 0.2, 5: 0.25, 12: 0.15}
    profile = StackDistances(
        np.arange(100, 120), np.array(list(shares)), np.cumsum(list(shares.values()))
    )
    trace = draw_trace(profile, 40_000, np.random.RandomState(0))
    counts = _counts(trace)
    assert counts.pop(0) == 20  # each id is new once
    # The share of new ids goes to the distance of the id not seen for longest.
    expected = {1: 0.3, 2: 0.2, 5: 0.25, 12: 0.15, 20: 0.1}
    assert set(counts) == set(expected)
    for distance, share in expected.items():
        deviation = (share * (1 - share) / 40_000) ** 0.5
        # At the start, for some dozens of lookups, far ones are not possible yet.
        assert abs(counts[distance] / 40_000 - share) < 5 * deviation + 0.002


def test_without_new_ids_the_shares_are_those_of_repetitions():
    profile = StackDistances(
        np.arange(50), np.array([0, 1, 4]), np.array([0.5, 0.8, 1.0])
    )
    trace = draw_trace(profile, 20_000, np.random.RandomState(1), padding=True)
    counts = _counts(trace)
    assert counts[0] == 4 == len(set(trace.tolist()))
    assert counts[1] / 20_000 == pytest.approx(0.3 / 0.5, abs=0.02)
    assert counts[4] / 20_000 == pytest.approx(0.2 / 0.5, abs=0.02)


def test_a_trace_begins_with_the_ids_of_the_profile_in_their_order():
    profile = profile_trace(_zipf_trace(5000))
    trace = draw_trace(profile, 3000, np.random.RandomState(2))
    first_seen = list(dict.fromkeys(trace.tolist()))
    assert first_seen == profile.lines.tolist()[: len(first_seen)]
    # No distance exceeds what has been seen.
    seen, most = 0, 0
    for distance in _distances(trace):
        most = max(most, distance - seen)
        seen += distance == 0
    assert most <= 0


def test_a_trace_that_never_repeats_is_the_list_of_ids():
    profile = profile_trace([5, 3, 9])
    assert profile.distances.tolist() == [0]
    trace = draw_trace(profile, 7, np.random.RandomState(0))
    assert trace.tolist() == [5, 3, 9, 5, 3, 9, 5]
    assert draw_trace(profile, 0, np.random.RandomState(0)).shape == (0,)


@pytest.mark.parametrize("binary", [False, True])
def test_traces_are_read_as_written(tmp_path, binary):
    trace = [3, 0, 2**62, 3]
    write_trace(tmp_path / "trace", trace, binary=binary)
    read = read_trace(tmp_path / "trace", binary=binary)
    assert read.dtype == np.int64 and read.tolist() == trace


def test_text_of_a_trace(tmp_path):
    write_trace(tmp_path / "trace", [1, 2, 3])
    assert (tmp_path / "trace").read_text() == "1, 2, 3\n"
    (tmp_path / "trace").write_text("1,2 3\n\n4\n")
    assert read_trace(tmp_path / "trace").tolist() == [1, 2, 3, 4]


def test_profiles_are_read_as_written(tmp_path):
    path = tmp_path / "dist_emb_0.log"
    profile = profile_trace(_zipf_trace(300))
    write_profile(path, profile)
    read = read_profile(path)
    for name in ("lines", "distances", "cumulative"):
        np.testing.assert_array_equal(getattr(read, name), getattr(profile, name))
    path.write_text("1, 2\n0, 1\n0.5, 1.0\n")
    assert read_profile(path).cumulative.tolist() == [0.5, 1.0]


def test_the_file_of_a_table():
    name = stack_distances.profile_path
    assert name("./input/dist_emb_j.log", 12) == "./input/dist_emb_12.log"
    assert name("/jan/j/journal-j.txt", 3) == "/jan/j/journal-3.txt"
    assert name("shared.log", 3) == "shared.log"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1, 2\n0, 1\n", "a profile has 3 lines .* found 2"),
        ("1, x\n0\n1.0\n", "dist, line 1: invalid literal"),
        ("1, 2\n0, 1.5\n1.0\n", "dist, line 2: invalid literal"),
        ("1, 2\n0, 1\n0.5, y\n", "dist, line 3: could not convert"),
        ("1, -2\n0\n1.0\n", "dist, line 1: -2 is negative"),
        ("\n0\n1.0\n", "lines must be one or more different ids"),
        ("1, 1\n0\n1.0\n", "lines must be one or more different ids"),
        ("1, 2\n1, 2\n0.5, 1.0\n", "distances must increase from 0"),
        ("1, 2\n0, 2, 1\n0.5, 0.6, 1.0\n", "distances must increase from 0"),
        ("1, 2\n0, 3\n0.5, 1.0\n", "must not exceed the 2 different ids, got 3"),
        ("1, 2\n0, 1\n1.0\n", "one share for each of 2 distances, got 1"),
        ("1, 2\n0, 1\n0.5, 0.4\n", "cumulative must increase to 1"),
        ("1, 2\n0, 1\n0.5, nan\n", "cumulative must increase to 1"),
        ("1, 2\n0, 1\n0.0, 1.0\n", "must give distance 0 a share"),
    ],
)
def test_files_that_are_no_profile(tmp_path, text, message):
    path = tmp_path / "dist"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_profile(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_trace(tmp_path):
    path = tmp_path / "trace"
    path.write_text("1, 2\n3, four\n")
    with pytest.raises(ValueError, match="trace, line 2: invalid literal.*'four'"):
        read_trace(path)
    with pytest.raises(ValueError, match="13 bytes are not whole uint64 numbers"):
        read_trace(path, binary=True)
    path.write_bytes(np.array([2**63], np.uint64).tobytes())
    with pytest.raises(ValueError, match="is outside int64"):
        read_trace(path, binary=True)
    with pytest.raises(ValueError, match="the trace is empty"):
        profile_trace([])
    with pytest.raises(ValueError, match="different ids >= 0"):
        profile_trace([1, -1])
