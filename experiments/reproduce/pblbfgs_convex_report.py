"""The report on the convex comparison: tables and acceptance, from a document.

A document has the keys `claim`, `title`, `provenance`, `protocol` (sentences), `seeds`,
`many_seeds`, `tuning_seeds`, `gaps`, `problems`, `notes` (sentences) and `acceptance`.
Each problem has `name`, `label`, `num_samples`, `optimum` (F*), `horizons` (steps of SG
that are the best for so many epochs, perhaps none) and `arms`. Each arm has `name`,
`label`, `note` (such as its step, or ""), `runs` (one per seed, or a single one) and
`many` (one per seed of the wider set, or none); see `pblbfgs_measure` for a run.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reproduce.pblbfgs_arms import (
    PB_FO,
    PB_MB,
    PROTOTYPE_MEDIANS,
    SLACK,
)
from experiments.reproduce.pblbfgs_measure import TOL
from experiments.reproduce.report import (
    Document,
    acceptance_text,
    arm_named,
    markdown_rows,
    origin,
)

Problem = Mapping[str, Any]


def to_gap(runs: Sequence[Mapping[str, Any]], name: str, index: int) -> np.ndarray:
    """Epochs, work or seconds to one gap, a number per run; inf: not reached.

    Args:
      runs: of one arm.
      name: `epochs`, `work`, `seconds` or `iterations`.
      index: of the gap.
    """
    found = [run[name][index] for run in runs]
    return np.asarray([math.inf if x is None else float(x) for x in found])


def median_of(values: np.ndarray) -> float:
    """The median; inf where the middle run did not get there."""
    ordered = np.sort(values)
    middle = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return math.inf if math.isinf(middle[1]) else float(np.mean(middle))


def median_and_range(values: np.ndarray, digits: int) -> str:
    """Median (least to largest); a dash and how many got there if half did not."""
    median = median_of(values)
    if math.isinf(median):
        reached = int(np.isfinite(values).sum())
        return f"– ({reached}/{len(values)})" if reached else "–"
    text = f"{median:.{digits}f}"
    if len(values) == 1:
        return text
    high = values.max()
    largest = f"{high:.{digits}f}" if math.isfinite(high) else "∞"
    return f"{text} ({values.min():.{digits}f}–{largest})"


def _milliseconds(runs: Sequence[Mapping[str, Any]], index: int) -> str:
    values = 1e3 * to_gap(runs, "seconds", index)
    median = median_of(values)
    return median_and_range(values, 0 if median >= 100 else 1)


def limit_of(problem: str, index: int) -> float:
    """The most epochs that PB-MB is accepted with."""
    return SLACK * PROTOTYPE_MEDIANS[problem][index]


def acceptance(document: Document) -> list[dict[str, Any]]:
    """Epochs of PB-MB against the prototype's, and the certificates."""
    items = []
    for problem in document["problems"]:
        runs = arm_named(problem, PB_MB)["runs"]
        for index, gap in enumerate(document["gaps"]):
            limit = limit_of(problem["name"], index)
            median = median_of(to_gap(runs, "epochs", index))
            prototype = PROTOTYPE_MEDIANS[problem["name"]][index]
            items.append(
                {
                    "text": f"{problem['label']}, gap {gap:.0e}: PB-MB with the "
                    f"unbiased test in at most {limit:.2f} epochs ({SLACK} times the "
                    f"prototype's {prototype}), median",
                    "measured": f"{median:.2f}",
                    "met": bool(median <= limit),
                }
            )
    items += [_certificates(problem) for problem in document["problems"]]
    return items


def _certificates(problem: Problem) -> dict[str, Any]:
    runs = [run for name in (PB_MB, PB_FO) for run in arm_named(problem, name)["runs"]]
    norms = [float(run["grad_norm"]) for run in runs]
    certified = [
        run["reason"] == "certified" and norm <= TOL
        for run, norm in zip(runs, norms, strict=True)
    ]
    return {
        "text": f"{problem['label']}: every run of PB-MB and PB-FO with the unbiased "
        f"test ends certified, largest entry of the gradient at most {TOL:.0e}",
        "measured": f"{sum(certified)} of {len(runs)}, largest {max(norms):.1e}",
        "met": all(certified),
    }


def _header(document: Document, *more: str) -> list[str]:
    return ["method", *(f"{gap:.0e}" for gap in document["gaps"]), *more]


def _epochs_table(document: Document, problem: Problem) -> str:
    rows = []
    for arm in problem["arms"]:
        runs, gaps = arm["runs"], range(len(document["gaps"]))
        cells = [median_and_range(to_gap(runs, "epochs", i), 1) for i in gaps]
        work = median_and_range(to_gap(runs, "work", gaps[-1]), 1)
        label = arm["label"] + (f" ({arm['note']})" if arm["note"] else "")
        rows.append([label, *cells, work, _ends(runs)])
    header = _header(document, "work to the last gap", "end")
    return markdown_rows(header, rows)


def _ends(runs: Sequence[Mapping[str, Any]]) -> str:
    reasons = [run["reason"] for run in runs]
    counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    if len(counts) == 1:
        return reasons[0]
    return ", ".join(f"{reason} ({count})" for reason, count in counts.items())


