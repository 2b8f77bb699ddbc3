"""Elements of discrete arrays that meet because they are read at static places.

Sums, best values, marginals and draws against all joint values, in float64; means of an objective
and their gradients too. What is computed with grows with the number of elements.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import kept
import numpy as np
import pytest
import ztest
from jax.scipy.special import logsumexp

import ppl
from ppl import dist
from transforms.errors import UnsupportedError
from transforms.exact import elimination
from transforms.exact.classes import Variable

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(2)
A, B = RNG.normal(size=(3, 3)), RNG.normal(size=(2, 2, 2))
H = RNG.normal(size=12)
PARENTS = np.array([0, 0, 1, 1, 2])
TWO = np.array([[1, 3], [0, 0], [4, 5], [2, 3], [4, 0], [5, 1]])


def array(name: str, *shape: int, n: int = 2) -> Variable:
    return Variable(shape, n, f"{name!r} at here.py:1")


# --- functions of arrays --------------------------------------------------------------------------


def tree(z: Any) -> Any:
    return jnp.sum(jnp.asarray(A)[z[1:], z[PARENTS]] * H[:5]) + jnp.sum(H[:6] * z)


def ring(z: Any) -> Any:
    s = 2.0 * z - 1
    return jnp.sum(H[:6] * s * jnp.roll(s, 1)) + jnp.sum(jax.nn.softplus(s * jnp.roll(s, -2)))


def network(z: Any) -> Any:
    """Two parents each, in a table and in a sum; some elements are their own parents."""
    at = z[TWO]
    table = jnp.asarray(B)[at[:, 0], at[:, 1], z]
    return jnp.sum(table * H[:6]) + jnp.sum(jnp.tanh(at @ jnp.array([1.0, -0.5]) + z) * H[6:])


def plates(z: Any, c: Any) -> Any:
    """Neighbours within rows, which one choice is above; each row has one of its own."""
    t = jnp.tanh(z[:, 1:] - 0.7 * z[:, :-1] + c[0] * H[:3])
    return jnp.sum(t * jnp.array([[1.0], [2.0]])) + jnp.sum(z * c[1:, None] * H[4:8])


def lattice(z: Any) -> Any:
    down = jnp.sum(
        jax.vmap(lambda a, b: jax.lax.cond(a > 0, jnp.sin, jnp.cos, b * 1.0))(z[1, :], z[0, :])
    )
    return (
        down
        + jnp.sum(H[:4].reshape(2, 2) * z[:, 1:] * z[:, :-1])
        + jnp.sum(H[:6].reshape(3, 2) * z.T)
    )


CASES: dict[str, tuple[Callable[..., Any], list[Variable]]] = {
    "tree": (tree, [array("z", 6, n=3)]),
    "ring": (ring, [array("z", 6)]),
    "network": (network, [array("z", 6)]),
    "plates": (plates, [array("z", 2, 4), array("c", 3)]),
    "lattice": (lattice, [array("z", 2, 3)]),
}


def joint_values(variables: list[Variable]) -> list[np.ndarray]:
    """All joint values, for each array."""
    sizes = [int(np.prod(v.shape)) for v in variables]
    ranges = [range(v.n) for v, size in zip(variables, sizes, strict=True) for _ in range(size)]
    every = np.array(list(itertools.product(*ranges)))
    parts = np.split(every, np.cumsum(sizes)[:-1], axis=1)
    return [a.reshape(-1, *v.shape) for a, v in zip(parts, variables, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_sums_are_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of the sum, the largest value, how probable values are, the density of a draw."""
    f, variables = CASES[name]
    monkeypatch.setattr(elimination, "LARGE", 1)
    who = "sum", "else"

    def weighed(weights: list[Any], *zs: Any) -> Any:
        own = [
            w * (z[..., None] == jnp.arange(w.shape[-1])) for w, z in zip(weights, zs, strict=True)
        ]
        return f(*zs) + sum(map(jnp.sum, own))

    def run(key: Any) -> Any:
        density: list[Any] = []

        def pick(i: int, name: str, logits: Any) -> Any:
            own = jax.random.fold_in(key, zlib.crc32(f"{i} {name}".encode()))
            k = jax.random.categorical(own, logits)
            law = jax.nn.log_softmax(logits)
            density.append(jnp.sum(jnp.take_along_axis(law, k[..., None], -1)))
            return k

        drawn, _ = elimination.draw(f, variables, pick)
        best, most = elimination.best(f, variables, who)
        marginals, total = elimination.marginals(weighed, variables, who)
        return total, most, f(*best), marginals, sum(density) - f(*drawn) + total

    run = ztest.compiled(run)

    def test() -> None:
        zs = joint_values(variables)
        log_p = np.asarray(jax.jit(jax.vmap(f))(*zs))
        total, most, at_best, marginals, off = jax.device_get(run(jax.random.key(0)))
        np.testing.assert_allclose(total, logsumexp(log_p), rtol=1e-12)
        np.testing.assert_allclose([most, at_best], log_p.max(), rtol=1e-12)
        np.testing.assert_allclose(off, 0.0, atol=1e-12)
        p = np.exp(log_p - total)
        for v, z, found in zip(variables, zs, marginals, strict=True):
            right = [np.tensordot(p, z == k, 1) for k in range(v.n)]
            np.testing.assert_allclose(found, np.stack(right, -1), rtol=1e-9)

    kept.passed(run, [jax.random.key(0)], [CASES[name], A, B, H], test)


