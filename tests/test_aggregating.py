"""Gradients of single examples made one update: against optax and NumPy, and with all that gdfx promises."""

import functools
import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from optax.experimental import aggregating as theirs

import gdfx
from gdfx import aggregating
from gdfx.testing import assert_single_trace, check_transformation

pytestmark = pytest.mark.numbers

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2), "b": jnp.array([0.5, -0.5])}
B, STEPS = 4, 6


def examples(seed, params=PARAMS, shape=(B,)):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=(*shape, *p.shape)), p.dtype), params)


def close(found, expected, rtol=1e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_allclose(*(np.asarray(z, np.complex128) for z in (x, y)), rtol, rtol)


def run(opt, batches, params=PARAMS):
    """The updates of each step, and the states after it."""

    def step(carry, grads):
        updates, state = opt.update(grads, carry[1], carry[0])
        params = jax.tree.map(jnp.add, carry[0], updates)
        return (params, state), (updates, state)

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    return jax.jit(lambda: jax.lax.scan(step, (params, opt.init(params)), stacked)[1])()


def run_theirs(opt, batches, params=PARAMS):
    # Step by step: the avals of optax's states change.
    rows, state = [], opt.init(params)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for grads in batches:
            updates, state = opt.update(grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            rows.append((updates, state))
    return rows


def at(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def two_examples(updates, _):
    return jax.tree.map(lambda u: jnp.stack([u, -2 * u, 4 * u]), updates)


PAIRS = {
    "average": (
        lambda m, adam, k: m.process(m_identity(m), m.average_per_element_updates(0), adam(0.1)),
        1,
    ),
    "incremental": (
        lambda m, adam, k: m.process(m_identity(m), m.average_incrementally_updates(0, k), adam(0.1)),
        None,
    ),
    "several_axes": (
        lambda m, adam, k: m.process(m_identity(m), m.average_incrementally_updates([0, 1], k), adam(0.1)),
        None,
    ),
    "no_axis": (
        lambda m, adam, k: m.process(m_identity(m), m.average_incrementally_updates(None, k), adam(0.1)),
        None,
    ),
    "mean_variance": (lambda m, adam, k: m.add_mean_variance_to_opt(adam(0.1), 0.8, 0, k), None),
}


def m_identity(module):
    return gdfx.identity() if module is aggregating else optax.identity()


def check_pair(name, k, seed, rtol):
    make = PAIRS[name][0]
    shape = {"no_axis": (), "several_axes": (2, 2)}.get(name, (B,))
    params = jax.tree.map(lambda p: p.astype(float), PARAMS)
    batches = [examples(seed + i, params, shape) for i in range(STEPS)]
    updates, states = run(make(aggregating, gdfx.adam, k), batches, params)
    for i, (expected, their_state) in enumerate(run_theirs(make(theirs, optax.adam, k), batches, params)):
        close(at(updates, i), expected, rtol)
        if name == "mean_variance" and i + 1 >= k:
            found = aggregating.get_unbiased_mean_and_variance_ema(at(states, i))
            # optax has the reciprocal of the sample size in float32.
            close(found, theirs.get_unbiased_mean_and_variance_ema(their_state), max(rtol, 1e-7))
    return states


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=2)
@given(seed=st.integers(0, 1000), k=st.sampled_from([1, 2, 3]))
def test_optimizers_are_those_of_optax(name, seed, k):
    check_pair(name, PAIRS[name][1] or k, seed, 2e-4)  # adam's first steps are g / |g|, of small means


@pytest.mark.parametrize("name", PAIRS)
def test_optimizers_in_float64(x64, name):
    check_pair(name, PAIRS[name][1] or 2, 7, 1e-10)


def test_states_have_the_fields_of_optax():
    for ours, other in (
        (aggregating.AccumulateAvgUpdatesState, theirs.AccumulateAvgUpdatesState),
        (aggregating.PerElementMeanAndSumSqDiffGradsState, theirs.PerElementMeanAndSumSqDiffGradsState),
        (aggregating.PerElementMeanAndVarianceEMAState, theirs.PerElementMeanAndVarianceEMAState),
    ):
        assert set(other._fields) <= set(ours.__dataclass_fields__)


@pytest.mark.parametrize("k", [2, 3])
def test_accumulated_state_is_that_of_optax(k):
    ours = aggregating.get_per_element_mean_and_sum_sq_diff_grads(0, k)
    other = theirs.get_per_element_mean_and_sum_sq_diff_grads(0, k)
    state, their_state = ours.init(PARAMS), other.init(PARAMS)
    for i in range(5):
        grads = examples(i)
        (mean, aux), state = ours.update(grads, state, PARAMS)
        with jax.numpy_dtype_promotion("standard"):
            (expected, their_aux), their_state = other.update(grads, their_state)
        close((mean, aux["sum_sq_diff_grads"]), (expected, their_aux["sum_sq_diff_grads"]))
        assert int(aux["sample_size"]) == int(their_aux["sample_size"])
        close((state.mean_grads, state.sum_sq_diff_grads), (their_state.mean_grads, their_state.sum_sq_diff_grads))
        assert (state.micro_step, state.ready) == (their_state.micro_step, their_state.ready)


def test_mean_and_variance_are_those_of_all_examples(x64):
    params = jax.tree.map(lambda p: p.astype(float), PARAMS)
    opt = aggregating.add_mean_variance_to_opt(gdfx.sgd(1.0), 0.0, 0, 3)
    batches = [examples(i, params) for i in range(STEPS)]
    updates, states = run(opt, batches, params)
    for last in (2, 5):
        everything = jax.tree.map(lambda *x: np.concatenate(x), *batches[last - 2 : last + 1])
        mean, variance = aggregating.get_unbiased_mean_and_variance_ema(at(states, last))
        close(mean, jax.tree.map(lambda x: jnp.asarray(x.mean(axis=0)), everything), 1e-12)
        close(variance, jax.tree.map(lambda x: jnp.asarray(x.var(axis=0, ddof=1)), everything), 1e-12)
        close(at(updates, last), jax.tree.map(jnp.negative, mean), 1e-12)
        assert all(not x.any() for i in (1, 2) for x in jax.tree.leaves(at(updates, last - i)))


def test_complex_variance_is_real():
    # optax squares the complex deviations.
    params = jax.tree.map(lambda p: p.astype(jnp.complex64), PARAMS)
    parts = [jax.tree.map(np.asarray, examples(i)) for i in (0, 1)]
    grads = jax.tree.map(lambda x, y: (x + 1j * y).astype(np.complex64), *parts)
    opt = aggregating.add_mean_variance_to_opt(gdfx.sgd(1.0))
    _, state = opt.update(jax.tree.map(jnp.asarray, grads), opt.init(params), params)
    mean, variance = aggregating.get_unbiased_mean_and_variance_ema(state)
    close(mean, jax.tree.map(lambda g: jnp.asarray(g.mean(axis=0)), grads))
    close(variance, jax.tree.map(lambda g: jnp.asarray(g.var(axis=0, ddof=1)), grads))


def test_one_example_and_no_update_are_finite():
    opt = aggregating.add_mean_variance_to_opt(gdfx.sgd(1.0))
    state = opt.init(PARAMS)
    for _ in range(2):
        found = aggregating.get_unbiased_mean_and_variance_ema(state)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(found))  # optax: NaN both times
        _, state = opt.update(examples(0, shape=(1,)), state, PARAMS)


def test_half_precision_is_averaged_in_float32():
    params = {"w": jnp.zeros(2, jnp.bfloat16)}
    average = aggregating.process(gdfx.identity(), aggregating.average_incrementally_updates(0, 100), gdfx.scale(1.0))
    state = average.init(params)
    assert {x.dtype for x in jax.tree.leaves(state) if x.ndim} == {jnp.dtype(jnp.float32)}
    total = np.zeros(2)
    for i in range(100):
        grads = {"w": jnp.asarray(1 + np.random.default_rng(i).random((3, 2)), jnp.bfloat16)}
        total += np.asarray(grads["w"], np.float64).mean(axis=0) / 100
        updates, state = average.update(grads, state, params)
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(updates["w"], np.float64), total, rtol=2**-8)


