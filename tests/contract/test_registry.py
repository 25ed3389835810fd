"""The registry misses no transformation, and its exceptions name real checks."""

import inspect
import pathlib
import re

import optim_jax
from tests.contract.transformations import OURS, ROWS


def _returns(function):
    annotation = inspect.signature(function).return_annotation
    return getattr(annotation, "__name__", str(annotation))


def _public_functions():
    for name in optim_jax.__all__:
        value = getattr(optim_jax, name)
        if inspect.isfunction(value):
            yield name, value


def test_every_public_transformation_has_a_row():
    factories = [row.factory for row in OURS]
    named = {name for row in OURS for name in row.public}
    for name, function in _public_functions():
        has_row = function in factories or name in named
        assert has_row == ("GradientTransformation" in _returns(function)), name
    assert named <= set(optim_jax.__all__)


def test_public_functions_say_what_they_return():
    # Otherwise a transformation could slip past the check above.
    for name, function in _public_functions():
        assert _returns(function) != "_empty", name


def test_names_are_unique():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)


def test_exceptions_name_checks_that_exist():
    folder = pathlib.Path(__file__).parent
    checks = {
        check
        for path in folder.glob("test_*.py")
        for check in re.findall(r"^def (test_\w+)\(row", path.read_text(), re.M)
    }
    for row in ROWS:
        assert set(row.exceptions) <= checks, row.name
