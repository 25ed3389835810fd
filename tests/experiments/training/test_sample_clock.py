"""What is due, by samples."""

from experiments.training.sample_clock import SampleClock

CLOCK = SampleClock(unit=8, total=800)


def test_with_a_constant_batch_units_are_steps():
    due = [step for step in range(1, 13) if CLOCK.is_due(3, 8 * (step - 1), 8 * step)]
    assert due == [3, 6, 9, 12]


def test_a_large_step_passes_several_multiples_once():
    assert CLOCK.is_due(3, 0, 8 * 10)
    assert not CLOCK.is_due(3, 8 * 10, 8 * 11)
    assert CLOCK.is_due(3, 8 * 11, 8 * 12)


def test_zero_is_never_due():
    assert not CLOCK.is_due(0, 0, 800)


def test_units_are_whole():
    assert [CLOCK.units(samples) for samples in (0, 7, 8, 23)] == [0, 0, 1, 2]
