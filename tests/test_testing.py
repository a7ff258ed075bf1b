"""Each invariant of gdfx/testing.py is seen to fail, on a transform that breaks it, and says so."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdfx
from gdfx.testing import (
    INVARIANTS,
    InvariantError,
    assert_single_trace,
    check_transformation,
    example_params,
    trees_close,
)
from gdfx.tree import check_like, leafwise, zeros_like

map_tree = jax.tree.map


@gdfx.pytree
class Good(gdfx.GradientTransformation):
    """Momentum, as a user may write it; the broken ones below differ from it in one thing each."""

    decay: gdfx.Decay = 0.9

    def init(self, params):
        return zeros_like(params)

    def update(self, updates, state, params=None, **extra):
        return leafwise(_momentum, (self.decay,), updates, state)


def _momentum(decay, g, m):
    m = jnp.asarray(decay).astype(m.real.dtype).astype(m.dtype) * m + g
    return m, m


class Link(gdfx.GradientTransformation):
    """Scales by a half, with no state."""

    def init(self, params):
        return ()

    def update(self, updates, state, params=None, **extra):
        return map_tree(lambda u: u / 2, updates), state


# init_avals, update_avals, state_avals


@gdfx.pytree
class InitLooksAtValues(Link):
    def init(self, params):
        return jnp.zeros(int(jnp.sum(params["matrix"]) > 0) + 1)


@gdfx.pytree
class InitDiffersUnderTrace(Link):
    def init(self, params):
        traced = isinstance(params["scalar"], jax.core.Tracer)
        return {"count": jnp.zeros((), jnp.float32 if traced else jnp.int32)}


@gdfx.pytree
class HalvesUpdates(Link):
    def update(self, updates, state, params=None, **extra):
        return map_tree(lambda u: u.astype(jnp.float16), updates), state


@gdfx.pytree
class DropsNone(Link):
    def update(self, updates, state, params=None, **extra):
        return {k: u for k, u in updates.items() if u is not None}, state


@gdfx.pytree
class WidensByItsNumber(gdfx.GradientTransformation):
    """With a Python number the updates stay float16, with a traced one they become float32."""

    factor: gdfx.ScalarOrSchedule = 0.5

    def init(self, params):
        return ()

    def update(self, updates, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return map_tree(lambda u: self.factor * u, updates), state


@gdfx.pytree
class DtypeDrift(Link):
    def init(self, params):
        return {"count": jnp.zeros((), jnp.int32)}

    def update(self, updates, state, params=None, **extra):
        return updates, {"count": state["count"].astype(jnp.float32)}


@gdfx.pytree
class WeakTypeDrift(Link):
    def init(self, params):
        return {"scale": jnp.asarray(1.0)}

    def update(self, updates, state, params=None, **extra):
        return updates, {"scale": 0.9 * state["scale"] + jnp.zeros((), jnp.float32)}


@gdfx.pytree
class StructureDrift(Link):
    def init(self, params):
        return {"last": None}

    def update(self, updates, state, params=None, **extra):
        return updates, {"last": updates["scalar"]}


# no_aliases, donation


@gdfx.pytree
class KeepsParams(Link):
    def init(self, params):
        return {"anchor": params}


@gdfx.pytree
class TwoNames(Link):
    def init(self, params):
        zeros = zeros_like(params)
        return {"mu": zeros, "nu": zeros}


@gdfx.pytree
class KeepsItsKey(Link):
    key: Any = None

    def init(self, params):
        return {"key": self.key}


# eager_is_jit, one_trace, vmap_is_loop


@gdfx.pytree
class AnotherUnderJit(Link):
    def update(self, updates, state, params=None, **extra):
        traced = isinstance(updates["scalar"], jax.core.Tracer)
        return map_tree(lambda u: u * (1.001 if traced else 1.0), updates), state


@gdfx.pytree
class StaticNumber(Link):
    decay: float = gdfx.static(default=0.9)


@gdfx.pytree
class PythonIf(Link):
    b1: gdfx.Decay = 0.9
    threshold: gdfx.NonNegative = 0.5

    def update(self, updates, state, params=None, **extra):
        return (updates if self.threshold > 0 else map_tree(jnp.negative, updates)), state


class Boxed:
    """A pytree whose structure has the value in it."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, Boxed) and bool(self.value == other.value)

    def __hash__(self):
        return 0

    def __repr__(self):
        return f"Boxed({self.value})"


def _unbox(tag, values):
    return Boxed(*values)


