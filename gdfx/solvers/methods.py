"""Solvers by name."""

from collections.abc import Callable
from typing import Any

from ..core import GradientTransformation, as_transformation
from .bfgs import bfgs
from .dogleg import dogleg
from .gauss_newton import gauss_newton
from .lbfgs import lbfgs
from .lbfgsb import lbfgsb
from .levenberg_marquardt import levenberg_marquardt
from .newton_cg import newton_cg
from .nonlinear_cg import nonlinear_cg
from .trust_region import trust_region

METHODS: dict[str, Callable[[], GradientTransformation]] = {
    "lbfgs": lbfgs,
    "lbfgsb": lbfgsb,
    "bfgs": bfgs,
    "nonlinear_cg": nonlinear_cg,
    "newton_cg": newton_cg,
    "trust_region": trust_region,
    "levenberg_marquardt": levenberg_marquardt,
    "dogleg": dogleg,
    "gauss_newton": gauss_newton,
}
_SCIPYS = {"l_bfgs_b": "lbfgsb", "cg": "nonlinear_cg", "trust_ncg": "trust_region", "lm": "levenberg_marquardt"}


def method_of(method: Any, *, bounded: bool = False) -> GradientTransformation:
    """The optimizer called so, in gdfx or in SciPy; the default for None; an optimizer as it is.

    Raises:
        ValueError: no solver has the name.
        TypeError: `method` is neither a name nor an optimizer.
    """
    if method is None:
        method = "lbfgsb" if bounded else "lbfgs"
    if not isinstance(method, str):
        return as_transformation(method)
    name = method.lower().replace("-", "_")
    name = _SCIPYS.get(name, name)
    if name not in METHODS:
        raise ValueError(f"method is {method!r}, expected an optimizer or one of: {', '.join(METHODS)}")
    return METHODS[name]()
