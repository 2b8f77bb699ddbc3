"""Dependency-aware gradients: payoffs as sums of terms, and what depends on what.

Claims about programs are held against the programs: the sum of the terms against the payoff, a
claimed dependence against what changes if one element of a source does. Gradients are held against
formulas for the very draws that were made, or against exact ones.

Statistical tests use ``ztest.check`` (20,000 draws; |z| <= 3.3, else 180,000 more and |z| <= 4.3):
false alarms 1.7e-8 for each number, under 1e-6 for all of this file.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import kept
import numpy as np
import pytest
import ztest
from jax import lax

import ppl
from ppl import dist
from transforms import _jax
from transforms.analyses import alike, dependence, primitives, terms
from transforms.analyses.dependence import EVER, Along, Dependences
from transforms.errors import UnsupportedError
from transforms.estimation.weighted import times
from transforms.plan import layout
from transforms.program.choices import choices

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
X5, X6 = RNG.normal(size=5), RNG.normal(size=6)
X34, X43, X223, X423 = (
    RNG.normal(size=(3, 4)),
    RNG.normal(size=(4, 3)),
    RNG.normal(size=(2, 2, 3)),
    RNG.normal(size=(4, 2, 3)),
)
NO_SITES = lambda path: False
SEVER = lax.sin
"""Not linear: where a payoff is no sum of terms any more."""


def own(*xs: Any) -> list[Any]:
    """Each input is a source, known by its number."""
    return [{i: tuple(map(Along, range(np.ndim(x))))} for i, x in enumerate(xs)]


# --- a payoff is the sum of its terms -------------------------------------------------------------


class Terms(NamedTuple):
    """A payoff, and for each of its terms how it depends on the elements of its inputs."""

    f: Callable[..., Any]
    xs: tuple[Any, ...]
    found: list[str]


def lags(d: Any) -> str:
    """A dependence in short: for each source and axis, the lag of an axis that is kept, or ``*``;
    ``""`` depends on nothing."""
    return " ".join(
        f"{s}:" + ",".join("*" if a is None else str(a.lag) for a in along)
        for s, along in sorted(d.items())
    )


def split_up(f: Callable[..., Any], *xs: Any) -> tuple[Callable[..., list[Any]], list[str]]:
    """The terms of a payoff as a function, and what those that are no constants depend on."""
    closed = jax.make_jaxpr(f)(*xs)
    found = terms.split(closed, NO_SITES, [True] * len(xs))
    outs = Dependences(NO_SITES).run(found.program, own(*xs))[: found.n]
    run = _jax.evaluate
    return lambda *xs: run(found.program, *xs)[: found.n], sorted(filter(None, map(lags, outs)))


def scanned(step: Callable[..., Any], init: Any, **how: Any) -> Callable[..., Any]:
    """The final carry of a scan over x."""
    return lambda x: lax.scan(step, jnp.zeros(()) + init, x, **how)[0]


MASK = np.array([True, False, True, True, False])
WEIGHTS = np.array([0.5, -2.0, 0.0, 3.0, 1.5])


def rows_and_columns(x: Any) -> Any:
    zero = jnp.zeros(())

    def row(c: Any, r: Any) -> Any:
        inner = lax.scan(lambda c, v: (c + v**2, jnp.sin(v)), zero + 0.5, r)
        return c + inner[0] + inner[1].sum(), jnp.cos(r).sum()

    c, ys = lax.scan(row, zero, x)
    return c - 2.0 * ys.sum()


def used_twice(x: Any) -> Any:
    s = jnp.sum(x**2)
    return s + jnp.mean(jnp.sin(x)) - 3.0 * s


def walked(x: Any) -> Any:
    """Adds up beside a carry that remembers."""
    zero = jnp.zeros(())

    def step(c: Any, v: Any) -> Any:
        total, last = c
        return (total + v * last, v), None

    return lax.scan(step, (zero, zero + 1.0), x)[0][0]


def remembered(x: Any) -> Any:
    zero = jnp.zeros(())

    def step(c: Any, v: Any) -> Any:
        total, h = c
        h = jnp.tanh(h + v)
        return (total - h, h), None

    return lax.scan(step, (zero + 1.0, zero), x)[0][0]


def decayed(x: Any) -> Any:
    zero = jnp.zeros(())

    def step(c: Any, v: Any) -> Any:
        total, h, i = c
        return (total + v**2 * h, 0.9 * h, i + 1), None

    return lax.scan(step, (zero, zero + 1.0, 0), x)[0][0]


SPLITS = {
    "sum": Terms(lambda x: jnp.sum(x**2), (X5,), ["0:0"]),
    "difference": Terms(lambda x: jnp.sum(jnp.sin(x)) - jnp.sum(x**3), (X5,), ["0:0", "0:0"]),
    "mean": Terms(lambda x: jnp.mean(x**2), (X5,), ["0:0"]),
    "quotient": Terms(lambda x: -jnp.sum(x**2) / 7.0, (X5,), ["0:0"]),
    "weights": Terms(lambda x: WEIGHTS @ jnp.sin(x), (X5,), ["0:0"]),
    "matrix": Terms(lambda x: jnp.sum((x**2) @ np.ones((4, 2))), (X34,), ["0:0,0"]),
    "where": Terms(lambda x: jnp.where(MASK, x**2, 0.0).sum(), (X5,), ["0:0"]),
    "where of two": Terms(lambda x: jnp.where(MASK, x**2, jnp.sin(x)).sum(), (X5,), ["0:0", "0:0"]),
    "select by a source": Terms(lambda x: jnp.where(x > 0, x, 0.0).sum(), (X5,), ["0:0"]),
    "reshape": Terms(lambda x: jnp.sum(jnp.sin(x).reshape(6, 2).T[0]), (X34,), ["0:0,0"]),
    "concatenate": Terms(
        lambda x: jnp.concatenate([x**2, jnp.sin(x)]).sum(), (X5,), ["0:0", "0:0"]
    ),
    "slices": Terms(lambda x: (x**2)[1:].sum() - (x**2)[:-1].sum(), (X5,), ["0:0"] * 2),
    "cumulative": Terms(lambda x: jnp.cumsum(jnp.sin(x))[::-1].sum(), (X5,), ["0:0"]),
    "padded": Terms(lambda x: jnp.pad(x**2, 2).sum(), (X5,), ["0:0"]),
    "gathered": Terms(lambda x: jnp.sum((x**2)[np.array([0, 0, 3])]), (X5,), ["0:0"]),
    "dynamic slice": Terms(
        lambda x: lax.dynamic_slice_in_dim(jnp.sin(x), 1, 2).sum(), (X5,), ["0:0"]
    ),
    "update": Terms(
        lambda x: lax.dynamic_update_slice(x**2, jnp.cos(x[:2]), (1,)).sum(),
        (X5,),
        ["0:*", "0:0"],
    ),
    "jit": Terms(
        lambda x: 2.0 * jax.jit(lambda y: jnp.sum(y**2) - jnp.sum(y))(x), (X5,), ["0:0"] * 2
    ),
    "inner product": Terms(lambda x: x @ jnp.sin(x), (X5,), ["0:0"]),
    "inner product of matrices": Terms(
        lambda x: jnp.einsum("ij,ji->", x**2, jnp.sin(x).T), (X34,), ["0:0,0"]
    ),
    "inner product of each row": Terms(
        lambda x: jnp.arange(3.0) @ jnp.einsum("ij,ij->i", x, x), (X34,), ["0:0,0"]
    ),
    "inner product in a loop": Terms(
        scanned(lambda c, v: (c + 0.5 * jnp.vdot(v, v), None), 0.3), (X34,), ["0:0,0"]
    ),
    "inner product of small integers": Terms(
        lambda x: (
            1.0
            * lax.dot(
                *[(100.0 * jnp.sign(x)).astype(jnp.int8)] * 2,
                preferred_element_type=jnp.dtype("int32"),
            )
        ),
        (X5,),
        ["0:0"],
    ),
    "quadratic form": Terms(lambda x: x @ np.ones((5, 5)) @ x, (X5,), ["0:*"]),
    "matrix product of both": Terms(lambda x: jnp.sum(x @ x.T), (X34,), ["0:*,*"]),
    "checkpoint": Terms(
        lambda x: 2.0 * jax.checkpoint(lambda y: jnp.sum(y**2) - jnp.sum(y))(jnp.sin(x)),
        (X5,),
        ["0:0"] * 2,
    ),
    "checkpoint with a policy": Terms(
        jax.checkpoint(
            lambda x: jnp.mean(jnp.sin(x) ** 3) + 1.0,
            policy=jax.checkpoint_policies.nothing_saveable,
        ),
        (X5,),
        ["0:0"],
    ),
    "checkpoint of a loop": Terms(
        jax.checkpoint(lambda x: jnp.sum(scanned(lambda c, v: (c + jnp.sin(v), None), 0.3)(x))),
        (X5,),
        ["0:0"],
    ),
    "checkpoint in a loop": Terms(
        scanned(jax.checkpoint(lambda c, v: (c + jnp.sum(jnp.sin(v) ** 2), None)), 0.3),
        (X34,),
        ["0:0,0"],
    ),
    "jit in a loop": Terms(
        scanned(jax.jit(lambda c, v: (jnp.sum(jnp.sin(v) ** 2) + c - 1.0, None)), 0.3),
        (X34,),
        ["0:0,0"],
    ),
    "checkpoints within checkpoints in a loop": Terms(
        scanned(
            jax.checkpoint(lambda c, v: (jax.checkpoint(lambda c: c - jnp.sum(v**2))(c), None)), 0.3
        ),
        (X34,),
        ["0:0,0"],
    ),
    "a carry that jit uses twice": Terms(
        scanned(jax.jit(lambda c, v: (c + v**2, c)), 0.3), (X5,), ["0:*"]
    ),
    "a carry that jit doubles": Terms(
        scanned(jax.jit(lambda c, v: (c + (v**2 + c), None)), 0.3), (X5,), ["0:*"]
    ),
    "a count that is copied": Terms(
        lambda x: (
            0.5
            * lax.scan(lambda c, v: (lax.copy_p.bind(c) + (v > 0), None), jnp.zeros((), int), x)[0]
        ),
        (X5,),
        ["0:*"],
    ),
    "literals": Terms(lambda x: 3.0 + jnp.sum(x**2) - 1.5, (X5,), ["0:0"]),
    "constant alone": Terms(lambda x: jnp.asarray(2.5), (X5,), []),
    "used twice": Terms(used_twice, (X5,), ["0:0", "0:0"]),
    "not a sum": Terms(lambda x: SEVER(jnp.sum(x**2)), (X5,), ["0:*"]),
    "product of sums": Terms(lambda x: jnp.sum(x) * jnp.sum(x**2), (X5,), ["0:*"]),
    "scan adds up": Terms(scanned(lambda c, v: (c + jnp.sin(v), None), 0.3), (X5,), ["0:0"]),
    "scan subtracts": Terms(scanned(lambda c, v: (c - v**2 + 1.0, None), 0.0), (X5,), ["0:0"]),
    "scan from the end": Terms(
        scanned(lambda c, v: (c + v**2, None), 0.0, reverse=True), (X5,), ["0:0"]
    ),
    "scan unrolled": Terms(scanned(lambda c, v: (c + v**2, None), 0.0, unroll=2), (X5,), ["0:0"]),
    "scan of vectors": Terms(
        lambda x: jnp.sum(lax.scan(lambda c, v: (c + v**2, None), jnp.zeros(4), x)[0]),
        (X34,),
        ["0:0,0"],
    ),
    "scan stacks": Terms(
        lambda x: WEIGHTS @ lax.scan(lambda c, v: (c, v**2), 0.0, x)[1], (X5,), ["0:0"]
    ),
    "nested scans": Terms(rows_and_columns, (X34,), ["0:0,0"] * 3),
    "scan beside a carry": Terms(walked, (X5,), ["0:1"]),
    "scan that remembers": Terms(remembered, (X5,), [f"0:{EVER}"]),
    "scan with other carries": Terms(decayed, (X5,), ["0:0"]),
    "scan with weights": Terms(
        lambda x: lax.scan(lambda c, v: (c + v[0] * v[1], None), jnp.zeros(()), (x**2, WEIGHTS))[0],
        (X5,),
        ["0:0"],
    ),
    "scan that multiplies": Terms(
        scanned(lambda c, v: (0.5 * c + v**2, None), 0.0), (X5,), ["0:*"]
    ),
    "scan of one step": Terms(scanned(lambda c, v: (c + v**2, None), 0.0), (X5[:1],), ["0:0"]),
    "two inputs": Terms(
        lambda x, y: jnp.sum(x**2) + jnp.sum(y[:, None] * x), (X34, X5[:3]), ["0:0,0", "0:0,0 1:0"]
    ),
    "an input that is a term": Terms(lambda x: jnp.sum(x) - x[0], (X5,), ["0:0"]),
}


@pytest.mark.parametrize("name", SPLITS)
def test_payoff_is_the_sum_of_its_terms(name: str) -> None:
    f, xs, found = SPLITS[name]
    parts, outs = split_up(f, *map(jnp.asarray, xs))
    assert outs == found
    total = lambda *xs: sum(map(jnp.sum, parts(*xs)))
    with_slopes = [jax.value_and_grad(g, tuple(range(len(xs)))) for g in (total, f)]
    both = ztest.compiled(lambda *xs: [g(*xs) for g in with_slopes])
    for shift in (0.0, 0.7):
        (mine, slopes), (payoff, exact) = both(*(x + shift for x in xs))
        np.testing.assert_allclose(mine, payoff, rtol=1e-12)
        for slope, right in zip(slopes, exact, strict=True):
            np.testing.assert_allclose(slope, right, rtol=1e-12, atol=1e-14)


def remats(closed: Any) -> list[Any]:
    return [eqn for eqn in closed.jaxpr.eqns if eqn.primitive is _jax.remat_p]


def test_a_checkpoint_stays_one() -> None:
    """Nothing but its inputs is kept for the backward pass, though its terms are outputs now."""
    policy = jax.checkpoint_policies.nothing_saveable
    f = jax.checkpoint(lambda x: jnp.sum(jnp.exp(jnp.sin(x)) ** 2), policy=policy)
    closed = jax.make_jaxpr(f)(X5)
    (new,) = remats(terms.split(closed, NO_SITES, [True]).program)
    (old,) = remats(closed)
    assert new.params["policy"] is policy
    assert new.params["prevent_cse"] == old.params["prevent_cse"]
    parts, _ = split_up(f, X5)
    kept = jax.make_jaxpr(lambda x: jax.vjp(lambda x: sum(map(jnp.sum, parts(x))), x)[1])(X5)
    assert all(v in kept.jaxpr.invars for v in kept.jaxpr.outvars)


def test_masked_infinities_are_no_term() -> None:
    x = jnp.array([0.5, 0.0, 2.0, 1.0, 0.0])
    f = lambda x: jnp.where(MASK, jnp.log(x), 0.0).sum()
    parts, _ = split_up(f, x)
    total = ztest.compiled(lambda x: sum(map(jnp.sum, parts(x))))
    np.testing.assert_allclose(total(x), 0.0, atol=1e-12)


def test_other_outputs_stay() -> None:
    def f(x: Any) -> Any:
        s = jnp.sum(x**2)
        return s, s * 2.0, jnp.sin(x)

    closed = jax.make_jaxpr(f)(X5)
    found = terms.split(closed, NO_SITES, [True])
    outs = ztest.compiled(lambda x: _jax.evaluate(found.program, x))(X5)
    assert len(outs) == found.n + 2
    np.testing.assert_allclose(outs[found.n], 2.0 * np.sum(X5**2))
    np.testing.assert_allclose(outs[found.n + 1], np.sin(X5))


# --- what is claimed about dependence -------------------------------------------------------------


class Claim(NamedTuple):
    """A program, and what is claimed of its (first) output; None where only truth is asked."""

    f: Callable[..., Any]
    xs: tuple[Any, ...]
    claim: str | None = None


def axes(d: Any) -> str:
    """A dependence with axes: ``0:1,*`` is the first source, its first axis along axis 1."""

    def show(a: Along | None) -> str:
        return "*" if a is None else f"{a.axis}" + f"-{a.lag}" * bool(a.lag)

    return " ".join(f"{s}:" + ",".join(map(show, along)) for s, along in sorted(d.items()))


TABLE = np.arange(12.0).reshape(4, 3) / 5
index = lambda x, n: jnp.clip(jnp.floor(jnp.abs(x) * 2), 0, n - 1).astype(int)


@jax.custom_jvp
def cube(x: Any) -> Any:
    return x**3


cube.defjvp(lambda p, t: (p[0] ** 3, 3 * p[0] ** 2 * t[0]))


@jax.custom_vjp
def square(x: Any) -> Any:
    return jnp.flip(x) ** 2


square.defvjp(lambda x: (jnp.flip(x) ** 2, x), lambda x, g: (2 * x * jnp.flip(g),))


def newton(x: Any) -> Any:
    return lax.while_loop(lambda c: jnp.max(c) > 0.1, lambda c: 0.5 * c, jnp.abs(x))


def lagging(x: Any) -> Any:
    return lax.scan(lambda c, v: (v, c * v), jnp.ones(x.shape[1:]), x)[1]


def lagging_twice(x: Any) -> Any:
    def step(c: Any, v: Any) -> Any:
        return (c[1], v), c[0] + v

    return lax.scan(step, (jnp.zeros(x.shape[1:]),) * 2, x)[1]


def summing(x: Any) -> Any:
    return lax.scan(lambda c, v: (c + v, c), jnp.zeros(x.shape[1:]), x)[1]


def cumulated_rows(x: Any) -> Any:
    """A scan in a scan: the inner one adds up, the outer one carries the row before."""

    def row(c: Any, r: Any) -> Any:
        inner = lax.scan(lambda c, v: (c + v, c * v), 0.0, r)[1]
        return r, inner + c

    return lax.scan(row, jnp.zeros(x.shape[1]), x)[1]


def last_of_rows(x: Any) -> Any:
    return lax.scan(lambda c, r: (None, lax.scan(lambda c, v: (v, None), 0.0, r)[0]), None, x)[1]


def switched(x: Any) -> Any:
    return lax.switch(index(x[0], 3), [jnp.sin, jnp.cos, lambda x: x[::-1]], x)


CONV = ("NCH", "OIH", "NCH")
filters = np.array([[[1.0, -0.5]]])

CLAIMS = {
    # elementwise
    "sin": Claim(jnp.sin, (X34,), "0:0,1"),
    "product": Claim(lambda x, y: x * y, (X34, X34[::-1]), "0:0,1 1:0,1"),
    "product of broadcasts": Claim(lambda x, y: x[:, None] * y, (X5[:3], X34), "0:0 1:0,1"),
    "size 1": Claim(
        lambda x, y: lax.add(jnp.broadcast_to(x, (3, 4)), y), (X34[:1], X34), "0:*,1 1:0,1"
    ),
    "outer": Claim(lambda x, y: x[:, None] + y, (X5, X6), "0:0 1:1"),
    "diagonal": Claim(lambda x: x + x.T, (RNG.normal(size=(3, 3)),), "0:*,*"),
    "select": Claim(lambda x: jnp.where(x > 0, x, -3.0), (X34,), "0:0,1"),
    "clamp": Claim(lambda x: jnp.clip(x, -0.5, 0.5), (X34,), "0:0,1"),
    "rounded": Claim(lambda x: jnp.round(x * 3).astype(int), (X5,), "0:0"),
    # shapes
    "broadcast": Claim(lambda x: jnp.broadcast_to(x[:, None], (5, 2)), (X5,), "0:0"),
    "reshape apart": Claim(lambda x: x.reshape(3, 2, 2), (X34,), "0:0,*"),
    "reshape together": Claim(lambda x: x.reshape(4, 3), (X223,), None),
    "reshape kept": Claim(lambda x: x.reshape(2, 1, 2, 3, 1), (X223,), "0:0,2,3"),
    "reshape misleading": Claim(lambda x: x.reshape(4, 3), (X34,), "0:*,*"),
    "squeeze": Claim(lambda x: jnp.squeeze(x[:, None] * 2, 1), (X34,), "0:0,1"),
    "transpose": Claim(lambda x: jnp.transpose(x, (2, 0, 1)), (X223,), "0:1,2,0"),
    "reverse": Claim(lambda x: x[::-1], (X34,), "0:*,1"),
    "roll": Claim(lambda x: jnp.roll(x, 1, 0), (X34,), "0:*,1"),
    "slice": Claim(lambda x: x[1:], (X34,), "0:*,1"),
    "concatenate": Claim(lambda x: jnp.concatenate([x, x], 1), (X34,), "0:0,*"),
    "pad": Claim(lambda x: jnp.pad(x, ((0, 0), (1, 0))), (X34,), "0:0,*"),
    "split": Claim(lambda x: jnp.split(x, 2, 1)[1], (X34,), "0:0,*"),
    "tile": Claim(lambda x: jnp.tile(x, 2), (X5,), None),
    "tile of rows": Claim(lambda x: jnp.tile(x, (1, 2)), (X34,), "0:0,*"),
    "stack": Claim(lambda x, y: jnp.stack([x, y, x], 1), (X34, X34), "0:0,2 1:0,2"),
    "unstack": Claim(lambda x: jnp.unstack(x, axis=1)[2], (X34,), "0:0,*"),
    "repeat": Claim(lambda x: jnp.repeat(x, 2), (X5,), None),
    # reductions
    "sum": Claim(lambda x: x.sum(1), (X34,), "0:0,*"),
    "mean of all": Claim(jnp.mean, (X34,), "0:*,*"),
    "max": Claim(lambda x: x.max(0), (X34,), "0:*,0"),
    "argmax": Claim(lambda x: jnp.argmax(x, 0), (X34,), "0:*,0"),
    "product of all": Claim(lambda x: x.prod(axis=(0, 2)), (X223,), "0:*,0,*"),
    "any": Claim(lambda x: jnp.any(x > 0.8, 0), (X34,), "0:*,0"),
    "logsumexp": Claim(lambda x: jax.nn.logsumexp(x, axis=1), (X34,), "0:0,*"),
    "softmax": Claim(lambda x: jax.nn.softmax(x, axis=0), (X34,), "0:*,1"),
    "cumsum": Claim(lambda x: jnp.cumsum(x, 1), (X34,), "0:0,*"),
    "cumprod": Claim(lambda x: jnp.cumprod(x, 0), (X34,), "0:*,1"),
    "cummax": Claim(lambda x: lax.cummax(x, 1, reverse=True), (X34,), "0:0,*"),
    "sort": Claim(lambda x: jnp.sort(x, 0), (X34,), "0:*,1"),
    "argsort": Claim(lambda x: jnp.argsort(x, 1), (X34,), None),
    "top k": Claim(lambda x: lax.top_k(x, 2)[0], (X34,), "0:0,*"),
    "associative scan": Claim(lambda x: lax.associative_scan(jnp.add, x), (X34,), "0:*,1"),
    # indexing
    "mu[z]": Claim(lambda z: jnp.asarray(TABLE)[:, 0][index(z, 4)], (X34,), "0:0,1"),
    "mu[z] of rows": Claim(lambda z: jnp.asarray(TABLE)[index(z, 4)], (X5,), "0:0"),
    "mu[:, z]": Claim(lambda z: jnp.asarray(TABLE)[:, index(z, 3)], (X5,), "0:1"),
    "mu[z, w]": Claim(
        lambda z, w: jnp.asarray(TABLE)[index(z, 4), index(w, 3)], (X5, X5[::-1]), "0:0 1:0"
    ),
    "mu[z, :, w]": Claim(
        lambda z, w: jnp.asarray(X423)[index(z, 4), :, index(w, 3)],
        (X5, X5[::-1]),
        "0:0 1:0",
    ),
    "x[:, constants]": Claim(lambda x: x[:, np.array([1, 1, 3])], (X34,), "0:0,*"),
    "x[z]": Claim(lambda x, z: x[index(z, 3)], (X34, X5), "0:*,1 1:0"),
    "take along axis": Claim(
        lambda x, z: jnp.take_along_axis(x, index(z, 4), axis=1),
        (X34, RNG.normal(size=(3, 2))),
        "0:0,* 1:0,1",
    ),
    "take along first": Claim(
        lambda x, z: jnp.take_along_axis(x, index(z, 3)[None], axis=0)[0],
        (X34, X34[1]),
        "0:*,0 1:0",
    ),
    "vmapped row[z]": Claim(jax.vmap(lambda r, z: r[index(z, 4)]), (X34, X5[:3]), "0:0,* 1:0"),
    "one hot": Claim(lambda z: jax.nn.one_hot(index(z, 3), 3) @ TABLE[:3], (X5,), "0:0"),
    "dynamic slice": Claim(
        lambda x, z: lax.dynamic_slice(x, (index(z[0], 2), 0), (2, 4)), (X34, X5), "0:*,1 1:*"
    ),
    "dynamic index": Claim(lambda x: lax.dynamic_index_in_dim(x, 1, 1, False), (X34,), "0:0,*"),
    "dynamic update": Claim(
        lambda x, y: lax.dynamic_update_slice(x, y, (0, 1)), (X34, X34[:, :2]), "0:0,* 1:0,*"
    ),
    "scatter": Claim(lambda x: x.at[jnp.array([0, 2])].set(0.0), (X34,), None),
    "a column set": Claim(lambda x, y: x.at[:, 0].set(y), (X34, X34[:, 0]), "0:0,* 1:0"),
    "rows added": Claim(
        lambda x, y: x.at[jnp.array([0, 0, 2])].add(y), (X34, X34[::-1]), "0:*,1 1:*,1"
    ),
    "scatter at": Claim(lambda x, z: x.at[index(z, 5)].add(z), (X5, X5[:2]), None),
    # linear algebra
    "dot": Claim(lambda x, y: x @ y, (X34, X43), "0:0,* 1:*,1"),
    "batched dot": Claim(
        lambda x, y: jnp.einsum("bij,bjk->bik", x, y),
        (X223, RNG.normal(size=(2, 3, 2))),
        "0:0,1,* 1:0,*,2",
    ),
    "transposed dot": Claim(
        lambda x, y: jnp.einsum("ij,kj->ki", x, y), (X34, X34[:2]), "0:1,* 1:0,*"
    ),
    "rowwise dot": Claim(
        lambda x, y: jnp.einsum("ij,ij->i", x, y), (X34, X34[::-1]), "0:0,* 1:0,*"
    ),
    "convolution": Claim(
        lambda x: lax.conv_general_dilated(
            x[:, None], filters, (1,), "SAME", dimension_numbers=CONV
        ),
        (X34,),
        "0:0,*",
    ),
    "cholesky": Claim(
        lambda x: jnp.linalg.cholesky(jnp.einsum("bij,bkj->bik", x, x) + 3 * jnp.eye(2)),
        (X223,),
        "0:0,*,*",
    ),
    "triangular solve": Claim(
        lambda x, y: jax.scipy.linalg.solve_triangular(jnp.eye(2) + jnp.tril(x, -1), y, lower=True),
        (RNG.normal(size=(3, 2, 2)), RNG.normal(size=(3, 2, 1))),
        "0:0,*,* 1:0,*,*",
    ),
    # control flow
    "jit": Claim(jax.jit(lambda x: jnp.sin(x.sum(1))), (X34,), "0:0,*"),
    "checkpoint": Claim(jax.checkpoint(lambda x: jnp.sin(x.sum(1))), (X34,), "0:0,*"),
    "custom jvp": Claim(cube, (X34,), "0:0,1"),
    "custom vjp": Claim(square, (X5,), "0:*"),
    "cond": Claim(lambda x: lax.cond(x[0, 0] > 0, jnp.sin, lambda x: 2 * x, x), (X34,), "0:*,*"),
    "cond of another": Claim(
        lambda x, z: lax.cond(z > 0, jnp.sin, lambda x: 2 * x, x), (X34, X5[0]), "0:0,1 1:"
    ),
    "vmapped cond": Claim(
        jax.vmap(lambda x, z: lax.cond(z > 0, jnp.sin, lambda x: 2 * x, x)),
        (X34, X5[:3]),
        "0:0,1 1:0",
    ),
    "switch": Claim(switched, (X5,), "0:*"),
    "while": Claim(newton, (X5,), "0:*"),
    "fori": Claim(lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.sin(c), x), (X34,), "0:0,1"),
    "scan over rows": Claim(
        lambda x: lax.scan(lambda c, r: (c, r.sum()), 0.0, x)[1], (X34,), "0:0,*"
    ),
    "scan with constants": Claim(
        lambda x, y: lax.scan(lambda c, r: (c, r * y), 0.0, x)[1], (X34, X34[0]), "0:0,1 1:1"
    ),
    "map": Claim(lambda x: lax.map(jnp.sin, x), (X34,), "0:0,1"),
    "one step before": Claim(lagging, (X34,), "0:0-1,1"),
    "two steps before": Claim(lagging_twice, (X34,), "0:0-2,1"),
    "all steps before": Claim(summing, (X34,), f"0:0-{EVER},1"),
    "one step before, twice": Claim(lambda x: lagging(lagging(x)), (X34,), "0:0-2,1"),
    "one step before, from the end": Claim(
        lambda x: lax.scan(lambda c, v: (v, c * v), jnp.ones(4), x, reverse=True)[1],
        (X34,),
        "0:*,1",
    ),
    "back and forth": Claim(lambda x: lagging(lagging(x)[::-1]), (X34,), "0:*,1"),
    "last carry": Claim(
        lambda x: lax.scan(lambda c, v: (v, None), jnp.zeros(4), x)[0], (X34,), "0:*,0"
    ),
    "untouched carry": Claim(
        lambda x: lax.scan(lambda c, v: (c, c * v), x, jnp.arange(2.0))[1], (X5,), "0:1"
    ),
    "swapped carries": Claim(
        lambda x, y: lax.scan(lambda c, _: (c[::-1], c[0]), (x, y), length=3)[1],
        (X5, X5[::-1]),
        "0:1 1:1",
    ),
    "shifting carry": Claim(
        lambda x: lax.scan(lambda c, _: (jnp.roll(c, 1), c), x, length=3)[1], (X5,), "0:*"
    ),
    "nested scans": Claim(cumulated_rows, (X34,), None),
    "last of rows": Claim(last_of_rows, (X34,), "0:0,*"),
    "scan over columns": Claim(
        lambda x: jnp.swapaxes(lagging(jnp.swapaxes(x, 0, 1)), 0, 1), (X34,), "0:0,1-1"
    ),
    "vmapped scan": Claim(jax.vmap(lagging), (X34,), "0:0,1-1"),
    "scan of a vmap": Claim(
        lambda x: lax.scan(lambda c, r: (r, jax.vmap(jnp.multiply)(c, r)), jnp.zeros(4), x)[1],
        (X34,),
        "0:0-1,1",
    ),
    "cond in a scan": Claim(
        lambda x: lax.scan(lambda c, v: (v, lax.cond(c > 0, jnp.sin, jnp.cos, v)), 0.0, x)[1],
        (X5,),
        "0:0-1",
    ),
    "while in a scan": Claim(
        lambda x: lax.scan(lambda c, v: (c, newton(v)), 0.0, x)[1], (X34,), "0:0,*"
    ),
    "no dependence": Claim(lambda x: jnp.zeros(3) + jnp.arange(3.0), (X5,), ""),
}


def allowed(d: Any, i: int, shape: Any, out: Any) -> np.ndarray:
    """Which elements of an output (first axes) may depend on which of source ``i``, by a claim."""
    ok = np.zeros((*out, *shape), bool)
    if i not in d:
        return ok
    for at in np.ndindex(*out):
        for e in np.ndindex(*shape):
            ok[(*at, *e)] = all(
                a is None or (e[n] <= at[a.axis] and (a.lag >= EVER or e[n] >= at[a.axis] - a.lag))
                for n, a in enumerate(d[i])
            )
    return ok


@functools.cache
def changes(f: Callable[..., Any]) -> Callable[[Any], list[Any]]:
    """Which elements of the output (last axes) change if one of an input does, to some values."""
    new = jnp.asarray([-1.7, 0.05, 0.6, 3.1])

    def moved(xs: Any, i: int, e: Any, v: Any) -> Any:
        x = xs[i].reshape(-1).at[e].set(v).reshape(xs[i].shape)
        return jnp.asarray(f(*xs[:i], x, *xs[i + 1 :]), float)

    @ztest.compiled
    def of(xs: Any) -> Any:
        def changed(i: int) -> Any:
            one = functools.partial(moved, xs, i)
            of = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(jnp.arange(xs[i].size), new)
            off = jnp.abs(of - f(*xs))
            return jnp.any(off > 1e-9, axis=1)  # matrices round in their own ways

        return [changed(i) for i in range(len(xs))]

    return of


def influence(f: Callable[..., Any], xs: Any) -> list[np.ndarray]:
    """Which elements of the output (first axes) change with which of each input."""
    bases = [changes(f)([jnp.asarray(np.roll(x, k) * (1 + k)) for x in xs]) for k in range(2)]
    found = [np.moveaxis(np.asarray(a) | np.asarray(b), 0, -1) for a, b in zip(*bases, strict=True)]
    return [c.reshape(*c.shape[:-1], *np.shape(x)) for c, x in zip(found, xs, strict=True)]


def claimed(f: Callable[..., Any], xs: Any) -> Any:
    return Dependences(NO_SITES).run(jax.make_jaxpr(f)(*xs), own(*xs))[0]


def holds(d: Any, xs: Any, seen: list[np.ndarray]) -> None:
    """Assert that a claim is never less than what is seen."""
    for i, (x, c) in enumerate(zip(xs, seen, strict=True)):
        ok = allowed(d, i, np.shape(x), c.shape[: c.ndim - np.ndim(x)])
        assert not np.any(c & ~ok), f"{axes(d)}, but also {np.argwhere(c & ~ok)[:5]}"


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_true_and_sharp(name: str) -> None:
    f, xs, claim = CLAIMS[name]
    d = claimed(f, xs)
    kept.passed(changes(f), [xs], [axes(d), xs], lambda: holds(d, xs, influence(f, xs)))
    if claim is not None:
        assert axes(d) == claim


MIXING = {*["while", "scatter", "tile", "convolution"], "while in a scan", "scatter at"}
MIXING |= {"dynamic update"}
"""What has no axes under ``vmap``; all else keeps the mapped axis."""


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_true_under_vmap(name: str) -> None:
    """The mapped axis is the second one of the inputs (the first if there is no other), and the
    last one of the result."""
    f, xs, _ = CLAIMS[name]
    at = [min(1, np.ndim(x)) for x in xs]
    other = [x[..., ::-1] * 1.5 if np.ndim(x) else x - 1.0 for x in xs]
    both = [np.stack(pair, a) for *pair, a in zip(xs, other, at, strict=True)]
    ndim = np.ndim(jax.eval_shape(f, *xs))
    d = claimed(jax.vmap(f, tuple(at), ndim), both)

    def test() -> None:
        seen = []
        for first, second, a in zip(influence(f, xs), influence(f, other), at, strict=True):
            one, two = [first, first & False], [second & False, second]
            apart = [np.stack(one, ndim), np.stack(two, ndim)]
            seen.append(np.stack(apart, ndim + 1 + a))
        holds(d, both, seen)

    kept.passed(changes(f), [xs], [axes(d), both, at], test)
    if name not in MIXING:
        for i, along in d.items():
            assert along[at[i]] == Along(ndim), axes(d)


def follow_everything(shapes: Any, out: Any, p: Any) -> Any:
    """A rule: every axis stays where it is."""
    return [lambda a: a] * len(shapes)


MUTANTS = {
    "concatenate": ("concatenate", "concatenate"),
    "reshape": ("reshape misleading", "reshape"),
    "reverse": ("reverse", "rev"),
    "sort": ("sort", "sort"),
    "dot": ("transposed dot", "dot_general"),
    "slice": ("slice", "slice"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_rule_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, primitive = MUTANTS[name]
    wrong = dataclasses.replace(primitives.named(primitive), axes=follow_everything)
    monkeypatch.setitem(primitives.PRIMITIVES, primitive, wrong)
    f, xs, _ = CLAIMS[program]
    with pytest.raises(AssertionError, match="but also"):
        holds(claimed(f, xs), xs, influence(f, xs))


def test_a_forgotten_carry_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependence, "join", lambda ds: next((d for d in ds[::-1] if d), {}))
    with pytest.raises(AssertionError, match="but also"):
        holds(claimed(lagging, (X34,)), (X34,), influence(lagging, (X34,)))


# --- scores: only what comes of a draw multiplies its score ---------------------------------------


def run(f: Any, params: Any, n: int, samples: int = 1, **how: Any) -> Any:
    """``n`` gradients, and the draws that they were made from: what ``f`` returns beside its
    payoff (the mean of all ``samples``)."""
    objective = ppl.expectation(f, has_aux=True)

    def one(key: Any) -> Any:
        loss = lambda p: objective.surrogate(key, p, samples=samples, **how)
        (value, drawn), grad = jax.value_and_grad(loss, has_aux=True)(params)
        return value, drawn, grad

    return jax.device_get(ztest.compiled(jax.vmap(one))(jax.random.split(jax.random.key(1), n)))


sigmoid = lambda t: 1.0 / (1.0 + np.exp(-t))
T8 = np.linspace(-0.4, 0.5, 8)
COSTS = 0.1 + 0.02 * np.arange(8)


def flips(estimator: Any) -> Any:
    def f(t: Any) -> Any:
        b = ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(t)), estimator)
        return jnp.where(b == 1, 1.0 + COSTS, 1.0).sum(), b

    return f


def variance_of_flips() -> tuple[float, float]:
    """The exact variance of the gradient, naive and as it is, over all 2**8 outcomes."""
    _, drawn, grads = run(flips(ppl.reinforce()), jnp.asarray(T8), 6000)
    p = sigmoid(T8)
    found = {tuple(map(int, b)): g for b, g in zip(drawn, grads, strict=True)}
    outcomes = np.array(sorted(found))
    assert len(outcomes) == 2**8  # one is missed by 6,000 draws with probability 1e-7
    mine = np.array([found[tuple(b)] for b in outcomes])
    naive = np.sum(1.0 + COSTS * outcomes, 1, keepdims=True) * (outcomes - p)
    weight = np.prod(np.where(outcomes == 1, p, 1 - p), 1)
    exact = COSTS * p * (1 - p)
    for g in (mine, naive):
        np.testing.assert_allclose(weight @ g, exact, rtol=1e-10)
    second = lambda g: float(np.sum(weight @ (g - exact) ** 2))
    return second(naive), second(mine)


def test_independent_flips_have_little_variance() -> None:
    naive, mine = variance_of_flips()
    assert naive >= 50 * mine, naive / mine


def test_the_whole_score_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    every = lambda self, d, ndim: sum(map(jnp.sum, self.of.values()))
    monkeypatch.setattr(layout.Scores, "sum", every)
    naive, mine = variance_of_flips()
    np.testing.assert_allclose(naive, mine, rtol=1e-9)


def test_costs_before_a_choice_do_not_count() -> None:
    def f(t: Any) -> Any:
        flip = lambda name, t: ppl.sample(name, dist.Bernoulli(jax.nn.sigmoid(t)), ppl.reinforce())
        a = flip("a", t[0])
        first = 3.0 + 2.0 * a
        b = flip("b", t[1] + a)
        return first + 5.0 * b - jnp.cos(a * 1.0), (a, b)

    t = np.array([0.3, -0.2])
    _, (a, b), grads = run(f, jnp.asarray(t), 200)
    of_a, of_b = a - sigmoid(t[0]), b - sigmoid(t[1] + a)
    np.testing.assert_allclose(
        grads[:, 0], (3.0 + 2.0 * a + 5.0 * b - np.cos(a)) * of_a - 3.0 * of_a
    )
    np.testing.assert_allclose(grads[:, 1], 5.0 * b * of_b)


def walk(p: Any) -> Any:
    """Each step has a baseline of its own."""

    def step(x: Any, of_step: Any) -> Any:
        t, base = of_step
        q = jax.nn.sigmoid(t + 0.3 * x)
        b = ppl.sample("b", dist.Bernoulli(q), ppl.reinforce(ppl.learned(base)))
        x = 0.5 * x + b
        return x, (x**2, b)

    _, (costs, b) = lax.scan(step, jnp.zeros(()), (p["t"], p["base"]))
    return jnp.sum(costs), b


@pytest.mark.parametrize("base", [0.0, 1.3])
def test_a_loop_has_the_reward_to_go(base: float) -> None:
    t = np.array([0.3, -0.2, 0.1, 0.6, -0.5])
    params = {"t": jnp.asarray(t), "base": jnp.linspace(0.0, base, 5)}
    _, b, grads = run(walk, params, 200)
    x, score, cost = np.zeros(200), np.zeros(b.shape), np.zeros(b.shape)
    for i in range(5):
        score[:, i] = b[:, i] - sigmoid(t[i] + 0.3 * x)
        x = 0.5 * x + b[:, i]
        cost[:, i] = x**2
    to_go = np.cumsum(cost[:, ::-1], 1)[:, ::-1] - np.linspace(0.0, base, 5)
    np.testing.assert_allclose(grads["t"], to_go * score, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(grads["base"], to_go, rtol=1e-9, atol=1e-12)


def test_independent_steps_of_a_loop_are_apart() -> None:
    def f(t: Any) -> Any:
        def step(total: Any, t: Any) -> Any:
            b = ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(t)), ppl.reinforce())
            return total + 1.0 + 2.0 * b, b

        return lax.scan(step, jnp.zeros(()), t)

    _, b, grads = run(f, jnp.asarray(T8), 200)
    np.testing.assert_allclose(grads, 2.0 * b * (b - sigmoid(T8)), rtol=1e-9, atol=1e-12)


# --- baselines of each element --------------------------------------------------------------------


def test_a_constant_baseline_of_each_element() -> None:
    base = np.linspace(0.5, 1.2, 8)
    _, b, grads = run(flips(ppl.reinforce(base)), jnp.asarray(T8), 200)
    exact = (1.0 + COSTS * b - base) * (b - sigmoid(T8))
    np.testing.assert_allclose(grads, exact, rtol=1e-9, atol=1e-12)


def test_a_learned_baseline_of_each_element() -> None:
    def f(params: Any) -> Any:
        return flips(ppl.reinforce(ppl.learned(params["base"])))(params["t"])

    base = np.linspace(0.5, 1.2, 8)
    _, b, grads = run(f, {"t": jnp.asarray(T8), "base": jnp.asarray(base)}, 200)
    rest = 1.0 + COSTS * b - base
    np.testing.assert_allclose(grads["t"], rest * (b - sigmoid(T8)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(grads["base"], rest, rtol=1e-9, atol=1e-12)


def test_leave_one_out_of_each_element() -> None:
    k = 3
    _, mean, grads = run(flips(ppl.reinforce("loo")), jnp.asarray(T8), 200, samples=k)
    count = np.round(mean * k).astype(int)  # how many of the k samples are 1: all that matters
    exact = np.zeros(grads.shape)
    for i in range(k):
        b = count > i
        others = COSTS * (count - b) / (k - 1)
        exact += (COSTS * b - others) * (b - sigmoid(T8)) / k
    np.testing.assert_allclose(grads, exact, rtol=1e-9, atol=1e-12)


def test_a_moving_average_is_of_the_whole_payoff() -> None:
    flip = flips(ppl.reinforce(ppl.moving_average(0.8)))
    _, b, grads = run(flip, jnp.asarray(T8), 200, averages={0.8: jnp.asarray(7.5)})
    whole = np.sum(1.0 + COSTS * b, 1, keepdims=True) - 7.5
    np.testing.assert_allclose(grads, whole * (b - sigmoid(T8)), rtol=1e-9, atol=1e-12)


def test_a_moving_average_where_a_term_does_not_know_what_is_enumerated() -> None:
    """A choice that no term reads, given one that is enumerated: of an average that is the payoff
    nothing is left."""

    @ppl.expectation
    def f(t: Any) -> Any:
        def step(c: Any, _: Any) -> Any:
            z = flip("z", jax.nn.sigmoid(t[0]))
            flip("w", jax.nn.sigmoid(t[1] + z), ppl.reinforce(ppl.moving_average(0.8)))
            return c + z, None

        return lax.scan(step, 0.5, None, length=3)[0]

    p = sigmoid(0.3)
    averages = {0.8: jnp.asarray(0.5 + 3 * p)}
    surrogate = lambda t: f.surrogate(jax.random.key(0), t, averages=averages)
    grad = ztest.compiled(jax.grad(surrogate))(jnp.array([0.3, -0.4]))
    np.testing.assert_allclose(grad, [3 * p * (1 - p), 0.0], rtol=1e-9, atol=1e-12)


# --- enumeration ----------------------------------------------------------------------------------


class Exact(NamedTuple):
    """An objective and its expectation as a function of the same parameters."""

    f: Callable[[Any], Any]
    exact: Callable[[Any], Any]
    params: dict[str, Any]


def categorical(name: str, logits: Any, estimator: Any = None) -> Any:
    return ppl.sample(name, dist.Categorical(logits=logits), estimator or ppl.enum())


def flip(name: str, p: Any, estimator: Any = None) -> Any:
    return ppl.sample(name, dist.Bernoulli(p), estimator or ppl.enum())


MU = np.array([-1.0, 0.5, 2.0])
BITS = np.arange(2.0)
law = lambda p: jnp.stack([1 - p, p], -1)
"""Of a flip: on an axis behind."""


def mixture(p: Any) -> Any:
    z = jax.vmap(lambda l: categorical("z", l))(p["l"])
    return jnp.sum((p["m"][z] - p["x"]) ** 2)


def mixture_exact(p: Any) -> Any:
    return jnp.sum(jax.nn.softmax(p["l"]) * (p["m"] - p["x"][:, None]) ** 2)


def crossed(p: Any) -> Any:
    a = jax.vmap(lambda q: flip("a", q))(p["a"])
    b = jax.vmap(lambda q: flip("b", q))(p["b"])
    return jnp.sum(jnp.cos(a[:, None] * p["w"] + b)) + jnp.sum(p["a"] * a) - jnp.sum(b**2)


def crossed_exact(p: Any) -> Any:
    a, b = law(p["a"])[:, None, :, None], law(p["b"])[None, :, None, :]
    of_both = a * b * jnp.cos(BITS[:, None] * p["w"][:, :, None, None] + BITS)
    return of_both.sum() + jnp.sum(p["a"] ** 2) - jnp.sum(p["b"])


def nested(p: Any) -> Any:
    def outer(a: Any, rows: Any) -> Any:
        z = flip("z", a)
        return jax.vmap(lambda l: jnp.sin(flip("w", jax.nn.sigmoid(l + z)) + 0.5 * z + l))(rows)

    return jnp.mean(jax.vmap(outer)(p["a"], p["l"]))


def nested_exact(p: Any) -> Any:
    l = p["l"][:, :, None]
    w = law(jax.nn.sigmoid(l + BITS))
    f = jnp.sin(BITS + 0.5 * BITS[:, None] + l[..., None])
    return jnp.mean(jnp.einsum("iz,ijzw,ijzw->ij", law(p["a"]), w, f))


def under_global(p: Any) -> Any:
    g = categorical("g", p["g"])
    z = jax.vmap(lambda l: flip("z", jax.nn.sigmoid(l * jnp.asarray(MU)[g])))(p["l"])
    return jnp.sum(jnp.exp(0.3 * z * g)) + jnp.asarray(MU)[g] ** 2


def under_global_exact(p: Any) -> Any:
    z = law(jax.nn.sigmoid(p["l"][:, None] * MU))
    f = jnp.exp(0.3 * BITS * np.arange(3.0)[:, None])
    return jnp.einsum("g,igz,gz->", jax.nn.softmax(p["g"]), z, f) + jax.nn.softmax(p["g"]) @ MU**2


def in_steps(p: Any) -> Any:
    def step(total: Any, l: Any) -> Any:
        z = jax.vmap(lambda l: flip("z", jax.nn.sigmoid(l)))(l)
        return total + jnp.sum(jnp.cos(z + l)), jnp.sum(z * l)

    total, ys = lax.scan(step, jnp.zeros(()), p["l"])
    return total + ys.mean()


def in_steps_exact(p: Any) -> Any:
    w = law(jax.nn.sigmoid(p["l"]))
    f = jnp.cos(BITS + p["l"][..., None]) + BITS * p["l"][..., None] / len(p["l"])
    return jnp.sum(w * f)


def meeting(p: Any) -> Any:
    z = jax.vmap(lambda l: categorical("z", l))(p["l"])
    return jnp.prod(p["m"][z]) + jnp.sum(jnp.sin(p["m"][z])) + jnp.exp(-jnp.max(z))


def meeting_exact(p: Any) -> Any:
    total = 0.0
    for z in itertools.product(range(3), repeat=3):
        w = jnp.prod(jax.nn.softmax(p["l"])[jnp.arange(3), jnp.array(z)])
        m = p["m"][jnp.array(z)]
        total += w * (jnp.prod(m) + jnp.sum(jnp.sin(m)) + jnp.exp(-1.0 * max(z)))
    return total


def row_by_row(p: Any) -> Any:
    """Elements of a row meet, rows do not."""
    z = jax.vmap(jax.vmap(lambda q: flip("z", q)))(p["q"])
    return jnp.sum(jnp.prod(1.0 + z * p["q"], axis=1))


def row_by_row_exact(p: Any) -> Any:
    return jnp.sum(jnp.prod(1.0 + p["q"] ** 2, axis=1))


def layers(p: Any) -> Any:
    a = flip("a", p["a"])  # an array of independent elements, not a vmap
    b = flip("b", jax.nn.sigmoid(p["l"] + a))
    return jnp.sum(jnp.cos(b + 2.0 * a) * p["a"])


def layers_exact(p: Any) -> Any:
    a, b = law(p["a"]), law(jax.nn.sigmoid(p["l"][:, None] + BITS))
    return jnp.einsum("ia,iab,ab,i", a, b, jnp.cos(BITS + 2.0 * BITS[:, None]), p["a"])


def chained(p: Any) -> Any:
    def step(z: Any, l: Any) -> Any:
        z = flip("z", jax.nn.sigmoid(l + p["w"] * z))
        return z, jnp.cos(z + l)

    return lax.scan(step, 0, p["l"])[1].sum()


def chained_exact(p: Any) -> Any:
    q, total = jnp.array([1.0, 0.0]), 0.0
    for l in p["l"]:
        q = q @ law(jax.nn.sigmoid(l + p["w"] * BITS))
        total += q @ jnp.cos(BITS + l)
    return total


def rows_of_a_table(p: Any) -> Any:
    """Each element looks up a row of its own."""
    one = lambda row, l: row[categorical("z", l)]
    return jnp.sum(jnp.sin(jax.vmap(one)(p["t"], p["l"])))


def rows_of_a_table_exact(p: Any) -> Any:
    return jnp.sum(jax.nn.softmax(p["l"]) * jnp.sin(p["t"]))


U = np.random.default_rng(3)
EXACT = {
    "plate of 1000": Exact(
        mixture, mixture_exact, {"l": U.normal(size=(1000, 3)), "m": MU, "x": U.normal(size=1000)}
    ),
    "two plates": Exact(
        crossed,
        crossed_exact,
        {"a": U.uniform(size=30), "b": U.uniform(size=20), "w": U.normal(size=(30, 20))},
    ),
    "nested plates": Exact(
        nested, nested_exact, {"a": U.uniform(size=20), "l": U.normal(size=(20, 30))}
    ),
    "global choice": Exact(
        under_global, under_global_exact, {"g": U.normal(size=3), "l": U.normal(size=200)}
    ),
    "plate in a scan": Exact(in_steps, in_steps_exact, {"l": U.normal(size=(40, 25))}),
    "elements that meet": Exact(meeting, meeting_exact, {"l": U.normal(size=(3, 3)), "m": MU}),
    "rows that meet": Exact(row_by_row, row_by_row_exact, {"q": U.uniform(size=(50, 4))}),
    "layers": Exact(layers, layers_exact, {"a": U.uniform(size=60), "l": U.normal(size=60)}),
    "rows of a table": Exact(
        rows_of_a_table,
        rows_of_a_table_exact,
        {"t": U.normal(size=(40, 3)), "l": U.normal(size=(40, 3))},
    ),
    "chain": Exact(chained, chained_exact, {"l": U.normal(size=25), "w": np.array(0.8)}),
}


def value_and_grad(f: Any, params: Any) -> Any:
    objective = ppl.expectation(f)
    g = lambda p: objective.surrogate(jax.random.key(0), p)
    return ztest.compiled(jax.value_and_grad(g))(jax.tree.map(jnp.asarray, params))


@pytest.mark.parametrize("name", EXACT)
def test_enumeration_is_exact(name: str) -> None:
    f, exact, params = EXACT[name]
    objective, params = ppl.expectation(f), jax.tree.map(jnp.asarray, params)
    mine = jax.value_and_grad(lambda p: objective.surrogate(jax.random.key(0), p))
    right = lambda: ztest.compiled(jax.value_and_grad(exact))(params)
    claim = [exact, params]
    ztest.check_exact(mine, [params], right, claim, rtol=1e-9, atol=1e-12)


def test_a_law_without_a_choice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight of all but the last choice of a term."""
    whole = layout.Layout.law
    drop = lambda self, d, ndim, factors: whole(self, d, ndim, dict(list(factors.items())[:1]))
    monkeypatch.setattr(layout.Layout, "law", drop)
    with pytest.raises(AssertionError):
        test_enumeration_is_exact("layers")