jax.tree_util.register_pytree_node(
    Boxed,
    lambda box: ((box.value,), box.value if isinstance(box.value, float) else str(box.value)),
    _unbox,
)


@gdfx.pytree
class Retraced(Link):
    rate: Any = Boxed(0.1)


@gdfx.pytree
class LosesDigits(Link):
    """Of its number, once that is an array."""

    factor: gdfx.ScalarOrSchedule = 0.3

    def update(self, updates, state, params=None, **extra):
        factor = jnp.asarray(self.factor)
        if isinstance(factor, jax.core.Tracer):
            factor = factor.astype(jnp.bfloat16).astype(jnp.float32)
        return map_tree(lambda u: factor.astype(u.dtype) * u, updates), state


def _mean(x):
    return np.full_like(x, np.mean(x))


@gdfx.pytree
class MixesMembers(Link):
    factor: gdfx.ScalarOrSchedule = 0.3

    def update(self, updates, state, params=None, **extra):
        factor = jnp.asarray(self.factor).astype(jnp.float32)
        result = jax.ShapeDtypeStruct((), jnp.float32)
        factor = jax.pure_callback(_mean, result, factor, vmap_method="broadcast_all")
        return map_tree(lambda u: factor.astype(u.dtype) * u, updates), state


# finite_at_zero, finite_gradients


@gdfx.pytree
class Normalises(Link):
    def update(self, updates, state, params=None, **extra):
        return map_tree(lambda u: u / jnp.sqrt(jnp.sum(u * u)), updates), state


@gdfx.pytree
class RootAtZero(Link):
    weight: gdfx.NonNegative = 0.5

    def update(self, updates, state, params=None, **extra):
        root = lambda u: jnp.sqrt(jnp.asarray(self.weight).astype(u.dtype) * u * u)
        return map_tree(root, updates), state


@gdfx.pytree
class RootOfItsNumber(Link):
    """The derivative of a power at 0 by its exponent is 0 * log(0)."""

    power: gdfx.NonNegative = 2.0

    def update(self, updates, state, params=None, **extra):
        size = lambda u: jnp.exp(jnp.asarray(self.power).astype(u.dtype) * jnp.log(jnp.abs(u)))
        return map_tree(size, updates), state


# dtypes, float32_moments, edge_trees


@gdfx.pytree
class OnlyFloat32(Link):
    def update(self, updates, state, params=None, **extra):
        return map_tree(lambda u: u * jnp.full((), 0.5, jnp.float32), updates), state


@gdfx.pytree
class TooSmallForHalf(Link):
    """In float16 the number is 0, and 0/0 follows."""

    def update(self, updates, state, params=None, **extra):
        small = lambda u: jnp.asarray(1e-8).astype(u.dtype)
        return map_tree(lambda u: u / (jnp.abs(u).astype(u.dtype) + small(u)), updates), state


@gdfx.pytree
class NanInFloat64(Link):
    def update(self, updates, state, params=None, **extra):
        bad = lambda u: u * jnp.asarray(np.nan if u.dtype == jnp.float64 else 1).astype(u.dtype)
        return map_tree(bad, updates), state


@gdfx.pytree
class NoComplex(Link):
    def update(self, updates, state, params=None, **extra):
        if any(map(jnp.iscomplexobj, jax.tree.leaves(updates))):
            raise TypeError("no complex params")
        return updates, state


@gdfx.pytree
class HalfMoments(Link):
    def init(self, params):
        return {"mu": map_tree(jnp.zeros_like, params)}


@gdfx.pytree
class NeedsALeaf(Link):
    def update(self, updates, state, params=None, **extra):
        first = jax.tree.leaves(updates)[0]
        return map_tree(lambda u: u / first.size, updates), state


@gdfx.pytree
class AddsNone(Link):
    """It raises a TypeError, but one of Python's own, which tells a user nothing."""

    def update(self, updates, state, params=None, **extra):
        scalar = updates.get("scalar") if isinstance(updates, dict) else updates
        return map_tree(lambda u: u / (scalar + 1), updates), state


@gdfx.pytree
class SaysWhatItTakes(Link):
    def init(self, params):
        if not any(p.ndim == 2 and p.size for p in jax.tree.leaves(params)):
            raise ValueError("params have no matrix, expected at least one")
        return ()


# extra_ignored, needs, named_errors


@gdfx.pytree
class NoExtra(Link):
    def update(self, updates, state, params=None):
        return updates, state


@gdfx.pytree
class UndeclaredNeed(Link):
    def update(self, updates, state, params=None, **extra):
        return map_tree(jnp.add, updates, params), state


