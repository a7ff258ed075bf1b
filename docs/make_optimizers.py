"""Writes docs/optimizers.md from the classes of gdfx and the table of tests/cases.py.

python docs/make_optimizers.py
"""

import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cases import CASES, SOLVERS, Case  # noqa: E402

import gdfx  # noqa: E402

PAGE = ROOT / "docs" / "optimizers.md"
HEAD = """\
# Optimizers and transforms

This page is written by `docs/make_optimizers.py` from the code and the tests.

**State** is what `init` allocates, in bytes for each parameter, by the default arguments, measured on a float32 matrix
of 1024 by 1024; for params in half precision it is the same. **Needs** are the arguments that `update` must be given
besides the gradients and the state; `gdfx.make_step`, `fit`, `sweep` and `minimize` pass `params`, `value`, `grad` and
`value_fn` by themselves, `residual_fn` where the loss is a `gdfx.sum_of_squares`, and `sampled_value_fn` where it is a
`gdfx.negative_log_likelihood`; `n` is the number of params.
**Checked against** names the packages whose steps these are, in float64, each with the largest difference found in the
params, relative to the largest of them: optax runs beside gdfx over 100 steps on random trees, the others' steps are
kept in `tests/oracles`. `papers` and `dion` are the rules of papers, written down without this library. Some names are
of families: `averaging` is schedulefree, dog-optimizer, PyTorch and rules of papers; `geometry` heavyball,
pytorch_optimizer and rules of papers; `muons` pytorch_optimizer; `shampoos` that and rules of papers; `pro` heavyball;
`options`, settings beyond the usual ones, the packages of the authors.

Every row also passes the whole contract of `gdfx.testing` (see [Your own optimizer](extending.md)), and every optimizer
solves an ill-conditioned quadratic, Rosenbrock's valley and a logistic regression on real data at a learning rate that
its docstring names; those that search for the length of their steps, [solvers](solvers.md), some fifty problems.

Complex params are taken wherever the table does not say otherwise; what `jax.grad` gives goes straight in.
"""
DECAY = """
## Weight decay

Weight decay is one link, `gdfx.add_decayed_weights(weight_decay, mask, mode)`, in one of three modes:

| Mode | What it subtracts | Where it stands |
|---|---|---|
| `"decoupled"` | `learning_rate * weight_decay * params` | between the moments and the learning rate |
| `"coupled"` | nothing by itself: it adds `weight_decay * params` to the gradient (L2) | before the moments |
| `"independent"` | `weight_decay * params` | after the learning rate |

Without a mask all leaves decay. `mask=gdfx.matrices` spares those of fewer than two axes, biases and norm scales.
"""


def papers(cls: type) -> str:
    """Links to what the docstring of the module cites."""
    urls = re.findall(r"https?://[^\s,;)]+", sys.modules[cls.__module__].__doc__ or "")
    urls = [url.rstrip(".:") for url in urls]
    return ", ".join(f"[{url.split('/')[-1] if 'arxiv' in url else 'paper'}]({url})" for url in urls)


def state_bytes(case: Case) -> str:
    """The state's bytes a parameter; counts and other single numbers do not add up to anything."""
    shapes = {"empty": (0, 2), "matrix": (1024, 1024), "scalar": (), "vector": (3,)}
    params: dict[str, Any] = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    params["none"] = None
    leaves = jax.tree.leaves(state_of(case, params))
    per_param = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.ndim) / 2**20
    return f"{per_param:.3g}" if per_param < 2**20 else f"{per_param / 2**20:.3g} n"


def state_of(case: Case, params: Any) -> Any:
    """What `init` allocates by default; where there are no defaults, or they are for other params, as in the row."""
    try:
        return jax.eval_shape((case.documented or getattr(gdfx, case.name))().init, params)
    except (TypeError, ValueError):
        return jax.eval_shape(case.make().init, params)


def oracles(case: Case) -> str:
    """The packages and the errors reached, those of the rows of its variants included."""
    rows = [c for c in CASES if c.name == case.name or c.name.startswith(f"{case.name}-")]
    live = [c.oracle_atol for c in rows if c.oracle]
    # Slots in half precision differ by their own rounding.
    found = {"optax": min(live)} if live else {}
    for row in rows:
        found |= row.golden
    told = [f"{package} {error:.0e}".replace("e-0", "e-") for package, error in found.items()]
    return ", ".join(told + ["SciPy's [minima](solvers_table.md)"] * (case.name in SOLVERS))


def needs(case: Case) -> str:
    return ", ".join(f"`{name}`" for name in sorted(case.make().needs))


def summary(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def row_of(case: Case) -> list[str]:
    cls = getattr(gdfx, case.name.split("-")[0])
    name = f"`{case.name}`" + ("" if case.complex else " (real only)")
    return [name, summary(cls), papers(cls), state_bytes(case), needs(case), oracles(case)]


def table(cases: list[Case]) -> str:
    head = ["Name", "What it does", "Source", "State", "Needs", "Checked against"]
    rows = [head, ["---"] * len(head), *map(row_of, cases)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page() -> str:
    public = {
        name: value
        for name, value in ((name, getattr(gdfx, name)) for name in dir(gdfx))
        if isinstance(value, type) and issubclass(value, gdfx.GradientTransformation)
    }
    rows = [case for case in sorted(CASES, key=lambda case: case.name) if case.name in public]
    optimizers = [case for case in rows if issubclass(public[case.name], gdfx.Optimizer)]
    links = [case for case in rows if case not in optimizers]
    different = [f"- `{case.name}`: {case.differs}" for case in rows if case.differs]
    parts = [HEAD, "## Optimizers\n", table(optimizers), "\n## Transforms\n", table(links), DECAY]
    parts += ["## Different from other libraries\n", "\n".join(different)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
