"""The dependency arrows: who may import whom, read from the source by `ast`.

linalg <- trees <- methods <- optim_jax/__init__
optim_jax <- models <- experiments <- colabs, tests
config <- data, sharding <- training <- presets <- reproduce, benchmarks <- binaries
"""

import ast
import configparser
import functools
import importlib.metadata
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

PACKAGES = ("optim_jax", "models", "experiments")
MAY_IMPORT_PACKAGE = {
    "optim_jax": {"optim_jax"},
    "models": {"optim_jax", "models"},
    "experiments": {"optim_jax", "models", "experiments"},
}
NEVER_IMPORTED = {"tests", "colabs"}

# Inside a package an import goes to a lower rank or stays in its own component.
# A component that is not named is a method (optim_jax) or a binary (experiments);
# `__init__` is the package itself.
OPTIM_JAX_RANKS = {
    "typing": 0,
    "linalg": 1,
    "trees": 2,
    "prox": 4,
    "validation": 3,
    "weight_decay": 4,
    "estimators": 6,
    "__init__": 6,
}
METHOD_RANK = 5
EXPERIMENTS_RANKS = {
    "__init__": 0,
    "config_checks": -2,
    "batch_config": -1,
    "config": 0,
    "config_fields": 0,
    "click_config": 0.5,
    "data": 1,
    "sharding": 1,
    "optimizers": 1,
    "provenance": 1,
    "tables": 1,
    "training": 2,
    "flags": 3,
    "reference_flags": 3,
    "presets": 3,
    "curves": 3,
    "logistic": 4,
    "reproduce": 5,
    "benchmarks": 5,
}
BINARY_RANK = 6

OPTIM_JAX_EXTERNAL = {"jax", "optax", "numpy", "chex"}
MODELS_EXTERNAL = {"jax", "flax", "numpy", "optax"}


class Arrow(NamedTuple):
    """One import: `importer` (a module of ours) needs `target` (any module)."""

    importer: str
    target: str
    place: str  # path:line


# The reader.


def module_name(path: pathlib.Path, root: pathlib.Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str, root: pathlib.Path) -> bool:
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def targets_of(
    node: ast.AST, importer: str, is_package: bool, root: pathlib.Path
) -> Iterator[str]:
    """The modules that one statement imports, relative names made absolute."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = importer.split(".")
            keep = len(parts) - node.level + is_package
            base = ".".join([*parts[:keep], *filter(None, [base])])
        for alias in node.names:
            # `from package import module` needs the module, not the package's names.
            inner = f"{base}.{alias.name}"
            ours = base.split(".")[0] in (*PACKAGES, *NEVER_IMPORTED)
            yield inner if ours and is_module(inner, root) else base
    elif isinstance(node, ast.Call) and node.args:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        first = node.args[0]
        if (
            name in ("import_module", "__import__")
            and isinstance(first, ast.Constant)
            and isinstance(first.value, str)
        ):
            yield first.value


def read_arrows(root: pathlib.Path) -> list[Arrow]:
    arrows = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            importer = module_name(path, root)
            is_package = path.name == "__init__.py"
            for node in ast.walk(ast.parse(path.read_text())):
                for target in targets_of(node, importer, is_package, root):
                    place = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
                    arrows.append(Arrow(importer, target, place))
    return arrows


# The rules. Each says what is wrong with an arrow, or returns None.


def component(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def top(module: str) -> str:
    return module.split(".")[0]


def wrong_package(arrow: Arrow) -> str | None:
    allowed = MAY_IMPORT_PACKAGE[top(arrow.importer)]
    target = top(arrow.target)
    if target in NEVER_IMPORTED or target in set(PACKAGES) - allowed:
        return f"{top(arrow.importer)} may not import {target}"
    return None


def wrong_rank(
    arrow: Arrow, package: str, ranks: dict[str, int], other: int
) -> str | None:
    if {top(arrow.importer), top(arrow.target)} != {package}:
        return None
    source, target = component(arrow.importer), component(arrow.target)
    if source == target or ranks.get(target, other) < ranks.get(source, other):
        return None
    return f"{package}: {source} may not import {target}"


def wrong_optim_jax_order(arrow: Arrow) -> str | None:
    return wrong_rank(arrow, "optim_jax", OPTIM_JAX_RANKS, METHOD_RANK)


def wrong_experiments_order(arrow: Arrow) -> str | None:
    return wrong_rank(arrow, "experiments", EXPERIMENTS_RANKS, BINARY_RANK)


@functools.cache
def declared_distributions() -> frozenset[str]:
    """Core and extras of setup.cfg except dev, as normalised names."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    lines = [
        config["options"]["install_requires"],
        *(extras[name] for name in extras if name != "dev"),
    ]
    names = re.findall(r"^\s*([\w.-]+)", "\n".join(lines), flags=re.MULTILINE)
    return frozenset(re.sub(r"[-_.]+", "-", name).lower() for name in names)


