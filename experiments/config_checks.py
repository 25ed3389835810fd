"""Checks that the configuration makes of its fields: a `ValueError` names the field."""


def require(condition: bool, message: str) -> None:
    """Refuses a configuration."""
    if not condition:
        raise ValueError(message)


def require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Checks a field that is one of a few strings."""
    require(
        value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}"
    )


def require_at_least(name: str, value: float, low: float) -> None:
    """Checks a lower bound."""
    # Written so that NaN fails.
    require(value >= low, f"{name} must be >= {low}, got {value}")


def require_fraction(name: str, value: float) -> None:
    """Checks a share or a decay rate: [0, 1)."""
    require(0.0 <= value < 1.0, f"{name} must lie in [0, 1), got {value}")
