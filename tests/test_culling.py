"""Rules of culling: counts and budgets against the formulas of the papers, for any numbers of members and steps."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gdfx.sweeps.culling import CullingRule, halving, hyperband, median_rule

many = settings(max_examples=max(100, settings().max_examples))  # cheap: nothing is compiled
factors = st.integers(2, 5)


def run(rule, total, curves):
    """The rungs, who was alive after each, and the steps made in all; `curves(steps)` are scores of all members."""
    members = len(curves(1))
    rungs = rule.rungs(total, members)
    assert rungs == sorted(set(rungs))
    assert rungs[0] >= 1
    assert rungs[-1] < total
    alive, history, after, made, before = np.ones(members, bool), [], [], 0, 0
    for i, steps in enumerate(rungs):
        made += int(alive.sum()) * (steps - before)
        scores = np.where(alive, curves(steps), np.nan)
        keep = rule.keep(i, steps, scores, alive.copy(), list(history))
        assert keep.shape == (members,)
        assert keep.dtype == bool
        assert keep.any()
        assert not (keep & ~alive).any()
        np.testing.assert_array_equal(keep, rule.keep(i, steps, scores, alive, history))  # pure
        history.append(scores)
        alive, before = keep, steps
        after.append(keep)
    return rungs, after, made + int(alive.sum()) * (total - before)


def noise(members, seed=0):
    rng = np.random.default_rng(seed)
    return lambda steps: np.round(rng.normal(size=members), 1)  # with ties


def fixed(scores):
    return lambda steps: np.asarray(scores, float)


# Halving.


@many
@given(factors, st.integers(2, 300), st.integers(10, 5000), st.one_of(st.none(), st.integers(1, 9)), st.integers(0, 9))
def test_halving_keeps_as_many_as_in_the_paper(factor, members, total, first, seed):
    members = max(members, factor)
    rungs, after, made = run(halving(factor, first), total, noise(members, seed))
    assert [int(keep.sum()) for keep in after] == [members // factor ** (i + 1) for i in range(len(rungs))]
    assert min(keep.sum() for keep in after) >= 1
    rounds = max(k for k in range(9) if factor**k <= members)
    if first is None:
        rounds = min(rounds, 3)
        assert rungs == [total // factor**k for k in range(rounds, 0, -1) if factor**k <= total]
    else:
        assert rungs == [first * factor**k for k in range(rounds) if first * factor**k < total]
    # In the paper n_i members make r_i steps from the start at each rung; here they go on.
    left = [members, *(int(keep.sum()) for keep in after)]
    assert made <= sum(n * r for n, r in zip(left, [*rungs, total], strict=True))
    if first is None and factor**rounds <= total:
        assert made <= (rounds + 1) * members * total / factor**rounds
    assert made < members * total


@many
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf, -math.inf]), min_size=3, max_size=60))
def test_halving_keeps_the_best_and_of_equals_the_first(scores):
    _, after, _ = run(halving(3), 1000, fixed(scores))
    comparable = [s if math.isfinite(s) else math.inf for s in scores]
    ranked = sorted(range(len(scores)), key=lambda i: (comparable[i], i))
    for keep in after:
        assert set(np.flatnonzero(keep)) == set(ranked[: keep.sum()])


def test_halving_of_27():
    scores = np.arange(27)[::-1]
    rungs, after, made = run(halving(), 81, fixed(scores))
    assert rungs == [3, 9, 27]
    assert [np.flatnonzero(keep).tolist() for keep in after] == [list(range(18, 27)), [24, 25, 26], [26]]
    assert made == 27 * 3 + 9 * 6 + 3 * 18 + 54
    assert halving(first=10).rungs(81, 27) == [10, 30]
    assert halving(2).rungs(100, 5) == [25, 50]
    assert halving(first=1).rungs(1000, 243) == [1, 3, 9, 27, 81]  # math.log(243, 3) is less than 5
    assert halving(3).rungs(1000, 243) == [37, 111, 333]
    assert halving(3).rungs(10, 243) == [1, 3]


# Hyperband.


@many
@given(factors, st.integers(2, 4), st.integers(0, 3), st.integers(0, 9))
def test_hyperband_is_that_of_the_paper(factor, brackets, rest, seed):
    s_max, total = brackets - 1, factor ** (brackets - 1) * (1 + rest) + rest
    rule = hyperband(factor, brackets)
    sizes = [math.ceil(brackets * factor**s / (s + 1)) for s in range(s_max, -1, -1)]  # n, of algorithm 1
    assert rule.sizes() == rule.sizes(sum(sizes)) == sizes
    rungs, after, made = run(rule, total, noise(sum(sizes), seed))
    assert rungs == [total // factor**k for k in range(s_max, 0, -1)]
    left = lambda s, n, i: n // factor**i if i <= s else 0
    for j, keep in enumerate(after):  # bracket s has made its rung i at rung j = s_max - s + i
        kept = [left(s, n, max(0, j - (s_max - s) + 1)) for s, n in zip(range(s_max, -1, -1), sizes, strict=True)]
        assert keep.sum() == sum(kept)
    budget = sum(
        (n // factor**i) * (total // factor ** (s - i))
        for s, n in zip(range(s_max, -1, -1), sizes, strict=True)
        for i in range(s + 1)
    )
    assert made <= budget


@many
@given(factors, st.integers(2, 4), st.integers(5, 200), st.integers(0, 9))
def test_hyperband_of_any_number_of_members(factor, brackets, members, seed):
    rule = hyperband(factor, brackets)
    sizes = rule.sizes(members)
    assert sum(sizes) == members
    assert all(abs(n - members * share / sum(rule.sizes())) < 1 for n, share in zip(sizes, rule.sizes(), strict=True))
    _, after, _ = run(rule, 1000, noise(members, seed))
    assert after[-1].sum() >= sizes[-1]
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(after))


def test_the_bracket_that_is_not_culled_guards_against_late_starters():
    rule = hyperband()
    ranks = np.arange(49)
    _, after, _ = run(rule, 270, fixed(ranks))
    assert after[-1].sum() == 1 + 1 + 2 + 4
    assert after[-1][ranks > 24].any()  # whose bracket is not compared
    assert rule.sizes() == [27, 12, 6, 4]
    assert ranks[after[-1]].max() - ranks[after[-1]].min() > 24  # brackets are spread over the members
    assert np.sort(ranks[after[-1]])[-4] < 45


# The median.


def reference(rule, curves, total):
    """Vizier's rule, member by member."""
    rungs = rule.rungs(total, len(curves(1)))
    told = [[] for _ in curves(1)]
    alive, after = [True] * len(told), []
    for steps in rungs:
        scores = curves(steps)
        for i, mine in enumerate(told):
            if alive[i]:
                mine.append(scores[i])
        median = np.median([sum(mine) / len(mine) for mine in told])
        alive = [a and not min(mine) > median for a, mine in zip(alive, told, strict=True)]
        after.append(list(alive))
    return after


