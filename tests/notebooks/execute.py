"""Makes a notebook from its percent script and runs it.

    python tests/notebooks/execute.py colabs/gpa.py

writes `colabs/gpa.ipynb` with its figures. The script is the source; the notebook is
generated, and the tests compare the two cell by cell.
"""

import os
import pathlib
import sys

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[2]


def read_script(script: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook of a percent script, without outputs and without chance in it."""
    notebook = jupytext.read(script, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {}
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    return notebook


def execute(
    notebook: nbformat.NotebookNode, folder: pathlib.Path, fast: bool, timeout: int
) -> None:
    """Runs all cells in `folder`; outputs are kept in the notebook.

    Raises:
      nbclient.exceptions.CellExecutionError: when a cell fails.
    """
    environment = {
        **os.environ,
        "FAST": "1" if fast else "0",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment.pop("MPLBACKEND", None)  # or the figures would not come back
    client = NotebookClient(
        notebook,
        timeout=timeout,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    notebook.metadata["language_info"] = {"name": "python"}  # no interpreter's version


def main(arguments: list[str]) -> None:
    """Executes every script named and writes the notebook beside it."""
    for argument in arguments:
        script = pathlib.Path(argument)
        notebook = read_script(script)
        execute(notebook, script.parent, fast=False, timeout=600)
        target = script.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        print(f"{target}: {target.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
