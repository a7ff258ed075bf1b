"""Population-based training: who is copied and what is changed, on the host, and replays against what was trained."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gdfx
from gdfx.sweeps.population import population, replayed, spliced
from gdfx.sweeps.result import SweepResult
from gdfx.sweeps.spaces import batched

many = settings(max_examples=max(60, settings().max_examples))  # cheap: nothing is compiled
SCORES = st.lists(st.sampled_from([0.0, 1.0, 2.0, 2.5, math.nan, math.inf, -math.inf]), min_size=1, max_size=40)
LOW, HIGH = np.finfo(np.float32).tiny, np.nextafter(np.float32(1), np.float32(0))


def batch(optimizer, values=None, /, **named):
    return jax.tree.map(np.asarray, batched(gdfx.grid(optimizer, values, **named))[0])


def adams(members, **values):
    given = {"learning_rate": np.linspace(0.1, 1, members), **values}
    return jax.tree.map(np.asarray, batched(gdfx.zipped(gdfx.adam, **given))[0])


def exploited(rule, scores, round_index=0, optimizer=None, names=("learning_rate",)):
    optimizer = adams(len(scores)) if optimizer is None else optimizer
    carry = {"w": np.arange(len(scores), dtype=np.float32), "rows": np.arange(2 * len(scores)).reshape(-1, 2)}
    before = jax.tree.map(np.array, (optimizer, carry))
    out = rule.exploit(round_index, np.asarray(scores, float), optimizer, carry, names)
    jax.tree.map(np.testing.assert_array_equal, (optimizer, carry), before)  # pure
    return optimizer, carry, *out


# Who is copied.


@many
@given(SCORES, st.floats(0.01, 0.5), st.integers(0, 5))
def test_the_worst_become_copies_of_the_best(scores, quantile, key):
    members, finite = len(scores), np.isfinite(scores)
    old, _, optimizer, carry, copies = exploited(population(1, quantile, key=key), scores)
    count = max(1, math.floor(quantile * members + 1e-9)) if members > 1 else 0
    ranked = sorted(range(members), key=lambda i: (not finite[i], scores[i] if finite[i] else 0, i))
    best = [i for i in ranked[:count] if finite[i]]
    worst = {*ranked[members - count :], *np.flatnonzero(~finite)} if best else set()
    assert {copy["member"] for copy in copies} == worst
    assert {copy["from"] for copy in copies} <= set(best)
    source = np.arange(members)
    for copy in copies:
        source[copy["member"]] = copy["from"]
    np.testing.assert_array_equal(carry["w"], source)
    np.testing.assert_array_equal(carry["rows"][:, 0], 2 * source)
    stay = [i for i in range(members) if i not in worst]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[stay], y[stay]), optimizer, old)
    np.testing.assert_array_equal(optimizer.b1, old.b1)  # not named
    for copy in copies:
        i, rate = copy["member"], optimizer.learning_rate[copy["member"]]
        ratio = rate / old.learning_rate[copy["from"]]
        assert min(abs(ratio - 0.8), abs(ratio - 1.25)) < 1e-6
        assert np.float32(copy["values"]["learning_rate"]) == rate
        assert rate.dtype == np.float32
        assert type(copy["values"]["learning_rate"]) is float
        assert type(i) is type(copy["from"]) is int


def test_draws_are_of_the_key_the_round_and_the_name():
    scores = np.arange(40.0)
    copies = lambda rule, round_index=0, **more: exploited(rule, scores, round_index, **more)[-1]
    first = copies(population(1, 0.5))
    assert first == copies(population(1, 0.5))
    assert first == copies(population(1, 0.5, key=jax.random.key(0)))
    assert first != copies(population(1, 0.5), 1)
    assert first != copies(population(1, 0.5, key=1))
    assert len({copy["from"] for copy in first}) > 8  # not all of one
    both = copies(population(1, 0.5), optimizer=adams(40, b1=np.full(40, 0.9)), names=("b1", "learning_rate"))
    for one, two in zip(first, both, strict=True):
        assert two.pop("values") == {**one.pop("values"), "b1": pytest.approx(0.9, abs=0.03)}
        assert one == two


def test_many_seeds_and_dtypes_go_along():
    _, carry, _, new, copies = exploited(population(1), [0.0, math.nan])
    assert copies[0]["member"] == 1
    assert {name: x.dtype for name, x in new.items()} == {name: x.dtype for name, x in carry.items()}
    new["w"][1] = 5  # what comes of it is the caller's
    assert carry["w"][1] == 1


# What is changed.


def ends(value, **options):
    """What comes of a hyperparameter when it goes up for ever, and down for ever."""
    found = []
    for factor in (0.5, 2.0):
        optimizer = options["make"](value)
        for round_index in range(300):
            optimizer, _, copies = population(1, 0.5, (factor,)).exploit(
                round_index, np.array([0.0, math.inf]), optimizer, {}, [options["name"]]
            )
            optimizer = jax.tree.map(lambda x: x[::-1], optimizer)  # the copy is the next to be copied
        found.append(copies[0]["values"][options["name"]])
    return found


@pytest.mark.parametrize(
    ("make", "name", "value", "expected"),
    [
        (lambda x: batch(gdfx.adam, learning_rate=[x, x]), "learning_rate", 0.1, [0, np.finfo(np.float32).max]),
        (lambda x: batch(gdfx.adam(0.1), b1=[x, x]), "b1", 0.9, [HIGH, 0]),
        (lambda x: batch(gdfx.rprop(0.1), eta_minus=[x, x]), "eta_minus", 0.5, [HIGH, LOW]),
        (lambda x: batch(gdfx.rprop(0.1), eta_plus=[x, x]), "eta_plus", 1.2, [np.nextafter(np.float32(1), 2), None]),
        (
            lambda x: batch(gdfx.lookahead(gdfx.sgd(0.1), slow_step_size=x), {"slow_step_size": [x, x]}),
            "slow_step_size",
            0.5,
            [0, 1],
        ),
        (lambda x: batch(gdfx.scale(x), {"step_size": [x, x]}), "step_size", -0.1, [0, -np.finfo(np.float32).max]),
    ],
)
def test_values_stay_in_their_ranges(make, name, value, expected):
    for end, wanted in zip(ends(value, make=make, name=name), expected, strict=True):
        if wanted is not None:
            assert np.float32(end) == pytest.approx(wanted, rel=1e-6, abs=1e-37)
        gdfx.replace(jax.tree.map(lambda x: float(x[0]), make(value)), {name: end})  # the constructor allows it


def test_a_decay_changes_by_its_distance_to_one():
    optimizer = batch(gdfx.adam(0.1), b2=[0.99, 0.99])
    values = {
        copy["values"]["b2"]
        for i in range(9)
        for copy in population(1, 0.5).exploit(i, np.array([1.0, 2.0]), optimizer, {}, ["b2"])[-1]
    }
    assert sorted(values) == pytest.approx([0.9875, 0.992])


def test_which_are_changed_by_default():
    optimizer = gdfx.chain(gdfx.clip_by_global_norm(1.0), gdfx.adam(gdfx.warmup_cosine(0.1, 10, 100)))
    rates, norm = "transforms[1].learning_rate", "transforms[0].max_norm"
    one = batch(optimizer, {f"{rates}.peak": [0.1, 0.2], f"{rates}.warmup": [5, 10], norm: [1, 2]})
    two = batch(gdfx.accumulate(gdfx.sgd(0.1), 2), {"transform.learning_rate": [0.1, 0.2], "every": [1, 2]})
    three = batch(gdfx.adafactor(0.1), decay_offset=[0, 10])
    names = population(1).names([one, two, three])
    assert names == [[norm, f"{rates}.peak"], ["transform.learning_rate"], []]
    named = population(1, hyperparameters=["transforms[1].b1", "transform.learning_rate"])
    assert named.names([one, two]) == [["transforms[1].b1"], ["transform.learning_rate"]]
    for name in names[0]:
        gdfx.replace(optimizer, {name: 0.5})  # raises for what is no path


def test_rungs():
    assert population(10).rungs(35, 2) == [10, 20, 30]
    assert population(10).rungs(30, 2) == [10, 20]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"every": 0}, ValueError, "every is 0"),
        ({"every": 1, "quantile": 0.6}, ValueError, "quantile is 0.6, expected more than 0 and at most 0.5"),
        ({"every": 1, "factors": ()}, TypeError, "factors is"),
        ({"every": 1, "factors": 2.0}, TypeError, "factors is 2.0, expected a list"),
        ({"every": 1, "factors": (0.5, 0)}, ValueError, "factors are"),
        ({"every": 1, "hyperparameters": "b1"}, TypeError, "hyperparameters is 'b1', expected a list"),
        ({"every": 1, "key": "a"}, TypeError, "key is 'a'"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        population(**options)


def test_bad_sweeps():
    with pytest.raises(ValueError, match="nothing would be copied in 10 steps of 4 members"):
        population(10).rungs(10, 4)
    with pytest.raises(ValueError, match="nothing would be copied"):
        population(1).rungs(10, 1)
    alike = batch(gdfx.adam, learning_rate=[0.1, 0.1])
    with pytest.raises(ValueError, match="no hyperparameter differs between members"):
        population(1).names([alike])
    with pytest.raises(ValueError, match="no number at 'rate', expected some of: learning_rate, b1"):
        population(1, hyperparameters=["learning_rate", "rate"]).names([alike])
    accumulated = batch(gdfx.accumulate(gdfx.sgd(0.1), 2), {"every": [1, 2]})
    with pytest.raises(
        ValueError, match=r"every is not changed on the way, expected some of: transform\.learning_rate"
    ):
        population(1, hyperparameters=["every"]).names([accumulated])


# A population in training, and replays of its members.

STEPS, EVERY, MEMBERS = 24, 5, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, 8, 3)).astype(np.float32)
Y = np.sin(X @ np.array([1.0, -2.0, 0.5], np.float32))
START = np.array([0.3, 0.1, -0.2], np.float32)


def step(optimizer, held, batch):
    params, state = held
    loss, grads = jax.value_and_grad(lambda w: jnp.mean((jnp.tanh(batch[0] @ w) - batch[1]) ** 2))(params)
    updates, state = optimizer.update(grads, state, params)
    return (gdfx.apply_updates(params, updates), state), loss


def part(optimizer, held, batches):
    return jax.lax.scan(functools.partial(step, optimizer), held, batches)


def trained(optimizers):
    """A population's training: its result, and the params of each member at the end."""
    rule = population(EVERY, 0.34)
    optimizer = jax.tree.map(np.asarray, batched(optimizers)[0])
    first = [jax.tree.map(lambda x, i=i: float(str(x[i])), optimizer) for i in range(MEMBERS)]
    (names,) = rule.names([optimizer])
    start = jax.vmap(lambda o: (jnp.asarray(START), o.init(jnp.asarray(START))))
    held, some = jax.jit(start)(optimizer), jax.jit(jax.vmap(part, (0, 0, None)))
    losses, lineage, begin = [], [], 0
    for i, end in enumerate([*rule.rungs(STEPS, MEMBERS), STEPS]):
        held, loss = some(optimizer, held, (X[begin:end], Y[begin:end]))
        losses.append(np.asarray(loss))
        if end < STEPS:
            scores, held = losses[-1].mean(axis=1), jax.tree.map(np.asarray, held)
            optimizer, held, copies = rule.exploit(i, scores, optimizer, held, names)
            lineage += [{"step": end, **copy} for copy in copies]
        begin = end
    history = np.concatenate(losses, axis=1)[:, None]
    none = np.zeros((MEMBERS, 1), bool)
    return SweepResult(
        points=[{"member": i} for i in range(MEMBERS)],
        optimizers=first,
        seeds=[0],
        params=[np.asarray(held[0][i])[None] for i in range(MEMBERS)],
        history={"loss": history},
        metrics={"train_loss": history[..., -4:].mean(axis=-1)},
        diverged=none,
        diverged_at=np.where(none, 0, -1),
        culled_at=np.full(MEMBERS, -1),
        errors={},
        metric="train_loss",
        mode="min",
        lineage=lineage,
    )