@gdfx.pytree
class RaisesKeyError(Link):
    @property
    def needs(self):
        return frozenset({"value"})

    def update(self, updates, state, params=None, **extra):
        return map_tree(lambda u: u * extra["value"], updates), state


@gdfx.pytree
class DefaultsForItsNeed(Link):
    @property
    def needs(self):
        return frozenset({"value"})

    def update(self, updates, state, params=None, value=1.0, **extra):
        return map_tree(lambda u: u * value, updates), state


@gdfx.pytree
class Broadcasts(Link):
    def init(self, params):
        return zeros_like(params)

    def update(self, updates, state, params=None, **extra):
        with jax.numpy_rank_promotion("allow"):
            return map_tree(jnp.add, updates, state), state


@gdfx.pytree
class NamesNoPath(Link):
    def init(self, params):
        return zeros_like(params)

    def update(self, updates, state, params=None, **extra):
        try:
            check_like(updates, state, "updates", "state")
        except ValueError:
            raise ValueError("something is wrong") from None
        return updates, state


# repr, copies


@gdfx.pytree
class RoundedRepr(Link):
    rate: gdfx.ScalarOrSchedule = 0.123456

    def __repr__(self):
        return f"RoundedRepr({self.rate:.2f})"


@gdfx.pytree
class UnreadableRepr(Link):
    def __repr__(self):
        return "<a link>"


@gdfx.pytree
class ForgetsOnPickling(Link):
    rate: gdfx.ScalarOrSchedule = 0.1

    def __reduce__(self):
        return type(self), ()


@gdfx.pytree
class HashById(Link):
    def __hash__(self):
        return id(self)


def local_class():
    @gdfx.pytree
    class Local(Link):
        pass

    return Local()


BROKEN = [
    ("init_avals", InitLooksAtValues(), ["ConcretizationTypeError"]),
    ("init_avals", InitDiffersUnderTrace(), ["state['count']", "int32[]", "float32[]"]),
    ("update_avals", HalvesUpdates(), ["updates['empty']", "float16[0,2]", "float32[0,2]"]),
    ("update_avals", DropsNone(), ["structure", "none"]),
    ("state_avals", DtypeDrift(), ["state['count']: found float32[], expected int32[]"]),
    ("state_avals", WeakTypeDrift(), ["state['scale']: found float32[], expected weakly typed"]),
    ("state_avals", StructureDrift(), ["state has another structure", "last"]),
    ("no_aliases", KeepsParams(), ["state['anchor']['matrix'] is the buffer of params['matrix']"]),
    ("no_aliases", TwoNames(), ["state['nu']['matrix'] is the buffer of state['mu']['matrix']"]),
    ("no_aliases", KeepsItsKey(jax.random.key(0)), ["state['key'] is the buffer of transform.key"]),
    ("donation", KeepsParams(), ["donate"]),
    ("eager_is_jit", AnotherUnderJit(), ["after 1 steps under jit, params at ['scalar']: found"]),
    ("one_trace", StaticNumber(), ["StaticNumber.decay is a static field that holds 0.9"]),
    ("one_trace", PythonIf(), ["threshold: TracerBoolConversionError"]),
    ("one_trace", Retraced(), ["traced 3 times for 3 values of rate", "static field or other"]),
    ("one_trace", LosesDigits(), ["with the numbers traced, params at ['scalar']: found"]),
    ("vmap_is_loop", PythonIf(), ["threshold: TracerBoolConversionError"]),
    ("vmap_is_loop", MixesMembers(), ["for as given, params at ['scalar']: found"]),
    ("finite_at_zero", Normalises(), ["updates['matrix']: found nan"]),
    ("finite_gradients", RootAtZero(), ["the derivative by weight: found nan"]),
    ("finite_gradients", RootOfItsNumber(), ["the derivative by power: found nan"]),
    ("dtypes", OnlyFloat32(), ["with bfloat16 params it raised TypePromotionError"]),
    ("dtypes", TooSmallForHalf(), ["with float16 params, updates['matrix']: found nan"]),
    ("dtypes", WidensByItsNumber(), ["with bfloat16 params, with the numbers as arrays, updates"]),
    ("dtypes", NoComplex(), ["with complex64 params, TypeError: no complex params"]),
    ("float32_moments", HalfMoments(), ["with bfloat16 params, state['mu']['empty']", "float32"]),
    ("edge_trees", NeedsALeaf(), ["with an empty tree as params it raised IndexError"]),
    ("edge_trees", AddsNone(), ["with a leaf without elements and None as params it raised TypeE"]),
    ("extra_ignored", NoExtra(), ["TypeError", "an_unknown_argument"]),
    ("needs", UndeclaredNeed(), ["it declares nothing, but ValueError"]),
    ("needs", RaisesKeyError(), ["KeyError: 'value'"]),
    ("needs", DefaultsForItsNeed(), ["it declares value, but update without it raised nothing"]),
    ("named_errors", Broadcasts(), ["grads with a leaf of another shape at ['empty'] raised nothing"]),
    ("named_errors", NamesNoPath(), ["does not name that path: something is wrong"]),
    ("repr", RoundedRepr(), ["RoundedRepr(0.12) gave", "not equal"]),
    ("repr", UnreadableRepr(), ["<a link> raised SyntaxError"]),
    ("copies", ForgetsOnPickling(rate=0.2), ["copy.deepcopy gave ForgetsOnPickling(rate=0.1)"]),
    ("copies", HashById(), ["an equal transform with another hash"]),
    ("copies", local_class(), ["pickle", "Local"]),
]


