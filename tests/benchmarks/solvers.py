"""Workload of solvers: many small problems, as a batch and one after another."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gdfx

from .runner import GDFX, Repeat, Setting, Skipped, Workload, workload

SCIPY, ONE_BY_ONE = "loop, scipy L-BFGS-B", "loop, gdfx.minimize"
PENALTY, TOLERANCE = 0.01, 1e-5


def loss_fn(w: jax.Array, x: jax.Array, sign: jax.Array) -> jax.Array:
    """Of a logistic regression with the labels `sign`, -1 or 1; `w` ends with the bias."""
    return jnp.mean(jax.nn.softplus(-sign * (x @ w[:-1] + w[-1]))) + PENALTY * jnp.sum(w**2)


def _solve(x: jax.Array, sign: jax.Array) -> Any:
    return gdfx.minimize(loss_fn, jnp.zeros(x.shape[-1] + 1), (x, sign), "trust_region", tol=TOLERANCE)


def batched(x: np.ndarray, sign: np.ndarray) -> Callable[[], Repeat]:
    """All problems as one program."""

    def start() -> Repeat:
        def repeat() -> dict[str, float]:
            began = time.perf_counter()
            solve = jax.jit(jax.vmap(lambda *problem: _solve(*problem))).lower(x, sign).compile()
            compiled = time.perf_counter() - began
            began = time.perf_counter()
            values = jax.block_until_ready(solve(x, sign)).value
            run = time.perf_counter() - began
            return {"run": run / len(x), "compile": compiled, "total": compiled + run, "loss": float(values.mean())}

        return repeat

    return start


def one_by_one(x: np.ndarray, sign: np.ndarray) -> Callable[[], Repeat]:
    """The same program for one problem, again and again."""

    def start() -> Repeat:
        def repeat() -> dict[str, float]:
            began = time.perf_counter()
            solve = jax.jit(lambda *problem: _solve(*problem)).lower(x[0], sign[0]).compile()
            compiled = time.perf_counter() - began
            began = time.perf_counter()
            values = [solve(*problem).value for problem in zip(x, sign, strict=True)]
            loss = float(np.mean(jax.block_until_ready(values)))
            run = time.perf_counter() - began
            return {"run": run / len(x), "compile": compiled, "total": compiled + run, "loss": loss}

        return repeat

    return start


def by_scipy(x: np.ndarray, sign: np.ndarray) -> Callable[[], Repeat]:
    """What one would write with SciPy, gradient by hand, in float64."""

    def start() -> Repeat:
        try:
            from scipy.optimize import minimize
        except ImportError:
            raise Skipped("SciPy is not installed") from None

        def loss_and_grad(w: np.ndarray, x: np.ndarray, sign: np.ndarray) -> tuple[float, np.ndarray]:
            margin = sign * (x @ w[:-1] + w[-1])
            pull = -sign / (1 + np.exp(margin)) / len(x)
            grad = np.append(pull @ x, pull.sum()) + 2 * PENALTY * w
            return float(np.logaddexp(0, -margin).mean() + PENALTY * w @ w), grad

        def repeat() -> dict[str, float]:
            began = time.perf_counter()
            start = np.zeros(x.shape[-1] + 1)
            options = {"gtol": TOLERANCE, "ftol": 0.0}
            found = [
                minimize(loss_and_grad, start, problem, method="L-BFGS-B", jac=True, options=options)
                for problem in zip(x.astype(float), sign.astype(float), strict=True)
            ]
            run = time.perf_counter() - began
            return {"run": run / len(x), "total": run, "loss": float(np.mean([each.fun for each in found]))}

        return repeat

    return start


@workload
def solve_thousand(setting: Setting) -> Workload:
    """Logistic regressions of different data."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise Skipped("scikit-learn is not installed") from None
    features, labels = load_breast_cancer(return_X_y=True)
    features = ((features - features.mean(0)) / features.std(0)).astype(np.float32)
    problems, rows = (8, 50) if setting.quick else (1000, 200)
    chosen = np.random.default_rng(0).integers(len(features), size=(problems, rows))
    x, sign = features[chosen][..., :10], (2 * labels[chosen] - 1).astype(np.float32)
    return Workload(
        about=f"{problems} logistic regressions, each of other {rows} rows and 10 features of the breast-cancer table, "
        "by trust_region",
        unit="problem",
        sizes={"problems": problems, "rows": rows, "features": 10},
        contestants={GDFX: batched(x, sign), SCIPY: by_scipy(x, sign), ONE_BY_ONE: one_by_one(x, sign)},
        targets={SCIPY: 5.0},
    )
