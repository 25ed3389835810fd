import math

import pytest

from optim_jax.quasi_newton.progressive_batching.options import (
    Options,
    default_batch_size,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_size": 0}, "memory_size must be an integer >= 1, got 0"),
        ({"memory_size": 2.5}, "memory_size must be an integer >= 1, got 2.5"),
        ({"theta": 0.0}, "theta must be > 0, got 0.0"),
        ({"theta": math.nan}, "theta must be > 0, got nan"),
        ({"c1": 0.0}, r"c1 must be in \(0, 1\), got 0.0"),
        ({"c1": 1.0}, r"c1 must be in \(0, 1\), got 1.0"),
        ({"c2": 1e-4}, r"c2 must be in \(c1, 1\) = \(0.0001, 1\), got 0.0001"),
        ({"c2": 1.0}, "c2 must be in"),
        ({"c1": 0.5, "c2": 0.4}, r"\(c1, 1\) = \(0.5, 1\), got 0.4"),
        ({"factor": 0.0}, r"factor must be in \(0, 1\), got 0.0"),
        ({"factor": 1.0}, r"factor must be in \(0, 1\), got 1.0"),
        ({"overlap_ratio": 0.0}, r"overlap_ratio must be in \(0, 0.5\], got 0.0"),
        ({"overlap_ratio": 0.51}, r"overlap_ratio must be in \(0, 0.5\], got 0.51"),
        ({"batch_size": 1}, "batch_size must be an integer >= 2, got 1"),
        ({"batch_size": True}, "batch_size must be an integer >= 2, got True"),
        ({"max_batch": 1}, "max_batch must be an integer >= 2, got 1"),
        ({"variance_samples": 1}, "variance_samples must be an integer >= 2, got 1"),
        ({"groups": 1}, "groups must be an integer >= 2, got 1"),
        ({"eps": 0.0}, "eps must be > 0, got 0.0"),
        ({"growth_cap": 1.0}, "growth_cap must be > 1, got 1.0"),
        ({"test_every": 0}, "test_every must be an integer >= 1, got 0"),
        ({"chunk_size": 0}, "chunk_size must be an integer >= 1, got 0"),
        ({"max_line_search": 0}, "max_line_search must be an integer >= 1, got 0"),
        ({"max_iterations": 0}, "max_iterations must be an integer >= 1, got 0"),
        ({"max_epochs": 0.0}, "max_epochs must be > 0, got 0.0"),
        ({"max_time": 0.0}, "max_time must be > 0, got 0.0"),
        ({"tol": -1.0}, "tol must be finite and >= 0, got -1.0"),
        ({"l2": math.inf}, "l2 must be finite and >= 0, got inf"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


@pytest.mark.parametrize(
    "name",
    [
        "test",
        "overlap",
        "line_search",
        "init_step",
        "variance",
        "first_step",
        "curvature",
        "form",
        "evaluation",
    ],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}.*'no'"):
        Options(**{name: "no"})


def test_the_ends_of_half_open_ranges_are_allowed():
    Options(overlap_ratio=0.5, growth_cap=math.inf, tol=0.0, batch_size=2, groups=2)


@pytest.mark.parametrize(
    ("population", "size"),
    [
        (33, 32),
        (256, 32),
        (362, 32),
        (363, 64),
        (569, 64),
        (1797, 256),
        (4096, 512),
        (10**7, 512),
    ],
)
def test_default_batch_is_a_power_of_two_near_an_eighth(population, size):
    assert default_batch_size(population) == size


def test_sizes_are_filled_in():
    sized = Options().sized(1000)
    assert (sized.batch_size, sized.max_batch) == (128, 1000)
    assert Options().sized(20).batch_size == 20
    assert Options(max_batch=5000).sized(1000).max_batch == 1000


def test_a_small_largest_batch_bounds_the_default_one():
    sized = Options(max_batch=100).sized(10_000)
    assert (sized.batch_size, sized.max_batch) == (100, 100)


def test_a_batch_above_the_data_is_clipped_with_a_warning():
    with pytest.warns(UserWarning, match="batch_size 300 is more than the 200 samples"):
        assert Options(batch_size=300).sized(200).batch_size == 200


@pytest.mark.parametrize(
    ("options", "population", "message"),
    [
        ({}, 1, "at least 2 samples, got 1"),
        ({}, 0, "at least 2 samples, got 0"),
        ({"groups": 9, "batch_size": 8}, 100, "groups must be <= batch_size, got 9"),
        ({"batch_size": 64, "max_batch": 32}, 100, "max_batch must be >= batch_size"),
        ({"max_iterations": 5}, None, "a stream has no size: give max_batch"),
        ({"max_batch": 64}, None, "give max_iterations or max_time"),
        (
            {"max_batch": 64, "max_iterations": 5, "finite_population": True},
            None,
            "finite_population needs data of a known size",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, population, message):
    with pytest.raises(ValueError, match=message):
        Options(**options).sized(population)


def test_more_groups_than_samples_do_not_matter_where_no_groups_are_used():
    options = Options(groups=8, batch_size=4, test="ipqn", variance="exact")
    assert options.sized(100).groups == 8


def test_a_stream_begins_with_at_most_its_largest_batch():
    sized = Options(max_batch=64, max_iterations=3).sized(None)
    assert (sized.batch_size, sized.max_batch) == (64, 64)
    assert Options(max_batch=4096, max_time=1.0).sized(None).batch_size == 512


@pytest.mark.parametrize(
    ("options", "groups", "variance"),
    [
        ({}, True, True),
        ({"test": "ipqn", "init_step": "unit"}, False, False),
        ({"test": "ipqn"}, True, True),
        ({"test": "norm", "init_step": "unit"}, True, True),
        ({"test": "norm", "variance": "exact"}, False, True),
        ({"init_step": "projected"}, True, False),
        ({"test": "none", "variance": "hutchinson"}, False, True),
    ],
)
def test_what_the_options_need(options, groups, variance):
    options = Options(**options)
    assert options.uses_groups == groups
    assert options.uses_gradient_variance == variance