def _seconds_table(document: Document, problem: Problem) -> str:
    rows = [
        [
            arm["label"],
            *(_milliseconds(arm["runs"], i) for i in range(len(document["gaps"]))),
        ]
        for arm in problem["arms"]
    ]
    return markdown_rows(_header(document), rows)


def medians_of_five(values: np.ndarray) -> tuple[float, float]:
    """Between which values 80 % of the medians of five runs lie, by drawing again.

    Args:
      values: of many runs, inf for what was not reached.
    """
    drawn = np.random.default_rng(0).choice(values, (2000, 5))
    medians = np.sort(np.sort(drawn, axis=1)[:, 2])
    return float(medians[200]), float(medians[-201])


_FIVE_RUNS = "80 % of the medians of five such runs"


def _five_run_cells(document: Document, arm: Mapping[str, Any]) -> list[str]:
    cells = []
    for index in range(len(document["gaps"])):
        ends = medians_of_five(to_gap(arm["many"], "epochs", index))
        low, high = (f"{end:.1f}" if math.isfinite(end) else "∞" for end in ends)
        cells.append(f"{low}–{high}")
    return cells


def _many_table(document: Document) -> str:
    rows = []
    for problem in document["problems"]:
        for arm in problem["arms"]:
            if not arm["many"]:
                continue
            cells = []
            for index in range(len(document["gaps"])):
                values = to_gap(arm["many"], "epochs", index)
                cell = median_and_range(values, 1)
                if arm["name"] == PB_MB:
                    limit = limit_of(problem["name"], index)
                    met = "met" if median_of(values) <= limit else "NOT met"
                    cell += f"; ≤ {limit:.1f}: {met}"
                cells.append(cell)
            rows.append([problem["label"], arm["label"], *cells])
            if arm["name"] == PB_MB:
                rows.append(["", _FIVE_RUNS, *_five_run_cells(document, arm)])
    header = ["problem", *_header(document)]
    return markdown_rows(header, rows)


def fewest_epochs(document: Document) -> str:
    """Which method needs the fewest epochs to each gap in the median."""
    sentences = []
    for problem in document["problems"]:
        found = []
        for index, gap in enumerate(document["gaps"]):
            medians = [
                median_of(to_gap(arm["runs"], "epochs", index))
                for arm in problem["arms"]
            ]
            best = int(np.argmin(medians))
            label = problem["arms"][best]["label"]
            found.append(f"{gap:.0e} {label} ({medians[best]:.1f})")
        sentences.append(f"{problem['label']}: {', '.join(found)}")
    return f"Fewest epochs in the median, by gap: {'; '.join(sentences)}."


def _horizons_text(problem: Problem) -> list[str]:
    if not problem["horizons"]:
        return []
    found = [
        f"{float(tuning['gap']):.1e} after {float(tuning['epochs']):.0f} (2^"
        f"{math.log2(float(tuning['learning_rate'])):.0f})"
        for tuning in problem["horizons"]
    ]
    return [
        "SG with a step that is the best for just so many epochs, median gap over the "
        f"tuning seeds: {', '.join(found)}."
    ]


def _init_sentence(document: Document) -> str:
    times = [
        1e3 * float(run["init_seconds"])
        for problem in document["problems"]
        for arm in problem["arms"]
        for run in arm["runs"]
        if float(run["init_seconds"]) > 0.0
    ]
    if not times:
        return ""
    return f" `init` takes {np.median(times):.1f} ms in the median of all runs."


def convex_markdown(document: Document) -> str:
    """The whole report: how it was made, acceptance, tables."""
    seeds = ", ".join(map(str, document["seeds"]))
    many = document["many_seeds"]
    parts = [
        f"# {document['title']}",
        origin(document),
        "\n".join(f"* {sentence}" for sentence in document["protocol"]),
        "Acceptance figures:",
        acceptance_text(document),
        *document["notes"],
        f"Medians over seeds {seeds} (least–largest); the methods on all samples have "
        "no randomness and one run. A dash: half of the runs or more did not get "
        "there within the epochs of the method; in brackets how many did.",
    ]
    for problem in document["problems"]:
        parts += [
            f"## {problem['label']}",
            f"F* = {float(problem['optimum']):.15f}. Epochs to a gap F - F* of",
            _epochs_table(document, problem),
            *_horizons_text(problem),
            "Milliseconds to the same gaps:",
            _seconds_table(document, problem),
        ]
    parts += [
        "## More seeds",
        "Medians of five runs, such as the prototype's, are noisy. Epochs over the "
        f"seeds {min(many)} to {max(many)}, with the acceptance figures beside them, "
        "and where the medians of five would lie:",
        _many_table(document),
        "## Time",
        "Milliseconds are those of one run with everything compiled before, on a "
        "machine that may have had other work. For progressive batching that is the "
        "device loop, run without a stop to the iteration that reached the gap; "
        "evaluating F of all samples is no part of it, and neither is `init`, which "
        f"checks the loss and evaluates the first sample.{_init_sentence(document)} SG "
        "and SVRG are timed per epoch, `optax.lbfgs` per iteration, both called from "
        "the host.",
    ]
    return "\n\n".join(parts) + "\n"
