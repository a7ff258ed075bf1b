"""Measures what docs/make_solvers.py shows: runs each method on each problem and writes docs/solvers.json.

python docs/measure_solvers.py                     # what is not in the file yet, of the packages that are installed
python docs/measure_solvers.py "gdfx bfgs" jaxopt  # only the methods whose names contain one of these
python docs/measure_solvers.py gdfx --again        # also where the file has them

Each run is written at once: a process that was cut off goes on without `--again`.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module, util
from importlib.metadata import version
from typing import Any, NamedTuple

from make_solvers import FAMILIES, FOUND, ITERATIONS, POINTS, PRECISION, ROOT, SECONDS, SMALL, SQUARES

METHODS = [method for methods in FAMILIES.values() for method in methods]


class Run(NamedTuple):
    """A problem as methods get it: functions that count where they are evaluated."""

    fn: Callable[..., Any]
    residual: Callable[..., Any] | None
    start: Any
    tol: float  # of the gradient's norm


def gdfx_method(name: str, run: Run) -> int:
    """Runs a solver of gdfx and returns its number of iterations."""
    import jax

    import gdfx

    call: Any = gdfx.least_squares if f"gdfx {name}" in FAMILIES[SQUARES] else gdfx.minimize
    fn = run.residual if call is gdfx.least_squares else run.fn
    return int(jax.jit(lambda x: call(fn, x, method=name, tol=run.tol, max_steps=ITERATIONS).steps)(run.start))


def scipy_method(name: str, run: Run) -> int:
    import jax
    import numpy as np
    from scipy import optimize

    if name == "lm":
        assert run.residual is not None
        residual, jacobian = jax.jit(run.residual), jax.jit(jax.jacfwd(run.residual))
        tight: dict[str, Any] = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": POINTS}
        tight["jac"] = lambda x: np.asarray(jacobian(x))
        return optimize.least_squares(lambda x: np.asarray(residual(x)), run.start, method="lm", **tight).njev
    both, product = jax.jit(jax.value_and_grad(run.fn)), None
    options: dict[str, Any] = {"maxiter": ITERATIONS, "gtol": run.tol}
    if name == "L-BFGS-B":
        options |= {"ftol": 0.0, "maxfun": POINTS}
    elif name in ("BFGS", "CG"):
        options |= {"norm": 2}
    else:
        product = jax.jit(lambda x, v: jax.jvp(jax.grad(run.fn), (x,), (v,))[1])
        if name == "Newton-CG":
            options = {"maxiter": ITERATIONS, "xtol": 1e-15}
    found = optimize.minimize(
        lambda x: tuple(map(np.asarray, both(x))), run.start, jac=True, hessp=product, method=name, options=options
    )
    return found.nit


def optimistix_method(name: str, run: Run) -> int:
    import optimistix

    solver, tight = getattr(optimistix, name), {"rtol": 1e-14, "atol": 1e-14}
    of_squares = f"optimistix {name}" in FAMILIES[SQUARES]
    solve = optimistix.least_squares if of_squares else optimistix.minimise
    fn: Any = run.residual if of_squares else run.fn
    found = solve(lambda x, _: fn(x), solver(**tight), run.start, max_steps=POINTS, throw=False)
    return int(found.stats["num_steps"])


def jaxopt_method(name: str, run: Run) -> int:
    import jax
    import jaxopt

    options: dict[str, Any] = {"maxiter": ITERATIONS, "tol": run.tol, "implicit_diff": False}
    fn = run.residual if f"jaxopt {name}" in FAMILIES[SQUARES] else run.fn
    if name == "LevenbergMarquardt":
        options |= {"xtol": 1e-15, "gtol": 1e-15}
    return int(jax.jit(getattr(jaxopt, name)(fn, **options).run)(run.start).state.iter_num)


PACKAGES = {"gdfx": gdfx_method, "scipy": scipy_method, "optimistix": optimistix_method, "jaxopt": jaxopt_method}


class Judge:
    """Keeps the points at which a problem was evaluated, and finds the first that solves it."""

    def __init__(self, problem: Any):
        import jax

        self.problem, self.seen, self.deadline, self.stopped = problem, {}, math.inf, False
        self.both = jax.jit(jax.vmap(jax.value_and_grad(problem.fn)))
        self.value, grad = (x[0] for x in self.both(problem.start[None]))
        self.tol = PRECISION * float((grad**2).sum() ** 0.5)

    def run(self, call: Callable[[Run], int]) -> dict[str, Any]:
        """The record of one run."""
        import jax
        import jax.numpy as jnp

        def counted(fn):
            return lambda x: (jax.debug.callback(self.keep, x), fn(x))[1]

        problem = self.problem
        residual = problem.residual and counted(problem.residual)
        self.seen, self.stopped = {}, False
        run = Run(counted(problem.fn), residual, jnp.asarray(problem.start), min(1e-2 * self.tol, 1e-9))
        record: dict[str, Any] = {}
        try:
            record["iterations"] = call(run)
            jax.effects_barrier()
        except Exception as error:
            if not self.stopped:
                record["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        return record | self.judge()

    def keep(self, x) -> None:
        if not self.seen:  # compilation is over
            self.deadline = time.process_time() + SECONDS
        if len(self.seen) >= POINTS or time.process_time() > self.deadline:
            self.stopped = True
            raise RuntimeError("beyond the limit of points or of time")
        self.seen.setdefault(x.tobytes(), len(self.seen))

    def judge(self) -> dict[str, Any]:
        import numpy as np

        solved, small, best = None, None, (math.inf, math.inf)
        points = np.array([np.frombuffer(x) for x in self.seen])
        for k in range(0, len(points), 256):
            values, grads = map(np.asarray, self.both(np.resize(points[k : k + 256], (256, self.problem.n))))
            norms = np.linalg.norm(grads, axis=1)
            for i in range(min(256, len(points) - k)):
                near = any(self.near(values[i], minimum) for minimum in self.problem.minima)
                if near and norms[i] <= self.tol:
                    solved = solved or k + i + 1
                if near and norms[i] <= SMALL:
                    small = small or k + i + 1
                if values[i] < best[0]:
                    best = float(values[i]), float(norms[i])
        if solved:
            return {"points": solved, "small_gradient": small}
        return {"points": None, "tried": len(points), "value": best[0], "grad_norm": best[1]}

    def near(self, value, minimum) -> bool:
        return abs(value - minimum) <= (PRECISION * abs(minimum) or 1e-10 * min(1.0, self.value))


def set_up() -> None:
    """What has to be done before jax is imported, and for it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # On a busy machine threads that wait for each other take a hundred times as long for small matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What is run once is better compiled fast than well. A flag that jaxlib does not have would end the process.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_parallel_codegen_split_count=1"
        + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
    )
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import jax

    jax.config.update("jax_enable_x64", True)


