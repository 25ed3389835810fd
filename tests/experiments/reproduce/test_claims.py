import importlib
import pathlib
import subprocess
import sys

import pytest

from experiments.reproduce.claims import CLAIMS, Options, find_claim, reproduce

ROOT = pathlib.Path(__file__).resolve().parents[3]


_AVERAGING = ("AdamW", "AdamW + EMA", "Schedule-Free", "DiLoCo", "GPA")
_EMBEDDINGS = ("full", "hash, c = 4", "QR mult, c = 16", "QR add", "QR concat", "path")
LABELS = {
    "gns_llama": ("Signum", "Muon", "AdamW", "Seesaw", "replayed path"),
    "gpa_llama": _AVERAGING,
    "gpa_teacher_student": _AVERAGING,
    "pblbfgs_convex": ("PB-MB, unbiased test", "optax.lbfgs", "SVRG", "digits"),
    "pblbfgs_network": ("PB-MB", "PB-FO", "Adam, tuned", "SGD, tuned"),
    "qr_one_feature": _EMBEDDINGS,
    "qr_planted": (*_EMBEDDINGS, "CRT mult, k = 2", "features", "threshold 0"),
    "qr_stdlib": (*_EMBEDDINGS, "mixed radix mult, k = 3", "threshold 10,000"),
    "shampoo_llama": ("AdamW", "Muon", "Shampoo", "SOAP", "KL-Shampoo", "GPA + SOAP"),
}


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_every_claim_has_a_plan_at_every_scale(name, capsys):
    for scale in CLAIMS[name].scales:
        reproduce(Options(name, scale=scale, dry_run=True))
        plan = capsys.readouterr().out
        for label in LABELS[name]:
            assert label in plan


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_every_claim_can_be_imported_and_reproduced(name):
    assert callable(importlib.import_module(CLAIMS[name].module).reproduce)


def test_an_unknown_claim_lists_what_exists():
    with pytest.raises(ValueError, match="no claim named 'nope'; there are:") as error:
        find_claim("nope")
    assert all(name in str(error.value) for name in CLAIMS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": "tpu"}, "--scale of gpa_llama must be one of cpu, gpu, got 'tpu'"),
        ({"parallel": -1}, "--parallel must be >= 0, got -1"),
        ({"extensions": -1}, "--extensions must be >= 0"),
        ({"seeds": (0, 1)}, "tuning seeds must not be among the reporting seeds"),
        ({"overrides": ("steps",)}, "--override must be field=value, got 'steps'"),
    ],
)
def test_bad_requests_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Options("gpa_llama", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tuning_seeds": (9,)}, "--tuning_seeds of qr_planted must be left out"),
        ({"seeds": (1, 1)}, r"--seeds must differ and be >= 0, got \[1, 1\]"),
        ({"seeds": (-1, 1)}, r"--seeds must differ and be >= 0, got \[-1, 1\]"),
    ],
)
def test_a_claim_that_tunes_nothing_takes_reporting_seeds_only(fields, message):
    protocol = Options("qr_planted")
    assert (protocol.seeds, protocol.tuning_seeds) == ((0, 1, 2), ())
    assert protocol.result_name == Options("qr_planted", seeds=(0, 1, 2)).result_name
    assert Options("qr_planted", seeds=(0, 1)).result_name == "qr_planted_seeds_0_1"
    with pytest.raises(ValueError, match=message):
        Options("qr_planted", **fields)


def test_a_variation_never_replaces_the_protocols_result():
    protocol = Options("gpa_llama")
    assert protocol.result_name == protocol.run_name == "gpa_llama_cpu"
    # Without a word about tuning seeds a claim takes its own.
    assert Options("shampoo_llama").tuning_seeds == (0, 6)
    assert Options("shampoo_llama").result_name == "shampoo_llama_cpu"
    one = Options("shampoo_llama", tuning_seeds=(0,))
    assert one.result_name == "shampoo_llama_cpu_tuning_seeds_0"
    variations = [
        Options("gpa_llama", steps=10),
        Options("gpa_llama", seeds=(1, 2, 3)),
        Options("gpa_llama", tuning_seeds=(0, 11)),
        Options("gpa_llama", extensions=0),
        Options("gpa_llama", overrides=("batch.size=8",)),
        Options("gpa_llama", scale="gpu"),
    ]
    names = {options.result_name for options in variations}
    assert len(names) == len(variations) and "gpa_llama_cpu" not in names
    # The runs themselves are shared: what is finished is never run again.
    assert Options("gpa_llama", seeds=(1, 2)).run_name == protocol.run_name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "error: give one claim: gns_llama, gpa_llama, gpa_teacher_student, "
            "pblbfgs_convex, pblbfgs_network, qr_one_feature, qr_planted, qr_stdlib, "
            "shampoo_llama",
        ),
        (["nope"], "error: no claim named 'nope'"),
        (["gpa_llama", "--seeds=1,x"], "error: --seeds must be a comma-separated"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(arguments, message):
    result = subprocess.run(
        [sys.executable, "-m", "experiments.reproduce", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
