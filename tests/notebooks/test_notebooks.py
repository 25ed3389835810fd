"""Every notebook agrees with its script, carries its figures, and runs."""

import importlib.util
import pathlib

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "colabs").glob("*.py"))
RUN_IN_MAKE_TEST = {"gpa"}
MAX_BYTES = 600_000

_spec = importlib.util.spec_from_file_location(
    "execute_notebook", pathlib.Path(__file__).with_name("execute.py")
)
execute_notebook = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(execute_notebook)

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
each_script_to_run = pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            script,
            id=script.stem,
            marks=[
                pytest.mark.notebook,
                *([] if script.stem in RUN_IN_MAKE_TEST else [pytest.mark.slow]),
            ],
        )
        for script in SCRIPTS
    ],
)


def sources(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def stored(script: pathlib.Path) -> nbformat.NotebookNode:
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def images(notebook: nbformat.NotebookNode) -> int:
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def test_there_are_notebooks_and_none_without_a_script():
    assert SCRIPTS
    notebooks = sorted((ROOT / "colabs").glob("*.ipynb"))
    assert notebooks == [script.with_suffix(".ipynb") for script in SCRIPTS]


@each_script
def test_notebook_agrees_with_its_script(script):
    expected = sources(execute_notebook.read_script(script))
    hint = f"run: python tests/notebooks/execute.py colabs/{script.name}"
    assert sources(stored(script)) == expected, hint


@each_script
def test_notebook_is_valid_and_carries_its_figures(script):
    notebook = stored(script)
    nbformat.validate(notebook)
    assert images(notebook) > 0
    assert script.with_suffix(".ipynb").stat().st_size < MAX_BYTES
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text


@each_script
def test_first_code_cell_installs_on_colab_only(script):
    notebook = execute_notebook.read_script(script)
    first, *others = [c.source for c in notebook.cells if c.cell_type == "code"]
    assert "google.colab" in first
    assert "pip" in first
    assert not any("pip" in source for source in others)


@each_script_to_run
def test_notebook_runs(script, tmp_path):
    notebook = execute_notebook.read_script(script)
    execute_notebook.execute(notebook, tmp_path, fast=True, timeout=300)
    assert images(notebook) == images(stored(script))
    assert list(tmp_path.iterdir()) == []  # a notebook leaves nothing behind


def test_failing_cell_fails(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("assert 1 == 2, 'as it should'")]
    )
    with pytest.raises(Exception, match="as it should"):
        execute_notebook.execute(notebook, tmp_path, fast=True, timeout=60)
