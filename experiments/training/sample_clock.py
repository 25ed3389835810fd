"""When things are due: by the rows trained on, whatever the size of the steps."""

from typing import NamedTuple


class SampleClock(NamedTuple):
    """Counts in units of `unit` rows, the first batch size.

    As long as the batch keeps that size a unit is a step.

    Attributes:
      unit: rows of the first step.
      total: rows of the whole run.
    """

    unit: int
    total: int

    def is_due(self, every: int, before: int, after: int) -> bool:
        """Whether a step passed a multiple of `every` units.

        Args:
          every: units between two occurrences; 0: never.
          before: rows trained on before the step.
          after: rows trained on after it.
        """
        period = every * self.unit
        return every > 0 and after // period > before // period

    def units(self, samples: int) -> int:
        """Whole units in so many rows."""
        return samples // self.unit
