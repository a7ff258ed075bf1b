"""Distributions to draw hyperparameters from, for `gdfx.sample`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Distribution:
    """Where values of a hyperparameter are drawn from; a subclass says how in `quantiles`."""

    def quantiles(self, u: np.ndarray) -> np.ndarray:
        """The values at `u`, of shape (n,) and uniform in [0, 1)."""
        raise NotImplementedError


@dataclass(frozen=True)
class uniform(Distribution):
    """Uniform from `low` to `high`."""

    low: float
    high: float

    def __post_init__(self):
        _check(self, -math.inf)

    def quantiles(self, u: np.ndarray) -> np.ndarray:
        """The values at `u`."""
        return np.clip(self.low * (1 - u) + self.high * u, self.low, self.high)  # clipped: against rounding


@dataclass(frozen=True)
class log_uniform(Distribution):
    """From `low` to `high`, with a uniform logarithm: for learning rates and the like, of unknown magnitude."""

    low: float
    high: float

    def __post_init__(self):
        _check(self, 0.0)

    def quantiles(self, u: np.ndarray) -> np.ndarray:
        """The values at `u`."""
        return np.clip(np.exp(np.log(self.low) * (1 - u) + np.log(self.high) * u), self.low, self.high)


@dataclass(frozen=True)
class choice(Distribution):
    """One of `values`, numbers, each as likely as the others."""

    values: Sequence[float]

    def __post_init__(self):
        values = np.asarray(self.values)
        if values.ndim != 1 or values.dtype.kind not in "iuf" or not len(values):
            raise TypeError(f"choice: values is {self.values!r}, expected a list of at least one number")
        object.__setattr__(self, "values", tuple(values.tolist()))  # hashable, as the others are

    def quantiles(self, u: np.ndarray) -> np.ndarray:
        """The values at `u`."""
        return np.asarray(self.values)[(u * len(self.values)).astype(int)]


def _check(distribution: Any, above: float) -> None:
    """Raises `ValueError` unless `low` and `high` are finite, and in order."""
    low, high = distribution.low, distribution.high
    if not above < low < high < math.inf:
        least = "0 < " if above == 0 else ""
        raise ValueError(
            f"{type(distribution).__name__}: low is {low} and high is {high}, expected {least}low < high, both finite"
        )
