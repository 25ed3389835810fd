"""Two classes as signs, whatever a file calls them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

_MOST_SHOWN = 10


def sign_labels(labels: Sequence[Any] | np.ndarray, source: str) -> np.ndarray:
    """Maps the two classes of a data set to -1 and +1.

    Args:
      labels: numbers or texts, one for each sample.
      source: where they come from, for the message.

    Returns:
      float64 (N,): +1 for the larger number, or the text that sorts last.

    Raises:
      ValueError: if there are not exactly two classes; lists those found.
    """
    classes, index = np.unique(np.asarray(labels), return_inverse=True)
    if len(classes) != 2:
        shown = [str(name) for name in classes[:_MOST_SHOWN]]
        if len(classes) > _MOST_SHOWN:
            shown.append("…")
        raise ValueError(
            f"{source}: the labels must be of two classes, got {len(classes)}: "
            + ", ".join(shown)
        )
    return 2.0 * index - 1.0