# --- programs -------------------------------------------------------------------------------------


def test_a_large_tree_is_summed_from_its_leaves() -> None:
    """2^60 joint values: by messages from each node to its parent."""
    n, law, x = 60, np.array([0.7, 0.3]), np.random.default_rng(1).normal(size=59)
    parents = np.array([(i - 1) // 2 for i in range(1, n)])

    @ppl.gen
    def g() -> None:
        prior: Any = dist.Categorical(probs=law)
        z = jax.vmap(lambda: ppl.sample("z", prior), axis_size=n)()
        mean: Any = z[1:] - 0.5 * z[parents]
        ppl.sample("x", dist.Normal(mean, 1.0))

    up = np.tile(law, (n, 1))
    for i in range(n - 1, 0, -1):
        k = np.arange(2)
        seen = np.exp(-((x[i - 1] - k + 0.5 * k[:, None]) ** 2) / 2) / np.sqrt(2 * np.pi)
        up[parents[i - 1]] *= seen @ up[i]
    evidence = ppl.marginal(g(), ["x"], by=ppl.enumeration())
    run = ztest.compiled(lambda x: evidence.log_density({"x": x}, jax.random.key(0)))

    def test() -> None:
        np.testing.assert_allclose(run(x), np.log(up[0].sum()), rtol=1e-12)

    kept.passed(run, [x], [up], test)


def test_a_chain_takes_log_n_rounds() -> None:
    """So many equations more for one that is 16 times as long."""

    def equations(n: int) -> int:
        pairs = lambda z: jnp.sum(jnp.tanh(z[1:] - 0.5 * z[:-1]))
        run = lambda: elimination.log_sum(pairs, [array("z", n)])
        return len(jax.make_jaxpr(run)().jaxpr.eqns)

    assert equations(512) < 2 * equations(32)


def test_what_cannot_be_summed_is_refused_with_the_elements_that_meet() -> None:
    """Each element with each other, beside a few that are read at static places."""

    @ppl.gen
    def g() -> None:
        z = jax.vmap(lambda: ppl.sample("z", dist.Bernoulli(0.5)), axis_size=40)()
        ppl.factor("near", jnp.sum(jnp.tanh(z[1:] + z[:-1])))
        ppl.factor("far", sum(jnp.sum(jnp.tanh(z[k:] - z[:-k])) for k in range(2, 30)))

    with pytest.raises(UnsupportedError, match=re.escape("'z'[12] at")):
        ppl.marginal(g(), [], by=ppl.enumeration()).log_density({}, jax.random.key(0))


def bits(f: Callable[..., Any], n: int) -> ppl.Expectation:
    """The mean of a function of independent bits, and of a parameter."""

    @ppl.expectation
    def mean(p: Any) -> Any:
        logits = p * jnp.asarray(np.resize(H, n))
        z = jax.vmap(lambda l: ppl.sample("z", dist.Bernoulli(logits=l), ppl.enum()))(logits)
        return f(z, p)

    return mean


MEANS = {
    "tree": lambda z, p: jnp.sum(jnp.tanh(z[1:] - p * z[np.resize(PARENTS, len(z) - 1)])),
    "ring": lambda z, p: jnp.sum(jnp.tanh(z - p * jnp.roll(z, 1))),
    "network": lambda z, p: network(z) * p,
}


@pytest.mark.parametrize("name", MEANS)
def test_means_are_exact(name: str) -> None:
    f, z = MEANS[name], joint_values([array("z", 6)])[0]
    gradient = ztest.compiled(
        jax.value_and_grad(lambda p: bits(f, 6).surrogate(jax.random.key(0), p))
    )

    def exact(p: Any) -> Any:
        logits = p * H[:6]
        p_z = jnp.exp(jnp.sum(jax.nn.log_sigmoid(jnp.where(z == 1, logits, -logits)), 1))
        return jnp.sum(p_z * jax.vmap(lambda z: f(z, p))(z))

    def test() -> None:
        right = jax.jit(jax.value_and_grad(exact))(0.6)
        np.testing.assert_allclose(gradient(0.6), right, rtol=1e-9)

    kept.passed(gradient, [0.6], [f, H], test)


AT = np.array([[3, 19], [0, 19], [7, 14]])


READS: dict[str, Callable[..., Any]] = {
    "at once": lambda zs, at: zs[at],
    "one by one": lambda zs, at: jnp.stack([jnp.stack([zs[t] for t in row]) for row in at]),
}


def chain(read: Callable[..., Any], *how: Any) -> Callable[[Any], Any]:
    """Two chains side by side, and terms that read some of their steps after the loop."""

    def run(p: Any) -> Any:
        laws = p * jnp.asarray(A)

        def step(z: Any, _: Any) -> Any:
            law: Any = lambda z: dist.Categorical(logits=laws[z])
            z = jax.vmap(lambda z: ppl.sample("z", law(z), *how))(z)
            return z, z

        zs = jax.lax.scan(step, jnp.zeros(2, int), length=20)[1]
        numbers = jnp.tanh(read(zs, AT) * p - H[:6].reshape(3, 2, 1))
        return jnp.sum(numbers) + jnp.sum(H[:2] * zs[-1] ** 2)

    return run


@pytest.mark.parametrize("read", READS)
def test_steps_of_a_chain_are_read_after_its_loop(read: str) -> None:
    """3^40 joint values: the evidence of what is seen of some steps, and a mean, by hand."""

    @ppl.gen
    def model(p: Any) -> None:
        ppl.factor("seen", chain(READS[read])(p))

    mean = ppl.expectation(chain(READS[read], ppl.enum()))
    key = jax.random.key(0)
    evidence = lambda p: ppl.marginal(model(p), [], by=ppl.enumeration()).log_density({}, key)
    run = ztest.compiled(
        lambda p: (jax.value_and_grad(evidence)(p), jax.value_and_grad(mean.surrogate, 1)(key, p))
    )

    def by_hand(p: Any) -> Any:
        law = jax.nn.softmax(p * jnp.asarray(A), 1)
        z, alone, value = jnp.arange(3), jnp.eye(3)[0], 0.0
        alphas = [alone, alone]
        for t in range(20):
            alone = alone @ law
            for c, alpha in enumerate(alphas):
                where = np.argwhere(t == AT)
                seen = sum((jnp.tanh(z * p - H[2 * a + b]) for a, b in where), 0.0 * z)
                seen += H[c] * z**2 * (t == 19)
                value += alone @ seen
                alphas[c] = (alpha @ law) * jnp.exp(seen)
        return sum(jnp.log(a.sum()) for a in alphas), value

    def test() -> None:
        found = run(0.6)
        right = [jax.jit(jax.value_and_grad(lambda p, k=k: by_hand(p)[k]))(0.6) for k in (0, 1)]
        np.testing.assert_allclose(found, right, rtol=1e-9)

    kept.passed(run, [0.6], [A, H, AT], test)


def test_a_draw_that_nothing_reads_is_gone_with_the_sum() -> None:
    """E of b0 b1 + b1 b2 + x b0 for independent b of probability q, at the x that is drawn."""

    @ppl.expectation(has_aux=True)
    def f(t: Any) -> Any:
        ppl.sample("unread", dist.Normal(0.0, 1.0))
        x = ppl.sample("x", dist.Normal(t, 1.0))
        b = ppl.sample("b", dist.Bernoulli(logits=t * jnp.ones(3)), ppl.enum())
        return jnp.sum(b[1:] * b[:-1]) + x * b[0], x

    (value, x), slope = jax.jit(f.value_and_grad)(jax.random.key(0), 0.3)
    q = 1 / (1 + np.exp(-0.3))
    np.testing.assert_allclose(value, 2 * q**2 + x * q, rtol=1e-6)
    np.testing.assert_allclose(slope, (4 * q + x) * q * (1 - q) + q, rtol=1e-6)
    report = f.explain(0.3)
    assert [site.evaluations for site in report.sites] == ["1", "1", "4 a number"]


def neighbours(t: Any) -> Any:
    b: Any = ppl.sample("b", dist.Bernoulli(t), ppl.enum())
    c: Any = ppl.sample("c", dist.Bernoulli(jnp.full(4, 0.5)), ppl.enum())
    return sum(jnp.sum(z[..., 1:] * z[..., :-1]) for z in (b, c)) + jnp.sum(1.0 * b)


@pytest.mark.parametrize(
    ("shape", "value"), [((1,), 1.05), ((0, 3), 0.75)], ids=["alone", "no rows"]
)
def test_an_element_alone_has_no_neighbours(shape: tuple[int, ...], value: float) -> None:
    found = jax.jit(ppl.expectation(neighbours).value_and_grad)(
        jax.random.key(0), jnp.full(shape, 0.3)
    )
    np.testing.assert_allclose(found[0], value, rtol=1e-6)
    np.testing.assert_allclose(found[1], np.ones(shape), rtol=1e-6)


def test_an_expectation_of_one_element_beside_elements_that_meet() -> None:
    """It may draw, and would again at each value of the other."""
    inner: Any = ppl.expectation(
        lambda a: ppl.sample("b", dist.BernoulliProbs(0.2 + 0.3 * a), ppl.enum()) * 1.0
    )

    @ppl.expectation
    def f(p: jax.Array) -> jax.Array:
        law = lambda: ppl.sample("z", dist.BernoulliProbs(p), ppl.enum())
        z = jax.vmap(law, axis_size=2)()
        return z[0] * z[1] + inner(z[0]) * z[0]

    value, grad = jax.jit(f.value_and_grad)(jax.random.key(0), 0.3)
    np.testing.assert_allclose((value, grad), (0.09 + 0.5 * 0.3, 0.6 + 0.5), rtol=1e-6)


def test_a_mean_takes_as_much_as_it_has_numbers() -> None:
    """Two values of two elements for each, in as many equations for many as for few."""

    def cost(n: int) -> tuple[int, float]:
        mean = bits(MEANS["tree"], n)
        run = jax.jit(jax.value_and_grad(lambda p: mean.surrogate(jax.random.key(0), p)))
        assert mean.explain(0.6).sites[0].evaluations == "4 a number"
        flops: Any = run.lower(0.6).cost_analysis()
        return len(run.trace(0.6).jaxpr.eqns), flops["flops"]

    (few, small), (many, large) = cost(20), cost(200)
    assert few == many
    assert large < 11 * small
