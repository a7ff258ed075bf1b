"""Problems of unconstrained minimization with known minima, for tests and comparisons of solvers.

Here stand classics of the CUTE collection (1995, https://doi.org/10.1145/200979.201043) that are no sums of squares;
the chained Rosenbrock function, which is one; and `hilbert`, of no collection, a quadratic whose matrix is Hilbert's
with 0.1 added to the diagonal. `PROBLEMS` also has those of `problems_squares.py`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from problems_squares import PROBLEMS, Problem, adds, like, squares, to

__all__ = ["PROBLEMS", "Problem"]


def plain(start: Any, *minima: float, solutions: Any = (), n: int = 0) -> Any:
    """Adds a problem by its value."""
    return adds(start, minima, "value", solutions, n, "")


# In the second the first param is near -1.
@squares([-1.2, 1], 0, 3.98662385430094, solutions=[[1]], n=100, suffix="_100")
@squares([-1.2, 1], 0, 3.70142861043002, solutions=[[1]], n=4, suffix="_4")
def chained_rosenbrock(x):
    return jnp.concatenate([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])


@plain([1], 0, n=100, solutions=[[1] * 99 + [0]])
def arwhead(x):
    return jnp.sum((x[:-1] ** 2 + x[-1] ** 2) ** 2 - 4 * x[:-1] + 3)


@plain([1], 378.769191808684, n=100)
def bdqrtic(x):
    a, b, c, d = x[:-4], x[1:-3], x[2:-2], x[3:-1]
    return jnp.sum((3 - 4 * a) ** 2 + (a**2 + 2 * b**2 + 3 * c**2 + 4 * d**2 + 5 * x[-1] ** 2) ** 2)


@plain([1], -99, n=100)
def cosine(x):
    return jnp.sum(jnp.cos(x[:-1] ** 2 - 0.5 * x[1:]))


@plain([2], 1, n=90, solutions=[[0]])
def dixmaana(x):
    m = x.size // 3
    return 1 + jnp.sum(x**2) + 0.125 * jnp.sum(x[: 2 * m] ** 2 * x[m:] ** 4) + 0.125 * jnp.sum(x[:m] * x[2 * m :])


@plain([2], 0, n=50, solutions=[to(50)])
def dqrtic(x):
    return jnp.sum((x - like(x, to(x.size))) ** 4)


@plain([8], 219.284592020765, n=36)
def edensch(x):
    a, b = x[:-1], x[1:]
    return 16 + jnp.sum((a - 2) ** 4 + (a * b - 2 * b) ** 2 + (b + 1) ** 2)


@plain([2], 53.5822148852076, n=50)
def engval1(x):
    return jnp.sum((x[:-1] ** 2 + x[1:] ** 2) ** 2 - 4 * x[:-1] + 3)


@plain(to(50) / 51, 1, n=50, solutions=[[1]])
def genrose(x):
    return 1 + jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (x[1:] - 1) ** 2)


@plain([4], 0, n=50, solutions=[[1]])
def liarwhd(x):
    return jnp.sum(4 * (x**2 - x[0]) ** 2 + (x - 1) ** 2)


# The second has most params near 0.1; the last one is in no term.
@plain([-1], 0, 0.989896874095186, n=50, solutions=[[1]])
def nondia(x):
    return (x[0] - 1) ** 2 + 100 * jnp.sum((x[0] - x[:-1] ** 2) ** 2)


@plain([1], 0, n=50, solutions=[[0]])
def hilbert(x):
    i = np.arange(x.size)
    return 0.5 * x @ (like(x, 1 / (1 + i[:, None] + i)) @ x) + 0.05 * jnp.sum(x**2)
