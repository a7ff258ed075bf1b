"""What a problem is, and those of nonlinear least squares.

They are of Moré, Garbow, Hillstrom, Testing Unconstrained Optimization Software (1981,
https://doi.org/10.1145/355934.355936), whose values are sums of squares, and here are half of that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, eq=False)
class Problem:
    """A function of a vector, by its residuals or by its value; it computes in the dtype of the vector."""

    name: str
    start: np.ndarray  # float64[n]
    minima: tuple[float, ...]  # of `fn`, the lowest first, then the local ones that methods are known to end in
    residual: Callable[[jax.Array], jax.Array] | None = None
    value: Callable[[jax.Array], jax.Array] | None = None
    solutions: tuple[Any, ...] = ()  # minimizers in the order of `minima`, as far as they have a simple form

    @property
    def n(self) -> int:
        """The number of params."""
        return self.start.size

    @property
    def m(self) -> int | None:
        """The number of residuals, None where the function is no sum of squares."""
        return jax.eval_shape(self.residual, self.start).size if self.residual else None

    def fn(self, x: jax.Array) -> jax.Array:
        """The value: half the sum of the squares where there are residuals."""
        if self.residual is not None:
            return 0.5 * jnp.sum(self.residual(x) ** 2)
        assert self.value is not None
        return self.value(x)


PROBLEMS: dict[str, Problem] = {}


def squares(start: Any, *minima: float, solutions: Any = (), n: int = 0, suffix: str = "") -> Callable[..., Any]:
    """Adds a problem of residuals; `minima` are sums of squares. `n` repeats the start up to that many params."""
    return adds(start, tuple(m / 2 for m in minima), "residual", solutions, n, suffix)


def adds(start: Any, minima: Any, kind: str, solutions: Any, n: int, suffix: str) -> Callable[..., Any]:
    """Adds a problem by its function, of the kind `"residual"` or `"value"`."""
    start = np.resize(np.asarray(start, float), n or np.size(start))

    def add(fn):
        name = fn.__name__ + suffix
        found = tuple(np.resize(np.asarray(x, float), start.size) for x in solutions)
        PROBLEMS[name] = Problem(name, start, minima, **{kind: fn}, solutions=found)
        return fn

    return add


def like(x: jax.Array, numbers: Any) -> jax.Array:
    return jnp.asarray(np.asarray(numbers, float), x.dtype)


def to(count: int) -> np.ndarray:
    """1, 2, ... count."""
    return np.arange(1.0, count + 1)


@squares([-1.2, 1], 0, solutions=[[1, 1]], n=100, suffix="_100")
@squares([-1.2, 1], 0, solutions=[[1, 1]])
def rosenbrock(x):
    odd, even = x[::2], x[1::2]
    return jnp.concatenate([10 * (even - odd**2), 1 - odd])


@squares([0.5, -2], 0, 48.98425367924002, solutions=[[5, 4]])
def freudenstein_roth(x):
    a, b = x
    return jnp.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


@squares([0, 1], 0)
def powell_badly_scaled(x):
    return jnp.stack([1e4 * x[0] * x[1] - 1, jnp.exp(-x[0]) + jnp.exp(-x[1]) - 1.0001])


@squares([1, 1], 0, solutions=[[1e6, 2e-6]])
def brown_badly_scaled(x):
    return jnp.stack([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2])


@squares([1, 1], 0, solutions=[[3, 0.5]])
def beale(x):
    return like(x, [1.5, 2.25, 2.625]) - x[0] * (1 - jnp.stack([x[1], x[1] ** 2, x[1] ** 3]))


@squares([0.3, 0.4], 124.36218235561473)
def jennrich_sampson(x):
    i = like(x, to(10))
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


@squares([-1, 0, 0], 0, solutions=[[1, 0, 0]])
def helical_valley(x):
    angle = jnp.arctan(x[1] / x[0]) / (2 * np.pi) + jnp.where(x[0] < 0, 0.5, 0.0).astype(x.dtype)
    return jnp.stack([10 * (x[2] - 10 * angle), 10 * (jnp.sqrt(x[0] ** 2 + x[1] ** 2) - 1), x[2]])


BARD = [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]


@squares([1, 1, 1], 8.214877306578963e-3, 17.428693333333335)  # the second as two params go to minus infinity
def bard(x):
    u = to(15)
    v, w = 16 - u, np.minimum(u, 16 - u)
    return like(x, BARD) - (x[0] + like(x, u) / (like(x, v) * x[1] + like(x, w) * x[2]))


GAUSS = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989]


@squares([0.4, 1, 0], 1.1279327696188e-8)
def gaussian(x):
    t = like(x, (8 - to(15)) / 2)
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - like(x, GAUSS + GAUSS[-2::-1])


MEYER = [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872]


@squares([0.02, 4000, 250], 87.94585517067)
def meyer(x):
    return x[0] * jnp.exp(x[1] / (like(x, 45 + 5 * to(16)) + x[2])) - like(x, MEYER)


@squares([5, 2.5, 0.15], 0, solutions=[[50, 25, 1.5]])
def gulf(x):
    t = to(99) / 100
    y = like(x, 25 + (-50 * np.log(t)) ** (2 / 3))
    return jnp.exp(-(jnp.abs(y - x[1]) ** x[2]) / x[0]) - like(x, t)


@squares([0, 10, 20], 0, solutions=[[1, 10, 1]])
def box(x):
    t = 0.1 * to(10)
    return jnp.exp(-like(x, t) * x[0]) - jnp.exp(-like(x, t) * x[1]) - x[2] * like(x, np.exp(-t) - np.exp(-10 * t))


@squares([3, -1, 0, 1], 0, solutions=[[0]], n=40, suffix="_40")
@squares([3, -1, 0, 1], 0, solutions=[[0]])
def powell_singular(x):
    a, b, c, d = x[::4], x[1::4], x[2::4], x[3::4]
    return jnp.concatenate([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])


@squares([-3, -1, -3, -1], 0, solutions=[[1]])
def wood(x):
    a, b, c, d = x
    first = [10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c]
    return jnp.stack([*first, 10**0.5 * (b + d - 2), (b - d) / 10**0.5])


KOWALIK_Y = [0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
KOWALIK_U = [4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625]


# The second as three params go to infinity; in the third, beyond poles, all but the first are negative.
@squares([0.25, 0.39, 0.415, 0.39], 3.0750560384924e-4, 1.02734304869545e-3, 4.2367462646983e-4)
def kowalik_osborne(x):
    u = like(x, KOWALIK_U)
    return like(x, KOWALIK_Y) - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


@squares([25, 5, -5, -1], 85822.20162635628)
def brown_dennis(x):
    t = to(20) / 5
    first = x[0] + like(x, t) * x[1] - like(x, np.exp(t))
    return first**2 + (x[2] + x[3] * like(x, np.sin(t)) - like(x, np.cos(t))) ** 2


# In thousandths.
OSBORNE_1 = [844, 908, 932, 936, 925, 908, 881, 850, 818, 784, 751, 718, 685, 658, 628, 603, 580]
OSBORNE_1 += [558, 538, 522, 506, 490, 478, 467, 457, 448, 438, 431, 424, 420, 414, 411, 406]


@squares([0.5, 1.5, -1, 0.01, 0.02], 5.46489469748e-5)
def osborne_1(x):
    t = like(x, 10 * (to(33) - 1))
    return like(x, np.divide(OSBORNE_1, 1000)) - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4]))


@squares([1, 2, 1, 1, 1, 1], 0, 5.65564992550e-3, solutions=[[1, 10, 1, 5, 4, 3]])
def biggs_exp6(x):
    t = 0.1 * to(13)
    y, t = like(x, np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)), like(x, t)
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


OSBORNE_2 = [1366, 1191, 1112, 1013, 991, 885, 831, 847, 786, 725, 746, 679, 608, 655, 616, 606, 602, 626, 651, 724]
OSBORNE_2 += [649, 649, 694, 644, 624, 661, 612, 558, 533, 495, 500, 423, 395, 375, 372, 391, 396, 405, 428, 429]
OSBORNE_2 += [523, 562, 607, 653, 672, 708, 633, 668, 645, 632, 591, 559, 597, 625, 739, 710, 729, 720, 636, 581]
OSBORNE_2 += [428, 292, 162, 98, 54]


@squares([1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5], 4.01377362935e-2)
def osborne_2(x):
    t = like(x, (to(65) - 1) / 10)
    bells = sum(x[k] * jnp.exp(-((t - x[7 + k]) ** 2) * x[4 + k]) for k in (1, 2, 3))
    return like(x, np.divide(OSBORNE_2, 1000)) - (x[0] * jnp.exp(-t * x[4]) + bells)


@squares([0], 1.39976013e-6, n=9, suffix="_9")
@squares([0], 2.28767005355e-3, n=6, suffix="_6")
def watson(x):
    t, j = (to(29) / 29)[:, None], to(x.size)
    powers, slopes = t ** (j - 1), (j - 1) * t ** np.maximum(j - 2, 0)
    middle = like(x, slopes) @ x - (like(x, powers) @ x) ** 2 - 1
    return jnp.concatenate([middle, jnp.stack([x[0], x[1] - x[0] ** 2 - 1])])


@squares(to(10), 7.08765146709e-5)
def penalty_1(x):
    return jnp.append(1e-5**0.5 * (x - 1), jnp.sum(x**2) - 0.25)


@squares([0.5], 2.93660537457e-4, n=10)
def penalty_2(x):
    i = to(x.size)[1:]
    y, e = like(x, np.exp(i / 10) + np.exp((i - 1) / 10)), jnp.exp(x / 10)
    ball = jnp.sum(like(x, to(x.size)[::-1]) * x**2) - 1
    edges = [jnp.stack([x[0] - 0.2]), jnp.stack([ball])]
    return jnp.concatenate([*edges, 1e-5**0.5 * (e[1:] + e[:-1] - y), 1e-5**0.5 * (e[1:] - np.exp(-0.1))])


@squares(1 - to(10) / 10, 0, solutions=[[1]])
def variably_dimensioned(x):
    total = jnp.sum(like(x, to(x.size)) * (x - 1))
    return jnp.concatenate([x - 1, jnp.stack([total, total**2])])


@squares([0.1], 0, 2.79505612188e-5, n=10)
def trigonometric(x):
    cos = jnp.cos(x)
    return x.size - jnp.sum(cos) + like(x, to(x.size)) * (1 - cos) - jnp.sin(x)


@squares([0.5], 0, 1, n=10, solutions=[[1], [0] * 9 + [11]])
def brown_almost_linear(x):
    return jnp.append(x[:-1] + jnp.sum(x) - (x.size + 1), jnp.prod(x) - 1)


_T = to(10) / 11


@squares(_T * (_T - 1), 0)
def discrete_boundary(x):
    h, padded = 1 / (x.size + 1), jnp.pad(x, 1)
    return 2 * x - padded[:-2] - padded[2:] + h**2 * (x + like(x, to(x.size) * h) + 1) ** 3 / 2


@squares(_T * (_T - 1), 0)
def discrete_integral(x):
    h, t = 1 / (x.size + 1), to(x.size) / (x.size + 1)
    kernel = np.where(t[:, None] >= t, (1 - t[:, None]) * t, t[:, None] * (1 - t))
    return x + h / 2 * (like(x, kernel) @ (x + like(x, t) + 1) ** 3)


# The second has its last two params near 0.8 and 1.4.
@squares([-1], 0, 0.712527909586082, n=30)
def broyden_tridiagonal(x):
    padded = jnp.pad(x, 1)
    return (3 - 2 * x) * x - padded[:-2] - 2 * padded[2:] + 1


# In the second all params are positive and most above 1; in the others the first ones are near 0.2, the more of them
# the larger the value.
@squares([-1], 0, 2.68002493241172, 3.05454704222344, 3.07487539460406, 3.0761452273989, 3.07621384736686, n=30)
def broyden_banded(x):
    ahead = np.subtract.outer(np.arange(x.size), np.arange(x.size))
    near = (ahead <= 5) & (ahead >= -1) & (ahead != 0)
    return x * (2 + 5 * x**2) + 1 - like(x, near) @ (x * (1 + x))


@squares([1], 20 * 19 / (2 * 41), n=10)
def linear_rank_one(x):
    j = to(x.size)
    return like(x, to(20)) * jnp.sum(like(x, j) * x) - 1


@squares(to(9) / 10, 0, suffix="_9")
@squares(to(8) / 9, 3.516873725677e-3, suffix="_8")
def chebyquad(x):
    y, polynomials = 2 * x - 1, [jnp.ones_like(x), 2 * x - 1]
    while len(polynomials) <= x.size:
        polynomials.append(2 * y * polynomials[-1] - polynomials[-2])
    integrals = [0 if i % 2 else -1 / (i**2 - 1) for i in range(2, x.size + 1)]
    return jnp.mean(jnp.stack(polynomials[1:]), axis=1) - like(x, [0, *integrals])
