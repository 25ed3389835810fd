"""Packages of the `data` extra, imported when a source or tokenizer needs them."""

import importlib
from typing import Any


def import_extra(package: str, needed_by: str) -> Any:
    """Imports a package of the `data` extra.

    Args:
      package: the module to import.
      needed_by: the flag and value that ask for it, for the message.

    Returns:
      The module.

    Raises:
      ImportError: naming the extra, if the package is absent.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{needed_by} needs the package {package!r} of the `data` extra: "
            "pip install -e '.[data]'"
        ) from error