@pytest.mark.parametrize(
    ("invariant", "transform", "told"),
    BROKEN,
    ids=[f"{name}-{type(transform).__name__}" for name, transform, _ in BROKEN],
)
def test_broken(invariant, transform, told):
    extra = {"value": jnp.ones(())} if "value" in transform.needs else None
    with pytest.raises(InvariantError) as raised:
        check_transformation(transform, check=[invariant], complex=True, extra=extra)
    message = str(raised.value)
    assert raised.value.invariant == invariant
    assert f"breaks the invariant '{invariant}'" in message
    assert type(transform).__name__ in message or "a link" in message
    for part in told:
        assert part in message


def test_each_invariant_is_seen_to_fail():
    assert {name for name, _, _ in BROKEN} == set(INVARIANTS)


@pytest.mark.parametrize("transform", [HalvesUpdates(), DtypeDrift(), KeepsParams()], ids=repr)
def test_a_full_check_tells_the_cause_first(transform):
    expected = next(name for name, broken, _ in BROKEN if broken == transform)
    with pytest.raises(InvariantError) as raised:
        check_transformation(transform)
    assert raised.value.invariant == expected


def test_good_transform():
    check_transformation(Good(), complex=True)


@pytest.mark.parametrize("promotion", ["strict", "standard"])
@pytest.mark.parametrize("rank", ["raise", "allow"])
def test_any_promotion(promotion, rank):
    with jax.numpy_dtype_promotion(promotion), jax.numpy_rank_promotion(rank):
        check_transformation(gdfx.sgd(0.1, 0.9))


@pytest.mark.usefixtures("x64")
def test_x64():
    check_transformation(gdfx.sgd(0.1, 0.9), example_params(jnp.float64))
    with pytest.raises(InvariantError, match=r"with float64 params, updates.*found nan"):
        check_transformation(NanInFloat64(), check=["dtypes"])


def test_named_error_is_accepted():
    check_transformation(SaysWhatItTakes(), check=["edge_trees"])
    check_transformation(NoComplex(), complex=False)


def test_state_dtype_field_asks_for_half_moments():
    check_transformation(gdfx.adam(0.1, mu_dtype="bfloat16"), check=["float32_moments"])
    check_transformation(optax.adam(0.1), check=["float32_moments"])  # within gdfx, optax sees float32


def test_optax_transforms_and_pairs():
    holds = [name for name in INVARIANTS if name != "named_errors"]
    with jax.numpy_dtype_promotion("standard"):
        check_transformation(optax.sgd(0.1), check=holds)
        check_transformation((lambda p: (), lambda u, s, p=None: (u, s)))


def test_extra_may_be_a_function_of_params_and_grads():
    seen = []

    def extra(params, grads):
        seen.append(jax.tree.structure(params) == jax.tree.structure(grads))
        return {"value": jnp.ones((), jnp.float32)}

    check_transformation(Needy(), extra=extra)
    assert len(seen) > 5
    assert all(seen)
    with pytest.raises(TypeError, match=r"Needy\(\) needs value: pass .*extra"):
        check_transformation(Needy())


@gdfx.pytree
class Needy(Link):
    @property
    def needs(self):
        return frozenset({"value"})

    def update(self, updates, state, params=None, *, value=None, **extra):
        if value is None:
            raise TypeError("Needy needs value")
        return map_tree(lambda u: u * value.astype(u.dtype), updates), state