@pytest.mark.parametrize("with_aux", [False, True])
def test_aggregator_of_functions(with_aux):
    def update(grads, state, params, scale=1.0):
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0) * scale, grads)
        return ((mean, {"value": jnp.float32(3)}) if with_aux else mean), state + 1

    seen = []

    def recorded(updates, state, params=None, *, value=None):
        seen.append(value)
        return updates, state

    aggregator = aggregating.Aggregator(init=lambda params: jnp.zeros((), jnp.int32), update=update)
    assert aggregator.per_example
    assert aggregator == aggregator.replace()
    opt = aggregating.process(gdfx.clip(0.5), aggregator, (lambda p: (), recorded), with_aux)
    assert opt.per_example
    grads = examples(0)
    new, state = opt.update(grads, opt.init(PARAMS), PARAMS, scale=jnp.float32(2), unknown=print)
    close(new, jax.tree.map(lambda g: 2 * jnp.clip(g, -0.5, 0.5).mean(axis=0), grads))
    assert int(state.aggregator) == 1
    assert seen == ([3.0] if with_aux else [None])


def test_per_example_clip_is_private_aggregation():
    clip = gdfx.stateless(lambda grads, _: jax.vmap(lambda g: gdfx.clip_by_global_norm(1.0).apply(g, None))(grads))
    ours = aggregating.process(clip, aggregating.average_per_element_updates(), gdfx.sgd(0.1))
    private = gdfx.dpsgd(0.1, 1.0, 0.0, 0)
    grads = examples(0)
    found, expected = (o.update(grads, o.init(PARAMS), PARAMS)[0] for o in (ours, private))
    close(found, expected)


