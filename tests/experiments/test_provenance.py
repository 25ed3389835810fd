import json

from experiments import provenance
from experiments.provenance import package_versions


def test_provenance_is_json_and_names_no_host():
    record = provenance.provenance()
    assert set(record) >= {"date", "commit", "versions", "machine"}
    assert json.loads(json.dumps(record)) == record
    assert record["machine"]["devices"].startswith("8 x")
    assert "hostname" not in json.dumps(record)


def test_versions_name_what_decides_a_trajectory():
    assert {"python", "jax", "jaxlib", "optax", "flax"} <= set(package_versions())


def test_outside_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.git_commit() is None
