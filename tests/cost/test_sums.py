"""What sums over discrete choices cost beside hand-written code, at sizes where the order matters.

FLOPs and bytes of value and gradient in all arrays, in 32 bits: of chains as compiled, of a grid
before XLA optimizes, since it takes longer to compile.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import networks
import pytest
import scaling
import sums
from scan_compile import equations

import ppl
from ppl import dist


@pytest.mark.parametrize(
    "name", ["second-order HMM, K = 8, T = 50", "factorial HMM, 2 x 8 states, T = 50"]
)
def test_chains_cost_what_they_cost_by_hand(name: str) -> None:
    by_hand, ours = sums.costs(sums.PAIRS[name]())
    for what, most in (("flops", 0.8), ("bytes accessed", 1.05)):
        assert ours[what] <= most * by_hand[what], what


def test_a_grid_costs_what_it_costs_by_hand() -> None:
    by_hand, ours = sums.costs(sums.grid(3, 5), compiled=False)
    assert ours["flops"] <= 1.1 * by_hand["flops"]


ROWS: dict[str, tuple[Callable[[], sums.Pair], float]] = {
    "topics enumerated in the guide": (scaling.in_the_guide, 1.05),
    "mixture, assignments in the guide": (lambda: scaling.mixture(1_000), 1.05),
    "bits of images": (lambda: networks.latent_bits(8), 1.1),
    "labels of images": (lambda: networks.semi_supervised(8, once=True), 1.05),
    "tree of 7 nodes": (lambda: sums.tree(7), 1.0),
    "field on a tree of 63 nodes": (lambda: sums.field(6), 1.0),
}


@pytest.mark.parametrize("name", ROWS)
def test_enumerated_values_cost_what_they_cost_by_hand(name: str) -> None:
    make, most = ROWS[name]
    by_hand, ours = sums.costs(make())
    for what in ("flops", "bytes accessed"):
        assert ours[what] <= most * by_hand[what], what


def test_topics_take_the_memory_of_by_hand(as_for_a_user: None) -> None:
    """By XLA's own schedule, for which the derivative must not be held in several forms."""
    by_hand, ours = sums.costs(scaling.with_fitted())
    for what, most in (("flops", 1.0), ("bytes accessed", 1.0), ("memory", 1.1)):
        assert ours[what] <= most * by_hand[what], what


def independent(n: int) -> int:
    """Equations of value and gradient, with ``n`` measure-valued sites."""

    @ppl.expectation
    def f(m: jax.Array) -> jax.Array:
        total = jnp.zeros(())
        for i in range(n):
            total += jnp.sin(ppl.sample(f"z{i}", dist.Normal(m[i], 1.0), ppl.mvd()))
        return total

    traced = jax.jit(f.value_and_grad).trace(jax.random.key(0), jnp.zeros(n))
    return equations(traced.jaxpr.jaxpr)


def test_measure_valued_sites_are_linear_in_their_number() -> None:
    three, five, nine = map(independent, (3, 5, 9))
    assert nine - five == 2 * (five - three)
