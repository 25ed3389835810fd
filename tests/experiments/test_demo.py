"""The demonstration end to end, on the smallest preset."""

import csv
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _demo(folder):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.demo",
            "--preset=llama_pico_stdlib",
            "--steps=30",
            f"--output_dir={folder}",
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_demo_prints_a_table_and_writes_everything(tmp_path):
    first = _demo(tmp_path)
    assert first.returncode == 0, first.stderr
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["optimizer"] for row in rows] == ["adamw", "gpa_adamw"]
    copies = [float(row["optimizer_state_in_model_copies"]) for row in rows]
    assert [round(count, 2) for count in copies] == [2.0, 3.0]
    # AdamW reaches its own final loss at its last step or before.
    assert 0 < int(rows[0]["steps_to_adamw_final_loss"]) <= 30
    assert all(float(row["final_validation_loss"]) < 6 for row in rows)
    for name in ("table.md", "loss.png", "sample.txt"):
        assert (tmp_path / name).stat().st_size > 20
        assert str(tmp_path / name) in first.stdout or name == "table.md"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    again = _demo(tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already trained") == 2
    assert (
        first.stdout[first.stdout.index("| optimizer") :]
        == (again.stdout[again.stdout.index("| optimizer") :])
    )
