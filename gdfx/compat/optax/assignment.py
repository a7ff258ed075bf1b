"""optax.assignment."""

from gdfx.assignment import hungarian_algorithm as hungarian_algorithm

base_hungarian_algorithm = hungarian_algorithm
