"""The linear assignment problem: pairs of rows and columns of least total cost."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .checks import check_float, compute_dtype


def hungarian_algorithm(cost_matrix: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The rows `i`, ascending, and their columns `j` of least total cost, `cost_matrix[i, j].sum()`.

    Each row and each column of the (N, M) matrix is paired at most once, and min(N, M) pairs are made. An infinite or
    NaN cost forbids a pair: such pairs are made only where others do not suffice, and then as few as possible; pairs of
    cost -inf are made as often as possible. Costs are compared in float32, or float64 where that is their dtype or x64
    is enabled for integers; no derivatives pass.

    Raises `ValueError` unless the matrix has two axes, and `TypeError` for complex costs.
    Source: Crouse, 2016, https://doi.org/10.1109/TAES.2016.140952.
    """
    costs = jnp.asarray(cost_matrix)
    if costs.ndim != 2:
        cause = "map over a batch with jax.vmap" if costs.ndim > 2 else "it holds a row for each of one kind"
        raise ValueError(f"cost_matrix must have two axes, got shape {costs.shape}: {cause}")
    if jnp.issubdtype(costs.dtype, jnp.integer) or costs.dtype == bool:
        costs = costs.astype(float)
    costs = check_float("cost_matrix", costs)
    if not costs.size:
        return jnp.zeros(0, int), jnp.zeros(0, int)
    costs = _finite(jax.lax.stop_gradient(costs).astype(compute_dtype(costs)))
    if costs.shape[0] <= costs.shape[1]:
        return jnp.arange(costs.shape[0]), _columns(costs)
    rows = _columns(costs.T)
    order = jnp.argsort(rows)
    return rows[order], order


def _finite(costs: jax.Array) -> jax.Array:
    """Costs of at most 1, with a number for infinity that no sum of them reaches."""
    finite = jnp.isfinite(costs)
    largest = jnp.max(jnp.abs(costs), where=finite, initial=0)
    _, exponent = jnp.frexp(largest)
    scaled = jnp.ldexp(jnp.where(finite, costs, 0), -exponent)  # by a power of 2: without rounding
    infinite = 2 * min(costs.shape) + 2
    return jnp.where(finite, scaled, jnp.where(costs == -jnp.inf, -infinite, infinite))


def _columns(costs: jax.Array) -> jax.Array:
    """The column of each row, for finite costs and no more rows than columns.

    Shortest augmenting paths: u and v are the dual variables, with costs >= u[:, None] + v[None] throughout and
    equality at the pairs made.
    """
    n, m = costs.shape
    rows = jnp.arange(n)
    # Rows get their cheapest column, the first that comes, before any path is searched.
    u = costs.min(1)
    cheapest = costs.argmin(1)
    row_of = jnp.full(m, n).at[cheapest].min(rows)
    column_of = jnp.where(row_of[cheapest] == rows, cheapest, -1)
    row_of = jnp.where(row_of < n, row_of, -1)

    def add_row(state):
        u, v, row_of, column_of = state
        start = jnp.argmin(column_of)  # -1 stands for no column
        # Under vmap this also runs for matrices that have all their pairs already.
        unpaired = column_of[start] < 0

        def search(carry):
            distance, came_from, done, row, length, _, _ = carry
            through_row = length + costs[row] - u[row] - v
            closer = ~done & (through_row < distance)
            distance = jnp.where(closer, through_row, distance)
            came_from = jnp.where(closer, row, came_from)
            length = jnp.min(distance, where=~done, initial=jnp.inf)
            # Among the nearest columns a free one, which ends the search.
            end = jnp.argmax(jnp.where(~done & (distance == length), jnp.where(row_of < 0, 2, 1), 0))
            row = row_of[end]
            return distance, came_from, done.at[end].set(True), row, length, end, row >= 0

        distance = jnp.full(m, jnp.inf, costs.dtype)
        init = (distance, jnp.zeros(m, int), jnp.zeros(m, bool), start, jnp.zeros((), costs.dtype), -1, unpaired)
        distance, came_from, done, _, length, end, _ = jax.lax.while_loop(lambda carry: carry[-1], search, init)

        gain = jnp.where(done, length - distance, 0)
        u = u + jnp.where(column_of >= 0, gain[column_of], 0)
        u = u.at[start].add(length)
        v = v - gain

        def shift(carry):
            row_of, column_of, column = carry
            row = came_from[column]
            return row_of.at[column].set(row), column_of.at[row].set(column), column_of[row]

        row_of, column_of, _ = jax.lax.while_loop(lambda carry: carry[-1] >= 0, shift, (row_of, column_of, end))
        return u, v, row_of, column_of

    state = (u, jnp.zeros(m, costs.dtype), row_of, column_of)
    return jax.lax.while_loop(lambda state: (state[-1] < 0).any(), add_row, state)[-1]