# --- several estimators ---------------------------------------------------------------------------

PAIRS = [
    (ppl.enum(), ppl.reinforce()),
    (ppl.reinforce("loo"), ppl.enum()),
    (ppl.enum(), ppl.mvd()),
    (ppl.mvd(), ppl.enum()),
    (ppl.reinforce(), ppl.mvd()),
    (ppl.mvd(), ppl.reinforce(0.5)),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(e.name for e in pair))
def test_two_estimators_one_after_the_other(pair: Any) -> None:
    params = {"a": jnp.array([0.3, 0.6, 0.45]), "l": jnp.array([0.4, -0.3, 0.2])}

    def f(p: Any) -> Any:
        def one(q: Any, l: Any) -> Any:
            a = flip("a", q, pair[0])
            b = flip("b", jax.nn.sigmoid(l + a), pair[1])
            return jnp.cos(b + 2.0 * a) * q

        return jax.vmap(one)(p["a"], p["l"]).sum()

    exact = jax.jit(jax.value_and_grad(layers_exact))(params)
    objective = ppl.expectation(f)
    surrogate = lambda key: lambda p: objective.surrogate(key, p, samples=2)
    ztest.check(lambda key: jax.value_and_grad(surrogate(key))(params), jax.device_get(exact))


def test_estimators_side_by_side() -> None:
    """Terms of the measure-valued choices do not depend on the enumerated ones, or on some."""
    params = {"m": jnp.array([0.2, 1.1, -0.4]), "q": jnp.array([0.3, 0.6])}

    def f(p: Any) -> Any:
        x = jax.vmap(lambda m: ppl.sample("x", dist.Normal(m, 1.0), ppl.mvd()))(p["m"])
        z = jax.vmap(lambda q: flip("z", q))(p["q"])
        return jnp.sum(x > 0.5) * 1.0 + jnp.sum(jnp.cos(z)) + jnp.where(x[0] > 0.0, z[1], 0.5)

    def exact(p: Any) -> Any:
        cdf, q = jax.scipy.stats.norm.cdf, p["q"]
        both = cdf(p["m"][0])
        alone = jnp.sum(cdf(p["m"] - 0.5)) + jnp.sum(q * jnp.cos(1.0) + 1 - q)
        return alone + both * q[1] + (1 - both) * 0.5

    objective = ppl.expectation(f)
    right = jax.device_get(jax.jit(jax.value_and_grad(exact))(params))
    estimate = lambda key: jax.value_and_grad(lambda p: objective.surrogate(key, p))(params)
    ztest.check(estimate, right)