@functools.cache
def distributions_by_import() -> dict[str, list[str]]:
    return {
        name: [re.sub(r"[-_.]+", "-", d).lower() for d in found]
        for name, found in importlib.metadata.packages_distributions().items()
    }


def wrong_external(arrow: Arrow) -> str | None:
    package, target = top(arrow.importer), top(arrow.target)
    if target in sys.stdlib_module_names or target in {*PACKAGES, *NEVER_IMPORTED}:
        return None
    if package == "optim_jax":
        allowed = target in OPTIM_JAX_EXTERNAL or (
            component(arrow.importer) == "estimators" and target == "sklearn"
        )
        if component(arrow.importer) == "linalg" and target == "optax":
            return "optim_jax.linalg is maths of arrays and may not import optax"
    elif package == "models":
        allowed = target in MODELS_EXTERNAL
        if target == "optax" and arrow.importer != "models.losses":
            return "in models only losses may import optax"
    else:
        found = distributions_by_import().get(target, [target])
        allowed = target != "flax" and bool(declared_distributions() & set(found))
    return None if allowed else f"{package} may not import {target}"


RULES = (
    wrong_package,
    wrong_optim_jax_order,
    wrong_experiments_order,
    wrong_external,
)


def violations(root: pathlib.Path) -> list[str]:
    return [
        f"{arrow.place}: {arrow.importer} -> {arrow.target}: {complaint}"
        for arrow in read_arrows(root)
        for rule in RULES
        if (complaint := rule(arrow))
    ]


# The repository.


def test_every_arrow_points_the_right_way():
    found = violations(ROOT)
    assert not found, "\n".join(found)


def test_reader_sees_the_repository():
    arrows = {(arrow.importer, top(arrow.target)) for arrow in read_arrows(ROOT)}
    assert ("optim_jax.typing", "optax") in arrows
    assert ("experiments.config", "models") in arrows


# The checker itself, on small trees.


def write_tree(root: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name in PACKAGES:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "__init__.py").touch()
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(textwrap.dedent(text))
    return root


RIGHT = {
    "optim_jax/linalg/roots.py": "import jax\nfrom optim_jax.typing import Params\n",
    "optim_jax/typing.py": "import optax\n",
    "optim_jax/trees/paths.py": "from optim_jax.linalg import roots\n",
    "optim_jax/weight_decay.py": "from optim_jax.trees import paths\n",
    "optim_jax/averaging/gpa.py": """
        import numpy as np
        from . import state
        from ..trees import paths
        from optim_jax import weight_decay
        """,
    "optim_jax/averaging/state.py": "import functools\n",
    "optim_jax/estimators.py": """
        import sklearn.base
        from optim_jax.averaging import gpa
        """,
    "optim_jax/__init__.py": "from optim_jax.averaging.gpa import gpa\n",
    "models/losses.py": "import optax\n",
    "models/llama.py": "from flax import nnx\nfrom optim_jax import typing\n",
    "experiments/config.py": "from models.llama import LlamaConfig\n",
    "experiments/data/text.py": "from experiments.config import DataConfig\n",
    "experiments/training/loop.py": """
        import orbax.checkpoint
        from experiments.data import text
        """,
    "experiments/presets/llama.py": "from experiments import config\n",
    "experiments/train.py": """
        from absl import app
        from experiments.presets import llama
        """,
}

