"""`grid`, `zipped`, `sample`: which optimizers are in the batch, and what is said of those that cannot be."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import gdfx
from gdfx.sweeps.distributions import choice, log_uniform, uniform
from gdfx.sweeps.spaces import batched, grid, sample, zipped

RATES = [0.1, 0.01, 0.001]


def members(batch):
    """The optimizers in a batch, with plain numbers."""
    optimizer, count = batched(batch)
    return [jax.tree.map(lambda x, i=i: float(str(np.asarray(x)[i])), optimizer) for i in range(count)]


def plain(optimizers):
    return [jax.tree.map(float, o) for o in optimizers]


def warmed_up(peak, decay=0.9):
    return gdfx.adam(gdfx.warmup_cosine(peak, 2, 6), b1=decay)


def clipped(norm, rate):
    return gdfx.chain(gdfx.clip_by_global_norm(norm), gdfx.adam(rate))


def adam_with_or_without_momentum(learning_rate):
    return gdfx.adam(learning_rate, b1=0.9 if learning_rate > 0.05 else 0.0)


SPACES = {
    "zipped": (
        lambda: zipped(gdfx.adamw, learning_rate=RATES, weight_decay=(0, 0.5, 1), b2=0.9),
        lambda: (gdfx.adamw(r, b2=0.9, weight_decay=w) for r, w in zip(RATES, (0.0, 0.5, 1.0), strict=True)),
    ),
    "zipped of a function": (
        lambda: zipped(warmed_up, peak=np.array(RATES), decay=[0.1, 0.2, 0.3]),
        lambda: (warmed_up(r, d) for r, d in zip(RATES, [0.1, 0.2, 0.3], strict=True)),
    ),
    "names in a dict": (
        lambda: grid(gdfx.adam, {"learning_rate": RATES}, b1=[0.5, 0]),
        lambda: (gdfx.adam(r, b1=b) for r in RATES for b in (0.5, 0.0)),
    ),
    "an instance": (
        lambda: grid(gdfx.adam(1.0, nesterov=True), learning_rate=RATES, b1=0.5),
        lambda: (gdfx.adam(r, b1=0.5, nesterov=True) for r in RATES),
    ),
    "paths in a chain": (
        lambda: grid(clipped(1, 1), {"transforms[0].max_norm": [1, 2], "transforms[1].learning_rate": RATES}),
        lambda: (clipped(c, r) for c in (1, 2) for r in RATES),
    ),
    "a number in a schedule": (
        lambda: zipped(warmed_up(1.0), {"learning_rate.peak": RATES}, b1=[0.1, 0.2, 0.3]),
        lambda: (warmed_up(r, d) for r, d in zip(RATES, [0.1, 0.2, 0.3], strict=True)),
    ),
    "in the place of a schedule": (
        lambda: grid(warmed_up(1.0), learning_rate=RATES),
        lambda: (gdfx.adam(r) for r in RATES),
    ),
    "in the place of None": (
        lambda: grid(gdfx.sgd(0.1), momentum=[0.5, 0.9]),
        lambda: (gdfx.sgd(0.1, momentum=m) for m in (0.5, 0.9)),
    ),
    "groups": (
        lambda: grid(
            gdfx.partition({"a": gdfx.sgd(1.0), "b": gdfx.adam(1.0)}, {"w": "a", "v": "b"}),
            {'transforms["a"].learning_rate': RATES},
        ),
        lambda: (gdfx.partition({"a": gdfx.sgd(r), "b": gdfx.adam(1.0)}, {"w": "a", "v": "b"}) for r in RATES),
    ),
    "a branch on a number": (
        lambda: grid(adam_with_or_without_momentum, learning_rate=RATES),
        lambda: map(adam_with_or_without_momentum, RATES),
    ),
    "a partial function": (
        lambda: grid(functools.partial(gdfx.adam, b1=0.5), learning_rate=RATES),
        lambda: (gdfx.adam(r, b1=0.5) for r in RATES),
    ),
    "any keywords": (
        lambda: grid(lambda **kwargs: gdfx.adam(**kwargs), learning_rate=RATES),
        lambda: map(gdfx.adam, RATES),
    ),
    "one": (lambda: grid(gdfx.adam, learning_rate=[0.1]), lambda: [gdfx.adam(0.1)]),
    "a choice of one": (
        lambda: sample(gdfx.adam, 2, learning_rate=choice([0.1]), b1=0.5),
        lambda: [gdfx.adam(0.1, b1=0.5)] * 2,
    ),
}


@pytest.mark.parametrize(("batch", "singles"), SPACES.values(), ids=SPACES.keys())
def test_the_members(batch, singles):
    assert members(batch()) == plain(singles())


def test_a_batch_is_what_vmap_makes():
    made, mapped = grid(clipped, norm=[0.5, 1.5], rate=0.1), jax.vmap(lambda c: clipped(c, 0.1))(jnp.array([0.5, 1.5]))
    assert jax.tree.structure(made) == jax.tree.structure(mapped)
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype(jnp.float32)}
    assert {x.shape for x in jax.tree.leaves(made)} == {(2,)}
    np.testing.assert_array_equal(made.transforms[0].max_norm, mapped.transforms[0].max_norm)


def test_the_batch_is_in_double_precision_under_x64(x64):
    for batch in (grid(gdfx.adam, learning_rate=RATES), sample(gdfx.adam, 5, learning_rate=uniform(0, 1))):
        assert {x.dtype for x in jax.tree.leaves(batch)} == {jnp.dtype(jnp.float64)}
    assert grid(gdfx.adam, learning_rate=RATES).learning_rate.tolist() == RATES


def test_nothing_is_compiled(caplog):
    key = jax.random.PRNGKey(5)
    with jax.log_compiles(True):
        sample(gdfx.adam, 37, key=key, learning_rate=log_uniform(1e-3, 1), b1=uniform(0, 0.99))
        grid(warmed_up(0.1), {"learning_rate.peak": np.linspace(0.1, 0.2, 41)}, b1=[0.1, 0.2])
    assert not [r.message for r in caplog.records if "Compiling" in r.message]


@pytest.mark.parametrize("make", [gdfx.noisy_sgd, gdfx.noisy_sgd(0.1)])
def test_seeds_of_noise_are_values_too(make):
    batch = grid(make, learning_rate=[0.1, 0.2], key=[3, 4])
    assert batch.key.dtype == np.uint32
    assert batch.key.tolist() == [3, 4, 3, 4]
    batch = grid(make, learning_rate=[0.1, 0.2], key=jax.random.key(3))
    np.testing.assert_array_equal(jax.random.key_data(batch.key), [[0, 3], [0, 3]])


def test_the_key_of_an_optimizer_is_not_that_of_the_draws():
    batch = sample(gdfx.noisy_sgd, 3, 1, {"key": 7, "learning_rate": uniform(0, 1)})
    assert batch.key.tolist() == [7, 7, 7]
    np.testing.assert_array_equal(batch.learning_rate, rates(3, 1, learning_rate=uniform(0, 1)))


# Draws.


def rates(*args, **kwargs):
    return np.asarray(sample(gdfx.adam, *args, **kwargs).learning_rate)


def test_draws_are_those_of_the_key():
    space = {"learning_rate": log_uniform(1e-4, 1)}
    first = rates(50, 3, **space)
    for key in (np.int64(3), jax.random.key(3), jax.random.PRNGKey(3)):
        np.testing.assert_array_equal(rates(50, key, space), first)
    assert not np.isin(rates(50, 4, **space), first).any()
    assert len(np.unique(first)) == 50
    np.testing.assert_array_equal(rates(50, **space), rates(50, key=0, **space))


def test_more_members_or_names_change_no_draw():
    first = rates(5, 3, learning_rate=uniform(0, 1))
    np.testing.assert_array_equal(rates(50, 3, learning_rate=uniform(0, 1))[:5], first)
    both = sample(gdfx.adam, 5, 3, b1=uniform(0, 1), learning_rate=uniform(0, 1))
    np.testing.assert_array_equal(both.learning_rate, first)
    assert not np.isin(both.b1, first).any()


def test_draws_follow_their_distributions():
    n = 4000
    batch = sample(
        gdfx.adam, n, 1, learning_rate=log_uniform(1e-4, 1), b1=uniform(0.5, 0.9), eps=choice([1e-8, 1e-6, 1e-4])
    )
    quantiles = np.arange(1, n + 1) / n
    logarithm = np.sort(np.log10(np.asarray(batch.learning_rate))) / 4 + 1
    straight = (np.sort(np.asarray(batch.b1)) - 0.5) / 0.4
    for found in (logarithm, straight):
        assert np.abs(found - quantiles).max() < 1.95 / math.sqrt(n)  # Kolmogorov's, at 0.1 %
    values, counts = np.unique(np.asarray(batch.eps), return_counts=True)
    np.testing.assert_array_equal(values, np.float32([1e-8, 1e-6, 1e-4]))
    assert (np.abs(counts - n / 3) < 4 * math.sqrt(n * 2 / 9)).all()
    assert np.abs(np.corrcoef([logarithm[::-1], batch.b1, batch.eps])[1, 2]) < 4 / math.sqrt(n)


@hypothesis.given(st.floats(1e-30, 1e30), st.floats(1 + 1e-12, 1e6), st.lists(st.floats(0, 1, exclude_max=True)))
def test_draws_stay_between_the_limits(low, ratio, u):
    hypothesis.assume(low * ratio > low)
    for kind in (uniform, log_uniform):
        drawn = kind(low, low * ratio).quantiles(np.array([0, np.nextafter(1, 0), *u]))
        assert (low <= drawn).all()
        assert (drawn <= low * ratio).all()
        assert drawn[0] == pytest.approx(low)
        assert drawn[1] == pytest.approx(low * ratio)


@hypothesis.given(st.lists(st.floats(-1e3, 1e3), min_size=1), st.floats(0, 1, exclude_max=True))
def test_a_choice_is_one_of_the_values(values, u):
    assert choice(values).quantiles(np.array([u]))[0] in values


def test_distributions_are_values():
    assert choice([1, 2]) == choice(np.array([1, 2])) != choice([1, 2.5])
    assert hash(choice([1])) == hash(choice((1,)))
    for distribution in (uniform(0, 1), log_uniform(1e-3, 1), choice([0.5, 1])):
        assert eval(repr(distribution)) == distribution


# What cannot be.


def optax_sgd(learning_rate):
    return optax.sgd(learning_rate)


def of_two_kinds(rate):
    return gdfx.adam(rate) if rate > 0.05 else gdfx.sgd(rate)


BAD = {
    "unequal": (lambda: zipped(gdfx.adam, learning_rate=[1, 2], b1=[0.5]), ValueError, "learning_rate has 2, b1 has 1"),
    "unknown name": (
        lambda: grid(gdfx.adam, lr=RATES),
        TypeError,
        r"grid: adam got an unexpected keyword argument 'lr', expected some of: learning_rate, b1,",
    ),
    "unknown to all": (lambda: grid(gdfx.adam, learning_rate=RATES, beta=1), TypeError, "'beta', expected some of"),
    "unknown to a function": (lambda: sample(warmed_up, 3, pek=uniform(0, 1)), TypeError, "some of: peak, decay"),
    "path of a kind": (
        lambda: grid(gdfx.adam, {"learning_rate.peak": RATES}),
        TypeError,
        r"for a path give an optimizer, as in adam\(",
    ),
    "unknown path": (
        lambda: grid(warmed_up(0.1), {"learning_rate.peek": RATES}),
        TypeError,
        r"nothing at the path 'learning_rate.peek' of adam, expected some of: .*learning_rate\.peak.*, b1,",
    ),
    "unknown fixed path": (lambda: grid(gdfx.adam(0.1), b1=[0.5], lr=1), KeyError, "nothing at the path 'lr'"),
    "static": (lambda: grid(gdfx.sgd, learning_rate=0.1, nesterov=[True, False]), TypeError, "a list with one batch"),
    "static in an instance": (
        lambda: grid(clipped(1, 1), {"transforms[1].nesterov": [True, False]}),
        TypeError,
        r"grid: transforms\[1\].nesterov of Chain is compiled into the program",
    ),
    "static draws": (lambda: sample(gdfx.adam, 2, nesterov=choice([0, 1])), TypeError, "nesterov of adam is compiled"),
    "two kinds": (lambda: grid(of_two_kinds, rate=RATES), ValueError, "adam.* and sgd.* differ in more than numbers"),
    "nothing": (lambda: zipped(gdfx.adam(0.1)), ValueError, "zipped: nothing is varied"),
    "no draws": (lambda: sample(gdfx.adam, 2, learning_rate=0.1), ValueError, "of adam a distribution"),
    "empty": (lambda: zipped(gdfx.adam, learning_rate=[]), ValueError, "zipped: learning_rate is empty"),
    "not allowed": (lambda: zipped(gdfx.adam(0.1), b1=[0.5, 1.5]), ValueError, "adam: b1 is 1.5"),
    "drawn, not allowed": (lambda: sample(gdfx.adam, 9, learning_rate=uniform(-2, -1)), ValueError, "at least 0"),
    "complex": (lambda: grid(gdfx.adam, learning_rate=[1j]), TypeError, "dtype complex128, expected a list of num"),
    "a batch of batches": (
        lambda: grid(grid(gdfx.adam, learning_rate=RATES), b1=[0.5]),
        TypeError,
        r"learning_rate of adam has shape \(3,\), expected one optimizer",
    ),
    "twice": (lambda: grid(gdfx.adam, {"b1": [0.5]}, b1=[0.5]), TypeError, "b1 is given twice"),
    "no dict": (lambda: grid(gdfx.adam, RATES), TypeError, "values is .*, expected a dict"),
    "not an optimizer": (lambda: grid(0.1, learning_rate=RATES), TypeError, "optimizer is 0.1"),
    "not one of gdfx": (lambda: grid(optax_sgd, learning_rate=RATES), TypeError, "optax_sgd made a .*inject_hyperpara"),
    "a distribution in a grid": (lambda: grid(gdfx.adam, learning_rate=uniform(0, 1)), TypeError, "use gdfx.sample"),
    "a list in a sample": (
        lambda: sample(gdfx.adam, 2, learning_rate=RATES),
        TypeError,
        r"expected a distribution, such as gdfx.distributions.choice\(\[0.1",
    ),
    "no members": (lambda: sample(gdfx.adam, 0, learning_rate=uniform(0, 1)), ValueError, "sample: n is 0"),
    "a bad key": (lambda: sample(gdfx.adam, 2, 0.5, learning_rate=uniform(0, 1)), TypeError, "key is 0.5"),
    "uniform": (lambda: uniform(1, 0), ValueError, "uniform: low is 1 and high is 0, expected low < high"),
    "uniform to infinity": (lambda: uniform(0, math.inf), ValueError, "both finite"),
    "log_uniform": (lambda: log_uniform(0, 1), ValueError, "low is 0 and high is 1, expected 0 < low < high"),
    "choice of nothing": (lambda: choice([]), TypeError, "at least one number"),
    "choice of words": (lambda: choice(["a"]), TypeError, "at least one number"),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD.keys())
def test_spaces_that_cannot_be(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("batch", [zipped, sample])
def test_a_batch_goes_through_vmap(batch):
    space = {"learning_rate": RATES} if batch is zipped else {"n": 3, "learning_rate": log_uniform(1e-3, 1)}
    many, count = batched(batch(gdfx.sgd, **space))
    updates = jax.vmap(lambda optimizer: optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))[0])(many)
    np.testing.assert_allclose(updates, -np.outer(many.learning_rate, np.ones(2)))
    assert count == 3
