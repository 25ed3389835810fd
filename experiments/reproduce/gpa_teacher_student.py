"""GPA against its peers on teacher-student regression (arXiv 2512.17131).

Illustrates the mechanism on a problem that runs in minutes: a slow average of the
updates makes larger learning rates stable. It does not stand in for the paper's
language-model results. Every arm is tuned over the same number of configurations.
"""

import math
from collections.abc import Sequence
from typing import Any

from experiments.reproduce.claims import Options
from experiments.reproduce.curves import mean_and_standard_error
from experiments.reproduce.provenance import command_line, provenance
from experiments.reproduce.report import (
    Document,
    arm_named,
    compare_arms,
    describe,
    losses_of,
    markdown,
    number,
    plus_minus,
    write_report,
)
from experiments.reproduce.teacher_student import (
    Curves,
    Problem,
    run_grid,
)
from experiments.reproduce.teacher_student_arms import (
    ARMS,
    B2,
    FIXED_GPA,
    method_of,
)
from experiments.reproduce.tuning import (
    Arm,
    Losses,
    Trial,
    best_trial,
    edge_extension,
    is_interior,
    line_of,
    tune,
)

FACTOR = math.sqrt(2.0)
LEARNING_RATES = tuple(0.008 * FACTOR**k for k in range(9))  # 0.008 ... 0.128


class Evaluator:
    """Runs trials on the tuning seeds, all learning rates of a variant at once."""

    def __init__(self, problem: Problem, arms: Sequence[Arm], seeds: Sequence[int]):
        self._problem = problem
        self._arms = {arm.name: arm for arm in arms}
        self._seeds = list(seeds)

    def __call__(self, trials: Sequence[Trial]) -> dict[Trial, float]:
        """Final losses, averaged over the tuning seeds."""
        groups: dict[tuple[str, int], list[Trial]] = {}
        for trial in trials:
            groups.setdefault((trial.arm, trial.variant), []).append(trial)
        losses = {}
        for (arm, variant), group in groups.items():
            settings = self._arms[arm].variants[variant]
            rates = [trial.learning_rate for trial in group]
            curves = run_grid(
                self._problem, method_of(arm, settings), rates, self._seeds
            )
            finals = curves.loss[:, :, -1].mean(axis=1)
            losses |= dict(zip(group, map(float, finals), strict=True))
            print(
                f"tuned {arm} {describe(settings)}: {len(rates)} learning rates, best "
                f"{min(finals):.4f}",
                flush=True,
            )
        return losses


def _report_arm(
    problem: Problem, arm: Arm, losses: Losses, seeds: Sequence[int], initial: int
) -> tuple[dict[str, Any], Curves]:
    """The arm's entry, and its curves at the best learning rate's neighbours too."""
    best = best_trial(losses)
    settings = arm.variants[best.variant]
    rates = [best.learning_rate * FACTOR**k for k in (-1, 0, 1)]
    curves = run_grid(problem, method_of(arm.name, settings), rates, list(seeds))
    entry = {
        "name": arm.name,
        "label": arm.label,
        "best": {**settings, "learning_rate": best.learning_rate},
        "interior": is_interior(losses, FACTOR),
        "extensions": len(losses) - initial,
        "trials": [
            {
                "settings": arm.variants[trial.variant],
                "learning_rate": trial.learning_rate,
                "loss": loss,
            }
            for trial, loss in sorted(losses.items())
        ],
        "loss": curves.loss[1],
        "loss_y": curves.loss_y[1],
        "tokens_per_s": [],
    }
    return entry, curves


def _fixed_gpa(
    problem: Problem, arm: Arm, losses: Losses, seeds: Sequence[int]
) -> dict[str, Any]:
    """GPA at the setting named beforehand, at that setting's own best rate."""
    variant = arm.variants.index(FIXED_GPA)
    line = line_of(losses, variant)
    rate = min(line, key=lambda key: (line[key], key))
    curves = run_grid(problem, method_of(arm.name, FIXED_GPA), [rate], list(seeds))
    return {
        "name": "gpa_fixed",
        "part_of": arm.name,
        "label": "GPA, H = 16, mu_y = 0.7",
        "best": {**FIXED_GPA, "learning_rate": rate},
        "interior": edge_extension(line, FACTOR)[0] is None,
        "extensions": 0,
        "trials": [
            {"settings": FIXED_GPA, "learning_rate": key, "loss": loss}
            for key, loss in sorted(line.items())
        ],
        "loss": curves.loss[0],
        "loss_y": curves.loss_y[0],
        "tokens_per_s": [],
    }