RATES = np.geomspace(0.003, 1, MEMBERS)


@pytest.mark.parametrize(
    "optimizers",
    [
        gdfx.zipped(gdfx.adamw, learning_rate=RATES, b1=np.linspace(0.5, 0.9, MEMBERS)),
        gdfx.zipped(lambda peak: gdfx.chain(gdfx.clip(1.0), gdfx.sgd(gdfx.warmup_cosine(peak, 7, 30))), peak=RATES),
        gdfx.zipped(gdfx.accumulate(gdfx.adam(0.1), 3), {"transform.learning_rate": RATES}),
    ],
    ids=["numbers", "in a schedule", "accumulated"],
)
def test_a_replay_repeats_what_became_the_member(optimizers):
    result = trained(optimizers)
    one, seen = jax.jit(part), set()
    for member in (None, *range(MEMBERS)):
        optimizer = replayed(result, member)
        assert eval(repr(optimizer), vars(gdfx) | {"schedules": gdfx.schedules, "spliced": spliced}) == optimizer
        held, losses = one(optimizer, (jnp.asarray(START), optimizer.init(jnp.asarray(START))), (X, Y))
        row = result.best_index if member is None else member
        np.testing.assert_allclose(held[0], result.params[row][0], rtol=1e-5, atol=1e-6)
        copied = max([copy["step"] for copy in result.lineage if copy["member"] == row], default=0)
        np.testing.assert_allclose(losses[copied:], result.history["loss"][row, 0, copied:], rtol=1e-5)
        seen.add(copied)
    assert len(seen) > 1