def test_a_baseline_is_for_the_mean_over_enumerated_values() -> None:
    """Per draw: what a learned baseline is fitted to is the mean over what comes after."""

    def f(p: Any) -> Any:
        a = flip("a", p["a"], ppl.reinforce(ppl.learned(p["base"])))
        b = flip("b", jax.nn.sigmoid(p["l"] + a))
        return jnp.sum(jnp.cos(b + 2.0 * a)), a

    p = {"a": np.array([0.3, 0.6, 0.45]), "l": np.array([0.4, -0.3, 0.2]), "base": np.ones(3) / 3}
    _, a, grads = run(f, jax.tree.map(jnp.asarray, p), 100)
    q = sigmoid(p["l"] + a)
    mean = q * np.cos(1.0 + 2.0 * a) + (1 - q) * np.cos(2.0 * a)
    score = a / p["a"] - (1 - a) / (1 - p["a"])
    np.testing.assert_allclose(grads["base"], mean - p["base"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(grads["a"], (mean - p["base"]) * score, rtol=1e-9, atol=1e-12)


def test_pathwise_choices_around_enumerated_ones() -> None:
    """z ~ Bernoulli(0.5 + 0.3 sin x), x ~ N(m, 1), y ~ N(m z, s): E sin y is known."""
    params = {"m": jnp.array([0.4, -0.9, 1.3]), "s": jnp.asarray(0.7)}

    def f(p: Any) -> Any:
        def one(m: Any) -> Any:
            x = ppl.sample("x", dist.Normal(m, 1.0), ppl.reparam())
            z = flip("z", 0.5 + 0.3 * jnp.sin(x))
            y = ppl.sample("y", dist.Normal(m * z, p["s"]), ppl.reparam())
            return jnp.sin(y) + z * m

        return jax.vmap(one)(p["m"]).sum()

    def exact(p: Any) -> Any:
        q = 0.5 + 0.3 * jnp.sin(p["m"]) * jnp.exp(-0.5)
        return jnp.sum(q * (jnp.sin(p["m"]) * jnp.exp(-(p["s"] ** 2) / 2) + p["m"]))

    objective = ppl.expectation(f)
    right = jax.device_get(jax.jit(jax.value_and_grad(exact))(params))
    estimate = lambda key: jax.value_and_grad(lambda p: objective.surrogate(key, p))(params)
    ztest.check(estimate, right)


def test_other_outputs_may_couple_elements() -> None:
    """The payoff keeps the elements apart, what is returned beside it does not."""
    q = jnp.array([0.8, 0.6, 0.7, 0.9])

    def f(q: Any) -> Any:
        z = jax.vmap(lambda q: flip("z", q))(q)
        return jnp.sum(jnp.cos(z * q)), (jnp.prod(z * 1.0), z * 1.0, jnp.max(z) - jnp.min(z))

    objective = ppl.expectation(f, has_aux=True)
    p = np.asarray(q)
    right = np.sum(p * np.cos(p) + 1 - p)
    spread = 1 - np.prod(p) - np.prod(1 - p)
    exact = jax.tree.map(np.asarray, (right, (np.prod(p), p, spread)))
    ztest.check(lambda key: objective.surrogate(key, q), exact)
    grad = ztest.compiled(jax.grad(lambda q: objective.surrogate(jax.random.key(0), q)[0]))
    np.testing.assert_allclose(grad(q), np.cos(p) - p * np.sin(p) - 1.0, rtol=1e-10)


# --- measure-valued -------------------------------------------------------------------------------


def pulled(estimator: Any) -> Any:
    """A plate of a normal and a flip, with a payoff that jumps."""

    def f(p: Any) -> Any:
        def one(m: Any, l: Any) -> Any:
            x = ppl.sample("x", dist.Normal(m, 1.0), estimator)
            b = flip("b", jax.nn.sigmoid(l), estimator)
            return jnp.where(x > 0.5, 1.0 + b, 0.3 * b)

        return jax.vmap(one)(p["m"], p["l"]).sum()

    return f


def pulled_in_steps(p: Any) -> Any:
    def step(total: Any, v: Any) -> Any:
        return total + pulled(ppl.mvd())({"m": v[0][None], "l": v[1][None]}), None

    return lax.scan(step, jnp.zeros(()), (p["m"], p["l"]))[0]


def pulled_exact(p: Any) -> Any:
    over, b = jax.scipy.stats.norm.cdf(p["m"] - 0.5), jax.nn.sigmoid(p["l"])
    return jnp.sum(over * (1.0 + b) + (1.0 - over) * 0.3 * b)


PULLED = {"plate": pulled(ppl.mvd()), "steps": pulled_in_steps}


@pytest.mark.parametrize("name", PULLED)
def test_measure_valued_elements_are_unbiased(name: str) -> None:
    params = {"m": jnp.array([0.2, 1.1, -0.4]), "l": jnp.array([0.3, -0.8, 0.1])}
    objective = ppl.expectation(PULLED[name])
    exact = jax.device_get(jax.jit(jax.value_and_grad(pulled_exact))(params))
    estimate = lambda key: jax.value_and_grad(lambda p: objective.surrogate(key, p))(params)
    ztest.check(estimate, exact)


# --- cost -----------------------------------------------------------------------------------------


def flops(f: Any, params: Any) -> float:
    objective = ppl.expectation(f)
    grad = jax.jit(jax.grad(lambda p: objective.surrogate(jax.random.key(0), p)))
    analysis = grad.lower(params).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


GROWING = {
    "enumeration in a plate": (
        mixture,
        lambda n: {"l": jnp.ones((n, 3)), "m": jnp.asarray(MU), "x": jnp.ones(n)},
    ),
    "enumeration in layers": (layers, lambda n: {"a": jnp.full(n, 0.4), "l": jnp.ones(n)}),
    "measure-valued in a plate": (PULLED["plate"], lambda n: {"m": jnp.ones(n), "l": jnp.ones(n)}),
}


@pytest.mark.parametrize("name", GROWING)
def test_cost_is_linear_in_the_size_of_a_plate(name: str) -> None:
    f, make = GROWING[name]
    assert flops(f, make(1000)) <= 10.5 * flops(f, make(100))


def equations(f: Any, params: Any) -> tuple[int, int]:
    """How many there are, and the elements of the largest array."""
    objective = ppl.expectation(f)
    grad = jax.grad(lambda p: objective.surrogate(jax.random.key(0), p))

    def count(jaxpr: Any) -> int:
        return sum(1 + sum(count(sub.jaxpr) for sub in _jax.sub_jaxprs(eqn)) for eqn in jaxpr.eqns)

    def largest(jaxpr: Any) -> int:
        mine = [int(np.prod(v.aval.shape)) for eqn in jaxpr.eqns for v in eqn.outvars]
        subs = [largest(sub.jaxpr) for eqn in jaxpr.eqns for sub in _jax.sub_jaxprs(eqn)]
        return max([0, *mine, *subs])

    jaxpr = jax.make_jaxpr(grad)(params).jaxpr
    return count(jaxpr), largest(jaxpr)


@pytest.mark.parametrize("f", [in_steps, pulled_in_steps, chained], ids=lambda f: f.__name__)
def test_loops_are_neither_unrolled_nor_squared(f: Any) -> None:
    """XLA counts the body of a loop once: so count equations, and elements of the largest."""
    make = {
        in_steps: lambda n: {"l": jnp.ones((n, 2))},
        pulled_in_steps: lambda n: {"m": jnp.ones(n), "l": jnp.ones(n)},
        chained: lambda n: {"l": jnp.ones(n), "w": jnp.ones(())},
    }[f]
    few, small = equations(f, make(600))  # a smaller table is turned at once
    many, large = equations(f, make(3000))
    assert many == few
    assert large <= 5.25 * small


# --- too much -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [22, 20_000])
def test_too_many_joint_values_name_what_meets(n: int) -> None:
    @ppl.expectation
    def f(q: Any) -> Any:
        a = jax.vmap(lambda q: flip("a", q))(q)
        b = categorical("b", jnp.zeros(3))
        return jnp.prod(1.0 + a) * b

    with pytest.raises(UnsupportedError) as error:
        f.grad(jax.random.key(0), jnp.full(n, 0.5))
    message = str(error.value)
    for part in (f"'a' (2**{n} values, ", "'b' (3 values, ", "test_dependence.py:"):
        assert part in message, message
    for part in ("ppl.reinforce()", "ppl.mvd()", "jax.vmap(inner)(xs).sum()"):
        assert part in message, message


def test_the_slope_of_a_term_is_multiplied_by_its_weight_alone() -> None:
    """XLA repeats the factor wherever the slope goes, and would repeat the term with it."""
    weight, f = jnp.array([0.0, 0.3]), jnp.array([-jnp.inf, 2.0])
    np.testing.assert_array_equal(jax.jit(times)(weight, f), [0.0, 0.6])
    slopes = jax.jit(jax.grad(lambda w, f: jnp.sum(times(w, f)), argnums=(0, 1)))(weight, f)
    np.testing.assert_array_equal(slopes, [[0.0, 2.0], [0.0, 0.3]])
    _, slope = jax.linearize(lambda f: times(weight, f), f)
    used = {eqn.primitive.name for eqn in jax.make_jaxpr(slope)(f).jaxpr.eqns}
    assert used <= {"mul", "add", "add_any"}, used


def unasked(p: Any, read: Callable[[Any], Any]) -> Any:
    """A chain of flips in whose payoff neighbours meet; nobody chose an estimator."""

    def step(z: Any, _: None) -> Any:
        new = 1.0 * ppl.sample("z", dist.Bernoulli(jax.nn.sigmoid(p + z)))
        return new, read(z) * new

    return jnp.sum(lax.scan(step, jnp.zeros(()), length=40)[1])


def test_a_chain_is_enumerated_unasked() -> None:
    def exact(p: Any) -> Any:
        def step(q: Any, _: None) -> Any:  # the probability of 1
            on = q * jax.nn.sigmoid(p + 1.0), (1 - q) * jax.nn.sigmoid(p)
            return sum(on), jnp.cos(1.0) * on[0] + on[1]

        return jnp.sum(lax.scan(step, jnp.zeros(()), length=40)[1])

    found = value_and_grad(lambda p: unasked(p, jnp.cos), 0.3)
    np.testing.assert_allclose(found, jax.jit(jax.value_and_grad(exact))(0.3), rtol=1e-10)


def test_a_chain_with_other_choices_is_not_enumerated_unasked() -> None:
    @ppl.expectation
    def f(p: Any) -> Any:
        return unasked(p, lambda z: ppl.sample("x", dist.Normal(z, 1.0), ppl.reinforce()))

    rows = {row[0]: row[3] for row in f.explain(0.3).rows}
    assert rows == {"z": "reinforce", "x": "reinforce"}


# --- found by probing -----------------------------------------------------------------------------


def test_a_coefficient_that_is_0_has_a_derivative() -> None:
    value, grad = value_and_grad(lambda t: t * flip("b", 0.3), 0.0)
    np.testing.assert_allclose((value, grad), (0.0, 0.3), atol=1e-12)


def lagged(zs: Any) -> Any:
    return lax.scan(lambda c, z: (z, c + 2.0 * z), jnp.zeros((), zs.dtype), zs)[1]


@pytest.mark.parametrize("wrap", [jax.checkpoint, lambda f: lambda z: lax.map(f, z[None])[0]])
def test_neighbours_meet_in_a_loop_within_something(wrap: Any) -> None:
    def f(p: Any) -> Any:
        def step(z: Any, _: None) -> Any:
            z = 1.0 * flip("z", jax.nn.sigmoid(p + z))
            return z, z

        return jnp.sum(jnp.cos(wrap(lagged)(lax.scan(step, jnp.zeros(()), length=4)[1])))

    def exact(p: Any) -> Any:
        z = np.array(list(itertools.product([0.0, 1.0], repeat=4)))
        before = np.pad(z[:, :-1], ((0, 0), (1, 0)))
        q = jax.nn.sigmoid(p + before)
        weights = jnp.prod(jnp.where(z == 1, q, 1 - q), axis=1)
        return weights @ np.sum(np.cos(before + 2.0 * z), axis=1)

    found, expected = value_and_grad(f, 0.3), jax.jit(jax.value_and_grad(exact))(0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_plate_under_checkpoint_is_enumerated_in_step() -> None:
    """2**200 joint values, were the sum not seen through."""

    @jax.checkpoint
    def f(p: Any) -> Any:
        z = 1.0 * flip("z", jnp.full(200, p))
        return jnp.sum(jnp.cos(z) * jnp.arange(200.0))

    exact = lambda p: jnp.sum(jnp.arange(200.0)) * (1 - p + p * jnp.cos(1.0))
    found, expected = value_and_grad(f, 0.3), jax.jit(jax.value_and_grad(exact))(0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_squared_loss_as_an_inner_product() -> None:
    """2**200 joint values, were it not a sum of squares."""
    at = jnp.linspace(-1.0, 1.0, 200)

    def f(p: Any) -> Any:
        error = flip("z", jnp.full(200, p)) - at
        return error @ error / 200

    exact = lambda p: jnp.mean((1 - p) * at**2 + p * (1 - at) ** 2)
    found, expected = value_and_grad(f, 0.3), jax.jit(jax.value_and_grad(exact))(0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_draws_depend_on_the_parameters_of_a_masked_distribution() -> None:
    def f(p: Any) -> Any:
        z = flip("z", p)
        return ppl.sample("x", dist.Normal(2.0 * z, 1.0).mask(False), ppl.reparam())

    mean = lambda k: ppl.expectation(f).grad(k, 0.3)  # 2 + the noise of two draws
    ztest.check(mean, np.array(2.0), n=20_000)


def test_the_first_axis_of_top_k() -> None:
    def f(p: Any) -> Any:
        z = 1.0 * flip("z", jnp.full((2, 2), p))
        return jnp.sum(lax.top_k(z, 1, axis=0)[0])

    np.testing.assert_allclose(value_and_grad(f, 0.3), (1.02, 2.8), rtol=1e-10)


def test_choices_within_a_function_are_known_by_their_own_path() -> None:
    """Else they would be taken for a plate that stands at their number in the program."""
    inner = jax.jit(lambda q: ppl.sample("x", dist.Normal(jnp.sin(q), 1.0)))
    closed = _jax.trace(lambda p: inner(p) + flip("z", p), 0.3)[0]
    asked: set[Any] = set()
    alike.compress(closed, [alike.NO], lambda path: asked.add(path) or alike.NO)
    assert asked == {c.path for c in choices(closed)}


def test_a_baseline_of_another_shape_is_refused() -> None:
    def f(p: Any) -> Any:
        b = jax.vmap(lambda q: ppl.sample("b", dist.Bernoulli(q), ppl.reinforce(jnp.arange(3.0))))(
            p
        )
        return jnp.sum(b) * 1.0

    with pytest.raises(ValueError, match="map over the baseline too"):
        ppl.expectation(f).grad(jax.random.key(0), jnp.full(3, 0.3))


@pytest.mark.parametrize(
    "after", [jax.jit(lambda s, p: -s), lambda s, p: jnp.where(p > 0, -s, 0.0)]
)
def test_a_sum_goes_on_outside_of_a_function(after: Any) -> None:
    """30 elements that meet would be 2**30 joint values."""

    def f(p: Any) -> Any:
        return after(jnp.sum(jnp.cos(1.0 * flip("b", jnp.full(30, p)))), p)

    exact = lambda p: -30 * (1 - p + p * jnp.cos(1.0))
    expected = jax.jit(jax.value_and_grad(exact))(0.3)
    np.testing.assert_allclose(value_and_grad(f, 0.3), expected, rtol=1e-10)