def acceptance(document: Document) -> list[dict[str, Any]]:
    """The figures the port is accepted on, each with what was measured."""
    fixed = compare_arms(document, "gpa_fixed", "adamw")
    ema = compare_arms(document, "adamw_ema", "adamw")
    # With mu_y = 0 the control's training parameters are AdamW's own iterates.
    control = arm_named(document, "adamw_ema")
    averaged = (
        losses_of(control)[:, -1].mean() / losses_of(control, "loss_y")[:, -1].mean()
    )
    share = document["total_steps"] / 3000
    limit = 2300 * share
    return [
        {
            "text": f"GPA (H = 16, mu_y = 0.7) reaches AdamW's final loss within "
            f"{limit:.0f} steps (mean curve)",
            "measured": number(fixed.steps_of_mean, 0)
            if math.isfinite(fixed.steps_of_mean)
            else "never",
            "met": bool(fixed.steps_of_mean <= limit),
        },
        {
            "text": "GPA (H = 16, mu_y = 0.7) ends at or below 0.80 of AdamW's final "
            "loss",
            "measured": number(fixed.ratio, 3),
            "met": bool(fixed.ratio <= 0.80),
        },
        {
            "text": "AdamW + EMA gains less than 2 % on AdamW's final loss, each at "
            "its own tuned configuration",
            "measured": f"{100 * (1 - ema.ratio):.1f} %",
            "met": bool(1 - ema.ratio < 0.02),
        },
        {
            "text": "averaging alone: AdamW + EMA gains less than 2 % on the very "
            "iterates it averages (same b1, same learning rate)",
            "measured": f"{100 * (1 - averaged):.1f} %",
            "met": bool(1 - averaged < 0.02),
        },
    ]


def _sensitivity(arms: Sequence[dict[str, Any]], curves: Sequence[Curves]) -> Document:
    rows = [
        [arm["label"]]
        + [
            plus_minus(mean_and_standard_error(rate_curves[:, -1]))
            for rate_curves in arm_curves.loss
        ]
        for arm, arm_curves in zip(arms, curves, strict=True)
    ]
    return {
        "header": ["final loss on the reporting seeds", "lr / √2", "lr", "lr × √2"],
        "rows": rows,
        "text": "A tuning seed is one draw, so the chosen learning rate is itself "
        "noisy: the table shows what its neighbours would have given on the reporting "
        "seeds. Nothing was chosen from it.",
    }


def _protocol(problem: Problem, options: Options, budget: int) -> list[str]:
    return [
        "Teacher-student regression "
        + "-".join(map(str, problem.widths))
        + f", tanh; fresh batches of {problem.batch_size}; {problem.steps} steps; "
        f"{problem.warmup} steps of warm-up, then cosine to zero (Schedule-Free: "
        f"constant); Adam's b2 = {B2}, no decay, no clipping; validated at x every "
        f"{problem.check_every} steps on {problem.validation_size} noiseless points.",
        f"Every arm is tuned over {budget} configurations: four variants times "
        f"{len(LEARNING_RATES)} learning rates a factor √2 apart, and up to "
        f"{options.extensions} learning rates more while the best one lies at an edge; "
        "arms that need fewer get theirs beside the nearer edge, so that all end with "
        "the same number.",
        f"Tuned on seed {', '.join(map(str, options.tuning_seeds))}, reported on other "
        "seeds. Within a seed all configurations share the student's start and every "
        "batch, which takes the common part of the noise out of the comparison.",
    ]


def build_document(problem: Problem, options: Options) -> Document:
    """Tunes all arms, runs the chosen ones on the reporting seeds."""
    evaluate = Evaluator(problem, ARMS, options.tuning_seeds)
    losses = tune(
        ARMS,
        LEARNING_RATES,
        evaluate,
        factor=FACTOR,
        extensions=options.extensions,
        equalise=True,
    )
    initial = len(LEARNING_RATES) * len(ARMS[0].variants)
    reported = [
        _report_arm(problem, arm, losses[arm.name], options.seeds, initial)
        for arm in ARMS
    ]
    arms = [entry for entry, _ in reported]
    sensitivity = _sensitivity(arms, [curves for _, curves in reported])
    gpa = next(arm for arm in ARMS if arm.name == "gpa")
    arms.append(_fixed_gpa(problem, gpa, losses["gpa"], options.seeds))
    document = {
        "claim": options.name,
        "title": "Teacher-student regression: GPA and its peers",
        "provenance": provenance(command_line()),
        "protocol": _protocol(problem, options, len(losses["gpa"])),
        "total_steps": problem.steps,
        "checks": list(problem.checks),
        "baseline": "adamw",
        "comparisons": [{"subject": "gpa", "against": ["adamw", "adamw_ema"]}],
        "loss_name": "validation loss (mean squared error)",
        "seeds": list(options.seeds),
        "tuning_seeds": list(options.tuning_seeds),
        "arms": arms,
        "sections": [sensitivity],
    }
    document["acceptance"] = acceptance(document)
    return document


def problem_of(options: Options) -> Problem:
    """The problem, shortened when the command line asks for fewer steps."""
    if not options.steps:
        return Problem()
    return Problem(
        steps=options.steps,
        warmup=options.steps // 20,
        check_every=math.gcd(options.steps, max(1, options.steps // 30)),
    )


def reproduce(options: Options) -> None:
    """Runs the experiment and writes its table, figure and JSON."""
    problem = problem_of(options)
    if options.dry_run:
        for arm in ARMS:
            print(f"{arm.label}: {', '.join(describe(v) for v in arm.variants)}")
        print("\n".join(_protocol(problem, options, 0)))
        return
    document = build_document(problem, options)
    paths = write_report(document, options.results_dir, options.result_name)
    print(markdown(document))
    print("\n".join(f"written: {path}" for path in paths))
