"""Runs every check of this folder on every row of the registry."""

import pytest

from tests.contract.transformations import ROWS


def _must_fail(reason):
    """Fails the suite if the exception has become untrue or another error comes."""
    raises = (AssertionError, ValueError, pytest.fail.Exception)
    return pytest.mark.xfail(reason=reason, raises=raises, strict=True)


def pytest_generate_tests(metafunc):
    if "row" not in metafunc.fixturenames:
        return
    check = metafunc.function.__name__
    parameters = []
    for row in ROWS:
        reason = row.exceptions.get(check)
        marks = _must_fail(reason) if reason else ()
        parameters.append(pytest.param(row, marks=marks, id=row.name))
    metafunc.parametrize("row", parameters)
