"""Every row of cases.py has every property that gdfx promises: gdfx/testing.py says what they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES

import gdfx
from gdfx.testing import INVARIANTS, check_transformation, example_params

# Invariants that share compiled functions are checked together.
GROUPS = {
    "avals": ["init_avals", "update_avals", "state_avals"],
    "programs": [
        "no_aliases",
        "donation",
        "eager_is_jit",
        "one_trace",
        "vmap_is_loop",
        "finite_at_zero",
        "dtypes",
    ],
    "gradients": ["finite_gradients"],
    "arguments": ["float32_moments", "edge_trees", "extra_ignored", "needs", "named_errors"],
    "values": ["repr", "copies"],
}
# For params of another dtype, what the dtype can change; the rest is in "dtypes".
NUMERIC = ["no_aliases", "eager_is_jit", "finite_at_zero"]
# What another setting of a row can change.
OF_SETTINGS = {"programs": [name for name in GROUPS["programs"] if name != "dtypes"], "gradients": GROUPS["gradients"]}
OF_SETTINGS["values"] = ["repr"]
# What remains for a link whose numbers are checked in the row of the optimizer that is made of it.
OF_PARTS = {group: GROUPS[group] for group in ("avals", "arguments", "values")}

whole = [case for case in CASES if not case.part_of]
first = [case for case in whole if not case.variant]


def check(case, names, params=None, rtol=None):
    names = [name for name in names if name not in case.exempt]
    rtol = max(rtol or 0, case.rtol or 0) or None
    with jax.numpy_dtype_promotion(case.promotion):
        check_transformation(case.make(), params, extra=case.extra, check=names, complex=case.complex, rtol=rtol)


def groups_of(case):
    return OF_PARTS if case.part_of else OF_SETTINGS if case.variant else GROUPS


@pytest.mark.parametrize(
    ("case", "group"),
    [
        pytest.param(
            case, group, marks=[] if group in ("avals", "programs") and not case.variant else [pytest.mark.numbers]
        )
        for case in CASES
        for group in groups_of(case)
    ],
    ids=repr,
)
def test_contract(case, group):
    check(case, groups_of(case)[group])


@pytest.mark.numbers
@pytest.mark.parametrize("case", first, ids=repr)
def test_bfloat16(case):
    check(case, NUMERIC, example_params(jnp.bfloat16), rtol=2e-2)


@pytest.mark.numbers
@pytest.mark.parametrize("case", [c for c in first if c.complex], ids=repr)
def test_complex64(case):
    turned = jax.tree.map(lambda p: p * np.complex64(0.6 + 0.8j), example_params(jnp.complex64))
    check(case, [*NUMERIC, "finite_gradients"], turned)


@pytest.mark.numbers
@pytest.mark.parametrize("case", [c for c in whole if c.complex and c.descends], ids=repr)
def test_complex_descent(case):
    """What `jax.grad` gives goes straight in."""
    c = jnp.asarray(np.array([1 - 2j, -0.5 + 0.25j, 1.5j], np.complex64))
    loss = lambda z: jnp.sum(jnp.square(jnp.abs(z - c)))
    opt = case.make()
    extra = case.extra if callable(case.extra) else lambda params, grads: case.extra or {}

    def step(carry, _):
        z, state = carry
        value, grads = jax.value_and_grad(loss)(z)
        provided = {"value": value, "grad": grads, "value_fn": loss}
        updates, state = opt.update(grads, state, z, **{**extra(z, grads), **provided})
        return (gdfx.apply_updates(z, updates), state), None

    start = jnp.zeros_like(c)
    (z, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, opt.init(start)), length=case.descends))()
    assert loss(z) < 0.01 * loss(start)


@pytest.mark.numbers
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", first, ids=repr)
def test_float64(case):
    names = ["init_avals", "update_avals", "state_avals", "finite_at_zero"]
    check(case, names, example_params(jnp.float64), rtol=1e-12)


def test_each_transform_has_a_row():
    # Abstract bases are no dataclasses.
    public = {
        value
        for value in (getattr(gdfx, name) for name in dir(gdfx))
        if isinstance(value, type)
        and issubclass(value, gdfx.GradientTransformation)
        and dataclasses.is_dataclass(value)
    }
    assert len(public) > 10
    made = [case.make() for case in CASES]
    assert public - {type(t) for m in made for t in (m, getattr(m, "transform", m))} == set()


def test_table():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.part_of for case in CASES} <= {"", *names}
    for case in CASES:
        assert set(case.exempt) <= set(INVARIANTS), case
        assert all(case.exempt.values()), f"{case}: an exemption has a reason"


def test_groups_cover_the_invariants():
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(INVARIANTS)
