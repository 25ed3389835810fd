"""Runs every check of this folder on every row of the registry."""

import pytest

from tests.contract.transformations import ROWS


def pytest_generate_tests(metafunc):
    if "row" not in metafunc.fixturenames:
        return
    check = metafunc.function.__name__
    parameters = []
    for row in ROWS:
        reason = row.exceptions.get(check)
        # Strict: an exception that has become untrue fails the suite.
        marks = pytest.mark.xfail(reason=reason, strict=True) if reason else ()
        parameters.append(pytest.param(row, marks=marks, id=row.name))
    metafunc.parametrize("row", parameters)