@many
@given(st.integers(2, 20), st.integers(5, 500), st.integers(0, 400), st.integers(0, 99))
def test_the_median_rule_is_that_of_the_paper(members, total, warmup, seed):
    scores = np.random.default_rng(seed).normal(size=(total + 1, members))
    rule = median_rule(every=max(1, total // 7), warmup=min(warmup, total // 2))
    rungs, after, made = run(rule, total, lambda steps: scores[steps])
    assert rungs == [s for s in range(1, total) if s % rule.every == 0 and s >= rule.warmup]
    assert [keep.tolist() for keep in after] == reference(rule, lambda steps: scores[steps], total)
    assert made <= members * total


@many
@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf]), min_size=6, max_size=6), min_size=4)
)
def test_the_median_rule_drops_what_is_not_finite_but_never_all(columns):
    rule, members = median_rule(every=1), 6
    _, after, _ = run(rule, len(columns), lambda steps: np.array(columns[steps - 1]))
    for steps, keep in enumerate(after, start=1):
        assert np.isfinite(np.array(columns[steps - 1])[keep]).all() or keep.sum() == 1
    assert len(after[0]) == members


def test_the_median_rule_by_hand():
    rule = median_rule(every=10, warmup=20)
    assert rule.rungs(50, 4) == [20, 30, 40]
    assert median_rule().rungs(1000, 4) == list(range(100, 1000, 100))
    alive = np.ones(4, bool)
    keep = rule.keep(0, 20, np.array([1.0, 2.0, 3.0, 4.0]), alive, [])
    assert keep.tolist() == [True, True, False, False]
    # Running means 2, 1.5, 3, 4: the median is 2.5, and none is worse; the best counts, not the last.
    later = rule.keep(1, 30, np.array([3.0, 1.0, np.nan, np.nan]), keep, [np.array([1.0, 2.0, 3.0, 4.0])])
    assert later.tolist() == [True, True, False, False]
    # Of equals none is worse than the median.
    assert rule.keep(0, 20, np.ones(4), alive, []).all()


# All rules.


RULES = [halving(), hyperband(), median_rule()]


@pytest.mark.parametrize("rule", RULES)
def test_all_diverged(rule):
    _, after, _ = run(rule, 1000, fixed([math.nan] * 49))
    assert after[-1].any()


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_values(rule):
    assert eval(repr(rule)) == rule
    assert hash(rule) == hash(eval(repr(rule)))
    assert isinstance(rule, CullingRule)


@pytest.mark.parametrize("rule", [halving(), hyperband(), median_rule()])
def test_scores_of_any_real_dtype(rule):
    scores, alive = np.arange(49), np.ones(49, bool)
    expected = rule.keep(0, 5, scores.astype(float), alive, [])
    for dtype in (np.float32, np.float16, np.int32):
        np.testing.assert_array_equal(rule.keep(0, 5, scores.astype(dtype), alive, []), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: halving(1), "halving: factor is 1, expected an integer of at least 2"),
        (lambda: hyperband(2.5), "hyperband: factor is 2.5"),
        (lambda: halving(first=0), "halving: first is 0"),
        (lambda: hyperband(brackets=1), "brackets is 1, expected an integer of at least 2"),
        (lambda: median_rule(every=0), "every is 0"),
        (lambda: median_rule(warmup=-1), "warmup is -1"),
        (lambda: halving().rungs(100, 2), r"nothing would be dropped in 100 steps of 2 members; .* factor=3 members"),
        (lambda: halving(first=100).rungs(100, 9), "a first rung before the end"),
        (lambda: hyperband().rungs(26, 49), "expected at least 27 steps"),
        (lambda: median_rule(warmup=100).rungs(100, 9), "`warmup` less than the number of steps"),
        (lambda: median_rule().rungs(100, 1), "expected at least 2 members"),
    ],
)
def test_rules_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
