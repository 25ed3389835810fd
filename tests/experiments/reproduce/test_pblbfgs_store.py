import math

from experiments.reproduce.pblbfgs_store import RunStore

SETTINGS = {"options": {"growth_cap": math.inf}}


class Making:
    """Stands for runs: remembers which seeds it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, seed):
        self.asked.append(seed)
        return {"epochs": [1.5, None], "gap": math.inf, "seed": seed}


def test_only_missing_seeds_are_run_and_kept_one_by_one(tmp_path):
    store, make = RunStore(tmp_path, {"claim": "x"}), Making()
    assert store.lacks("digits", "arm", SETTINGS, (1,))
    first = store.complete("digits", "arm", SETTINGS, (2, 1), make)
    again = store.complete("digits", "arm", SETTINGS, (1, 3, 2), make)
    assert make.asked == [2, 1, 3]
    assert [run["seed"] for run in again] == [1, 3, 2] and again[2] == first[0]
    assert first[0] == {"epochs": [1.5, None], "gap": "inf", "seed": 2}
    # Another process finds the same.
    fresh = RunStore(tmp_path, {"claim": "x"})
    assert fresh.complete("digits", "arm", SETTINGS, (3, 1), None) == [
        again[1],
        again[0],
    ]
    assert not fresh.lacks("digits", "arm", SETTINGS, (1, 2, 3))


def test_an_interrupted_command_keeps_what_was_finished(tmp_path):
    store, make = RunStore(tmp_path, {}), Making()

    def interrupted(seed):
        if seed == 2:
            raise KeyboardInterrupt
        return make(seed)

    try:
        store.complete("digits", "arm", SETTINGS, (0, 1, 2), interrupted)
    except KeyboardInterrupt:
        pass
    store.complete("digits", "arm", SETTINGS, (0, 1, 2), make)
    assert make.asked == [0, 1, 2]


def test_whatever_decides_a_run_decides_its_file(tmp_path):
    store = RunStore(tmp_path, {"epochs": 30})
    store.complete("digits", "arm", SETTINGS, (0,), Making())
    others = [
        (RunStore(tmp_path, {"epochs": 20}), "digits", "arm", SETTINGS),
        (store, "synthetic", "arm", SETTINGS),
        (store, "digits", "other", SETTINGS),
        (store, "digits", "arm", {"options": {"growth_cap": 2.0}}),
    ]
    for other, *key in others:
        assert other.read(*key) == {}
    assert not RunStore(tmp_path, {"epochs": 30}).lacks("digits", "arm", SETTINGS, [0])