WRONG = {
    "method imports method": (
        "optim_jax/averaging/gpa.py",
        "from optim_jax.steepest_descent import muon",
        "averaging may not import steepest_descent",
    ),
    "relative import of another method": (
        "optim_jax/averaging/gpa.py",
        "from ..steepest_descent import muon",
        "averaging may not import steepest_descent",
    ),
    "method imports the catalogue": (
        "optim_jax/averaging/gpa.py",
        "import optim_jax",
        "averaging may not import __init__",
    ),
    "name taken from the catalogue": (
        "optim_jax/averaging/gpa.py",
        "from optim_jax import muon",
        "averaging may not import __init__",
    ),
    "linalg imports trees": (
        "optim_jax/linalg/roots.py",
        "from optim_jax.trees.paths import names",
        "linalg may not import trees",
    ),
    "linalg imports optax": (
        "optim_jax/linalg/roots.py",
        "import optax",
        "may not import optax",
    ),
    "trees import a method": (
        "optim_jax/trees/paths.py",
        "def f():\n    from optim_jax.averaging import gpa",
        "trees may not import averaging",
    ),
    "base imports a method": (
        "optim_jax/prox.py",
        "import optim_jax.averaging.gpa",
        "prox may not import averaging",
    ),
    "catalogue imports estimators": (
        "optim_jax/__init__.py",
        "from optim_jax.estimators import LassoCD",
        "__init__ may not import estimators",
    ),
    "method imports estimators": (
        "optim_jax/averaging/gpa.py",
        "from optim_jax import estimators",
        "averaging may not import estimators",
    ),
    "library imports flax": (
        "optim_jax/averaging/gpa.py",
        "import flax.nnx as nnx",
        "optim_jax may not import flax",
    ),
    "library imports absl": (
        "optim_jax/averaging/gpa.py",
        "from absl import logging",
        "optim_jax may not import absl",
    ),
    "library imports scikit-learn": (
        "optim_jax/averaging/gpa.py",
        "import sklearn",
        "optim_jax may not import sklearn",
    ),
    "dynamic import": (
        "optim_jax/averaging/gpa.py",
        "import importlib\nimportlib.import_module('orbax.checkpoint')",
        "optim_jax may not import orbax",
    ),
    "library imports models": (
        "optim_jax/averaging/gpa.py",
        "from models import llama",
        "optim_jax may not import models",
    ),
    "models import experiments": (
        "models/llama.py",
        "from experiments.config import TrainConfig",
        "models may not import experiments",
    ),
    "models import optax outside losses": (
        "models/llama.py",
        "import optax",
        "only losses",
    ),
    "models import grain": (
        "models/llama.py",
        "import grain",
        "models may not import grain",
    ),
    "experiments import flax": (
        "experiments/training/loop.py",
        "from flax import nnx",
        "experiments may not import flax",
    ),
    "experiments import what is not declared": (
        "experiments/training/loop.py",
        "import pandas_of_nobody",
        "experiments may not import pandas_of_nobody",
    ),
    "experiments import a tool of dev": (
        "experiments/training/loop.py",
        "import pytest",
        "experiments may not import pytest",
    ),
    "config imports data": (
        "experiments/config.py",
        "from experiments.data import text",
        "config may not import data",
    ),
    "data import training": (
        "experiments/data/text.py",
        "from ..training import loop",
        "data may not import training",
    ),
    "training imports presets": (
        "experiments/training/loop.py",
        "from experiments.presets import llama",
        "training may not import presets",
    ),
    "presets import a binary": (
        "experiments/presets/llama.py",
        "from experiments.train import run",
        "presets may not import train",
    ),
    "tests imported": (
        "experiments/training/loop.py",
        "from tests.conftest import ROOT",
        "experiments may not import tests",
    ),
    "colabs imported": (
        "models/llama.py",
        "import colabs.gpa",
        "models may not import colabs",
    ),
}


def test_right_tree_passes(tmp_path):
    assert violations(write_tree(tmp_path, RIGHT)) == []


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrow_is_found(tmp_path, case):
    path, line, expected = WRONG[case]
    files = {
        "optim_jax/steepest_descent/muon.py": "import jax\n",
        **RIGHT,
        path: textwrap.dedent(RIGHT.get(path, "")) + "\n" + line + "\n",
    }
    (complaint,) = violations(write_tree(tmp_path, files))
    assert expected in complaint
    assert complaint.startswith(f"{path}:")