def test_schedules_count_their_own_updates():
    opt = aggregating.process(
        gdfx.identity(), aggregating.average_incrementally_updates(0, 2), gdfx.sgd(lambda count: 1.0 + count)
    )
    ones = [jax.tree.map(jnp.ones_like, examples(0))] * STEPS
    updates, _ = run(opt, ones)
    assert updates["b"][:, 0].tolist() == [0, -1, 0, -2, 0, -3]
    growing = aggregating.accumulate_avg_updates(lambda count: jnp.where(count < 2, 1, 2))
    updates, _ = run(growing, [at(x, 0) for x in ones])
    assert updates["b"][:, 0].tolist() == [1, 1, 0, 1, 0, 1]


def test_one_compilation_and_vmap_over_the_numbers():
    def final(decay, k):
        opt = aggregating.add_mean_variance_to_opt(gdfx.sgd(0.1), decay, 0, k)
        updates, state = [], opt.init(PARAMS)
        for i in range(3):
            new, state = opt.update(examples(i), state, PARAMS)
            updates.append(new)
        return updates, aggregating.get_unbiased_mean_and_variance_ema(state)

    decays, ks = jnp.array([0.5, 0.9, 0.0]), jnp.array([1.0, 2.0, 3.0])
    together = jax.jit(jax.vmap(final))(decays, ks)
    with assert_single_trace(final) as compiled:
        for i in range(3):
            close(compiled(decays[i], ks[i]), at(together, i))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(jax.jacfwd(final)(jnp.float32(0.9), jnp.float32(2))))


def test_value_fn_reaches_the_optimizer():
    # optax passes all extra arguments through lax.cond, which takes no functions.
    value_fn = lambda params: jnp.sum(jnp.square(params["w"]))
    aggregator = aggregating.average_incrementally_updates(0, 2)
    opt = aggregating.process(gdfx.identity(), aggregator, gdfx.polyak_sgd())
    assert opt.needs == gdfx.polyak_sgd().needs
    new, _ = opt.update(examples(0), opt.init(PARAMS), PARAMS, value=jnp.float32(1), value_fn=value_fn)
    close(new, jax.tree.map(jnp.zeros_like, PARAMS))


CHECKED = {
    "average": (
        lambda: aggregating.process(gdfx.clip(1.0), aggregating.average_per_element_updates(), gdfx.trace(0.9)),
        ["update_avals", "state_avals", "dtypes", "edge_trees", "needs", "repr"],
    ),
    "incremental": (
        lambda: aggregating.process(gdfx.identity(), aggregating.average_incrementally_updates(0, 2), gdfx.trace(0.9)),
        ["update_avals", "state_avals", "dtypes", "edge_trees", "needs", "repr"],
    ),
    "mean_variance": (lambda: aggregating.add_mean_variance_to_opt(gdfx.sgd(1e-2), 0.9, 0, 2), None),
}


@pytest.mark.parametrize("name", CHECKED)
def test_contract_of_optimizers(name):
    """The first link makes examples of the gradients, so that all of it applies."""
    make, check = CHECKED[name]
    check_transformation(gdfx.chain(gdfx.stateless(two_examples), make()), complex=True, check=check)


# What is left of the contract for a transform that makes something else than updates of what it is given.
AGGREGATORS = ["init_avals", "no_aliases", "repr", "copies"]


@pytest.mark.parametrize(
    "make",
    [
        aggregating.average_per_element_updates,
        lambda: aggregating.average_incrementally_updates((0, 1), 2),
        aggregating.get_per_element_mean_and_sum_sq_diff_grads,
        lambda: aggregating.add_mean_variance_to_opt(gdfx.sgd(0.1)),
    ],
)
def test_contract_of_aggregators(make):
    check_transformation(make(), complex=True, check=AGGREGATORS)
    assert make().per_example
    assert make().takes == "gradients"