def test_spliced_schedules_go_by_the_whole_count():
    cosine = gdfx.schedules.cosine
    schedule = spliced((cosine(1.0, 10), cosine(2.0, 10), cosine(0.5, 20)), [3, 6])
    counts = np.arange(12.0, dtype=np.float32)
    parts = [np.asarray(part(counts)) for part in schedule.schedules]
    np.testing.assert_allclose(
        jax.vmap(schedule)(counts), np.where(counts < 3, parts[0], np.where(counts < 6, *parts[1:]))
    )
    with pytest.raises(ValueError, match=r"boundaries is .*, expected 2 numbers"):
        spliced(schedule.schedules, (3,))


def test_replays_that_there_are_not():
    result = trained(gdfx.zipped(gdfx.sgd, learning_rate=RATES))
    never = gdfx.conditionally_mask(gdfx.sgd(0.1), lambda count: count < 3)
    inside = [gdfx.replace(never, {"transform.learning_rate": float(rate)}) for rate in RATES]
    lineage = [{**copy, "values": {"transform.learning_rate": 0.5}} for copy in result.lineage]
    fields = {**vars(result), "optimizers": inside, "lineage": lineage}
    with pytest.raises(ValueError, match=r"transform\.learning_rate changed within conditionally_mask"):
        replayed(SweepResult(**fields), result.lineage[-1]["member"])
    with pytest.raises(ValueError, match="no lineage"):
        replayed(SweepResult(**{**vars(result), "lineage": None}))
    with pytest.raises(IndexError):
        replayed(result, MEMBERS)
    untouched = SweepResult(**{**vars(result), "lineage": []})
    assert replayed(untouched, 2) == result.optimizers[2]