def measure(words: list[str], again: bool) -> None:
    """Runs the methods whose names contain one of the words, all without any, and writes each run at once."""
    import jax

    from gdfx.sweeps.export import write

    problems = import_module("problems").PROBLEMS
    chosen = [m for m in METHODS if not words or any(word in m for word in words)]
    chosen = [m for m in chosen if util.find_spec(m.partition(" ")[0])]
    found = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {"versions": {}, "problems": {}}
    old, found["problems"] = found["problems"], {}
    for name, problem in problems.items():
        record = {"n": problem.n, "m": problem.m, "minima": list(problem.minima), "runs": {}}
        if (last := old.get(name)) and last["minima"] == record["minima"]:
            record["runs"] = {m: run for m, run in last["runs"].items() if not (again and m in chosen)}
        found["problems"][name] = record
    for name, problem in problems.items():
        runs, judge = found["problems"][name]["runs"], None
        for method in chosen:
            if method in runs or (problem.m is None and method in FAMILIES[SQUARES]):
                continue
            package, _, called = method.partition(" ")
            judge = judge or Judge(problem)
            runs[method] = judge.run(lambda run, p=package, c=called: PACKAGES[p](c, run))
            found["versions"] |= {"jax": jax.__version__} | ({} if package == "gdfx" else {package: version(package)})
            write(FOUND, json.dumps(found, indent=1) + "\n")
            print(name, method, runs[method], flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measures what docs/make_solvers.py shows.")
    parser.add_argument("words", nargs="*", help="parts of the names of methods to run, such as gdfx")
    parser.add_argument("--again", action="store_true", help="runs them also where there is a result")
    options = parser.parse_args()
    set_up()
    measure(options.words, options.again)
