import json
import math

from experiments.reproduce.pblbfgs_arms import (
    CONVEX_ARMS,
    DEFAULTS,
    GAPS,
    PB_FO,
    PB_MB,
    PROBLEMS,
    PROTOTYPE_MEDIANS,
)
from experiments.reproduce.report import encode
from optim_jax.quasi_newton.progressive_batching.options import Options

ARMS = {arm.name: arm for arm in CONVEX_ARMS}


def test_options_are_the_solvers():
    for arm in CONVEX_ARMS:
        given = {**arm.options}
        if given.get("batch_size") == "N":
            given["batch_size"] = 569
        Options(**given).sized(569)
        json.dumps(encode(arm.settings), allow_nan=False)


def test_tests_and_overlaps_differ_in_nothing_else():
    changed = {"overlap", "test", "growth_cap"}
    rest = [
        {key: value for key, value in ARMS[name].options.items() if key not in changed}
        for name in (PB_MB, PB_FO, "pb_mb_paper", "pb_fo_paper")
    ]
    assert rest.count(rest[0]) == 4 and rest[0]["batch_size"] == 64
    assert ARMS["pb_fo_paper"].options["growth_cap"] == math.inf
    assert ARMS[PB_MB].options["growth_cap"] == 2.0
    assert ARMS[DEFAULTS].options == {"batch_size": 64}


def test_only_the_steps_of_sg_and_svrg_are_tuned():
    assert {arm.kind for arm in CONVEX_ARMS if arm.tuning_epochs} == {"sgd", "svrg"}
    assert [arm.name for arm in CONVEX_ARMS if not arm.is_random] == [
        "full_batch",
        "optax_lbfgs",
    ]


def test_every_problem_has_a_figure_for_every_gap():
    assert set(PROTOTYPE_MEDIANS) == set(PROBLEMS)
    for medians in PROTOTYPE_MEDIANS.values():
        assert len(medians) == len(GAPS) and list(medians) == sorted(medians)