@gdfx.pytree
class RootSchedule(gdfx.Schedule):
    peak: gdfx.ScalarOrSchedule

    def value(self, count):
        return self.peak + jnp.sqrt(0 * self.peak)


def test_a_schedules_numbers_are_hyperparameters():
    with pytest.raises(InvariantError, match=r"the derivative by learning_rate\.peak: found nan"):
        check_transformation(gdfx.sgd(RootSchedule(0.1)), check=["finite_gradients"])
    chain = gdfx.chain(gdfx.clip(1.0), gdfx.sgd(RootSchedule(0.1)))
    with pytest.raises(InvariantError, match=r"transforms\[1\]\.learning_rate\.peak: found nan"):
        check_transformation(chain, check=["finite_gradients"])


def test_params_of_ones_own():
    check_transformation(gdfx.sgd(0.1, 0.9), {"layers": [np.ones((2, 2), np.float32)]})
    with pytest.raises(InvariantError, match=r"params\[1\]"):
        check_transformation(KeepsParams(), (jnp.ones(1), jnp.ones(2))[1:] * 2, check="no_aliases")


def test_wrong_call():
    with pytest.raises(ValueError, match="no invariant is named vmaps; there are: init_avals"):
        check_transformation(Good(), check=["vmaps"])
    with pytest.raises(TypeError, match="adam is a class"):
        check_transformation(gdfx.adam)


def test_error_pickles():
    error = pickle.loads(pickle.dumps(InvariantError("repr", "a message")))
    assert (error.invariant, str(error)) == ("repr", "a message")
    assert isinstance(error, AssertionError)


# trees_close


def test_trees_close():
    tree = {"a": jnp.array([1.0, jnp.inf]), "b": (jnp.int32(3), None), "k": jax.random.key(0)}
    trees_close(tree, tree)
    trees_close(tree, {**tree, "b": (jnp.float32(3), None)}, rtol=0)
    trees_close({"a": np.array([1.0, 1e-9])}, {"a": np.array([1.0, 0.0])})
    trees_close({"a": 1.0}, {"a": 1.5}, atol=0.5)
    trees_close({}, {})


@pytest.mark.parametrize(
    ("found", "expected", "told"),
    [
        ({"a": [1.0, 2.0], "b": 1.0}, {"a": [1.0, 2.5], "b": 1.1}, r"at \['a'\]\[1\]: found 2.0, "),
        ({"a": np.array([1.0, 3.0])}, {"a": np.array([1.0, 4.0])}, r"at \['a'\]\[1\]: found 3"),
        ({"a": np.zeros(3)}, {"a": np.zeros((3, 1))}, r"\['a'\]: found shape \(3,\), .*\(3, 1\)"),
        ({"a": 1.0}, {"b": 1.0}, "different structures"),
        (np.nan, np.nan, "at the root: found nan"),
        (np.inf, 1.0, "at the root: found inf"),
        (1.0, np.inf, "expected inf"),
        (np.inf, -np.inf, "expected -inf"),
        (np.array([1 + 1j]), np.array([1 - 1j]), r"found \(1\+1j\)"),
    ],
)
def test_trees_not_close(found, expected, told):
    with pytest.raises(AssertionError, match=told):
        trees_close(found, expected)


# assert_single_trace


def step(opt, grads, state, params):
    return opt.update(grads, state, params)


def test_one_compilation_serves_all_learning_rates():
    params = example_params()
    state = gdfx.adam(0.1).init(params)
    with assert_single_trace(step) as counted:
        for learning_rate in (0.1, 0.01, 0.001):
            counted(gdfx.adam(learning_rate), params, state, params)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (gdfx.adam(jnp.float32(0.1)), r"\[0\]\[0\]\.learning_rate: found float32\[\], expected weakly"),
        (gdfx.adam(0.1, nesterov=True), "argument has another structure"),
    ],
    ids=["weak_type", "structure"],
)
def test_second_trace_is_blamed(other, told):
    params = example_params()
    state = gdfx.adam(0.1).init(params)

    def run():
        with assert_single_trace(step) as counted:
            counted(gdfx.adam(0.1), params, state, params)
            counted(other, params, state, params)

    with pytest.raises(AssertionError, match=told):
        run()


def test_no_trace_is_no_proof():
    with pytest.raises(AssertionError, match="not called"), assert_single_trace(step):
        pass


def test_an_error_inside_is_not_hidden():
    with pytest.raises(KeyError, match="inside"), assert_single_trace(step):
        raise KeyError("inside")
