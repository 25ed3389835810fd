"""Integer columns to network inputs."""

import numpy as np

TRANSFORMS = ("log1p_clip", "log_shift", "none")


def log1p_dense(dense: np.ndarray) -> np.ndarray:
    """The logarithm that DLRM takes: `ln(1 + max(x, 0))`, in float32 throughout.

    Args:
      dense: integers of any shape, missing ones 0.

    Returns:
      float32 array of the same shape.
    """
    clipped = np.maximum(np.asarray(dense), 0).astype(np.float32)
    clipped += np.float32(1.0)
    return np.log(clipped)


def transform_dense(
    dense: np.ndarray, transform: str = "log1p_clip", *, minimum: int | None = None
) -> np.ndarray:
    """Applies one of the transformations in use.

    Args:
      dense: integers of any shape, missing ones 0.
      transform: `log1p_clip`, see `log1p_dense`; `log_shift`, `ln(x - minimum + 2)` as
        in torchrec's conversion, with values below `minimum` counted as `minimum`;
        `none`.
      minimum: of `log_shift`: one constant for all files, such as the minimum over the
        training rows. A minimum per file would give equal integers unequal inputs.

    Returns:
      float32 array of the same shape.

    Raises:
      ValueError: for an unknown transformation, and for a `minimum` that is missing or
        has no use.
    """
    check_transform(transform, minimum)
    if transform == "log1p_clip":
        return log1p_dense(dense)
    values = np.asarray(dense)
    if transform == "log_shift":
        # In float64: the difference of two 64-bit integers may not fit in a third.
        above = np.maximum(values.astype(np.float64) - minimum, 0.0)
        return np.log(above + 2.0).astype(np.float32)
    return values.astype(np.float32)


def check_transform(transform: str, minimum: int | None) -> None:
    """Refuses settings that `transform_dense` would refuse.

    Raises:
      ValueError: naming the setting.
    """
    if transform not in TRANSFORMS:
        raise ValueError(
            f"dense_transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}"
        )
    if transform == "log_shift" and minimum is None:
        raise ValueError("dense_transform='log_shift' needs dense_minimum")
    if transform != "log_shift" and minimum is not None:
        raise ValueError(
            f"dense_minimum={minimum} has no use with dense_transform={transform!r}"
        )
