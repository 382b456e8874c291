"""Linear assignment inside jit: the Hungarian method with shortest augmenting paths, in integers and fixed shapes."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

_FAR = jnp.iinfo(jnp.int32).max


def assign(cost: Int[Array, "t m"]) -> Int[Array, " t"]:
    """A column for every row, no column twice, of least total cost (t <= m). Exact while t * max|cost| < 2^30.

    Rows enter one by one. Each searches, as Dijkstra does over reduced costs, the cheapest chain of reassignments that
    ends at a free column; the potentials then change so that no reduced cost is negative. O(t^2 m).
    Among equal assignments the lowest columns are tried first.
    """
    rows, columns = cost.shape

    def add_row(state, row):
        row_potential, column_potential, owner = state  # owner: [m] the row that holds a column, -1 if free

        def scan_from(search):
            """Settle the column nearest to the tree, through the row that was added last."""
            current, base, distance, parent, settled, _ = search
            reduced = base + cost[current] - row_potential[current] - column_potential
            better = ~settled & (reduced < distance)
            distance, parent = jnp.where(better, reduced, distance), jnp.where(better, current, parent)
            nearest = jnp.argmin(jnp.where(settled, _FAR, distance))
            return owner[nearest], distance[nearest], distance, parent, settled.at[nearest].set(True), nearest

        start = (
            row,
            jnp.int32(0),
            jnp.full(columns, _FAR, jnp.int32),
            jnp.full(columns, -1, jnp.int32),
            jnp.zeros(columns, bool),
            jnp.int32(0),
        )
        _, length, distance, parent, settled, end = lax.while_loop(lambda s: s[0] >= 0, scan_from, start)
        slack = jnp.where(settled, length - distance, 0)
        held = settled & (owner >= 0)
        row_potential = row_potential.at[jnp.where(held, owner, rows)].add(slack, mode="drop").at[row].add(length)
        column_potential = column_potential - slack

        def reassign(step):
            owner, column, _ = step
            taker = parent[column]
            previous = jnp.argmax(owner == taker)  # the column that the taker leaves; the new row leaves none
            return owner.at[column].set(taker), previous.astype(jnp.int32), taker == row

        owner = lax.while_loop(lambda s: ~s[2], reassign, (owner, end.astype(jnp.int32), jnp.array(False)))[0]
        return (row_potential, column_potential, owner), None

    start = jnp.zeros(rows, jnp.int32), jnp.zeros(columns, jnp.int32), jnp.full(columns, -1, jnp.int32)
    (_, _, owner), _ = lax.scan(add_row, start, jnp.arange(rows, dtype=jnp.int32))
    taken = jnp.where(owner >= 0, owner, rows)
    return jnp.zeros(rows, jnp.int32).at[taken].set(jnp.arange(columns, dtype=jnp.int32), mode="drop")