def test_contract_of_links():
    check_transformation(aggregating.accumulate_avg_updates(2), complex=True)
    check_transformation(
        aggregating.average_incrementally_updates(None, 2), check=["update_avals", "state_avals", "repr"]
    )
    squares = functools.partial(jax.tree.map, lambda g: jnp.square(jnp.abs(g)))
    made = lambda params, grads: {"sum_sq_diff_grads": squares(grads), "sample_size": 4}
    check_transformation(aggregating.track_per_element_mean_and_variance_with_ema(0.9), complex=True, extra=made)


def test_properties_of_process():
    average = aggregating.average_per_element_updates()
    opt = aggregating.process(
        gdfx.identity(), gdfx.chain(average, aggregating.accumulate_avg_updates(2)), gdfx.sgd(0.1)
    )
    assert opt.per_example
    assert opt.makes_steps
    assert not aggregating.process(gdfx.identity(), aggregating.accumulate_avg_updates(2), gdfx.sgd(0.1)).per_example
    with pytest.raises(ValueError, match="takes gradients"):
        gdfx.chain(gdfx.sgd(0.1), opt).init(PARAMS)
    averaged = aggregating.process(gdfx.identity(), average, gdfx.chain(gdfx.sgd(0.1), gdfx.average_params(0.5)))
    state = averaged.init(PARAMS)
    _, state = averaged.update(examples(0), state, PARAMS)
    close(
        gdfx.eval_params(averaged, state, PARAMS), gdfx.eval_params(averaged.postprocessor, state.postprocessor, PARAMS)
    )


def test_batch_size():
    grads = examples(0, shape=(2, 3))
    for axes in (0, 1, (0, 1), [1, 0]):
        expected = theirs.get_batch_size_from_per_elt_updates(grads, axes)
        assert aggregating.get_batch_size_from_per_elt_updates(grads, axes) == expected


def test_errors():
    average = aggregating.average_per_element_updates()
    get = aggregating.get_per_element_mean_and_sum_sq_diff_grads()
    uneven = {**examples(0), "w": examples(0)["w"][:2]}
    wrong = {**examples(0), "w": examples(0)["w"][:, :1]}
    for aggregator in (average, get):
        state = aggregator.init(PARAMS)
        with pytest.raises(
            ValueError, match=r"at \['w'\], the gradients have shape \(2, 3, 2\), those at \['b'\] \(4, 2\)"
        ):
            aggregator.update(uneven, state, PARAMS)
        with pytest.raises(ValueError, match=r"at \['w'\], the mean gradients have shape \(1, 2\), expected \(3, 2\)"):
            aggregator.update(wrong, state, PARAMS)
    with pytest.raises(ValueError, match=r"expected the axes \(0, 2\)"):
        aggregating.get_batch_size_from_per_elt_updates(examples(0), (0, 2))
    for axes in (None, (), 1.0, "0"):
        with pytest.raises(TypeError, match="per_elt_axis is"):
            aggregating.average_per_element_updates(axes)
    for make in (
        aggregating.accumulate_avg_updates,
        lambda k: aggregating.average_incrementally_updates(0, k),
        lambda k: aggregating.add_mean_variance_to_opt(gdfx.sgd(0.1), accumulation_steps=k),
    ):
        with pytest.raises(ValueError, match="accumulation_steps is 0, expected at least 1"):
            make(0)
    with pytest.raises(ValueError, match=r"ema_decay is 1\.0, expected"):
        aggregating.add_mean_variance_to_opt(gdfx.sgd(0.1), 1.0)
    with pytest.raises(ValueError, match="has 0 parts of type PerElementMeanAndVarianceEMAState"):
        aggregating.get_unbiased_mean_and_variance_ema(gdfx.adam(0.1).init(PARAMS))
    track = aggregating.track_per_element_mean_and_variance_with_ema()
    with pytest.raises(TypeError, match="sum_sq_diff_grads"):
        track.update(PARAMS, track.init(PARAMS))
    opt = aggregating.process(gdfx.identity(), average, gdfx.sgd(0.1), aggregator_has_aux=True)
    with pytest.raises(TypeError, match="expected a pair of updates and a dict"):
        opt.update(examples(0), opt.init(PARAMS), PARAMS)
    for parts in itertools.permutations((gdfx.identity(), average, gdfx.sgd)):
        with pytest.raises(TypeError, match="sgd is a class"):
            aggregating.process(*parts)
