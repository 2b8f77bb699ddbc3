"""Measure-valued derivatives.

Monte Carlo tests compare value and gradient with the exact ones at |z| < 4.75 over 256
independent batches: false alarms 4e-6 for one comparison, under 1e-3 for all the 200 of this
file. Each also asserts its own power: that a gradient wrong by 5% (else as stated) would be seen
with probability .99, 7.08 standard errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import kept
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

import ppl
from estimators.measure_valued import MVD, _beyond, mvd, terms
from ppl import dist
from transforms.errors import UnsupportedError

BATCHES = 256
Z, POWER = 4.75, 7.08


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


Test = Callable[[Any, Any], None]


def estimates(obj: Any, *args: Any, samples: int, claim: Any, test: Test, argnums: Any = 0) -> None:
    """Test values and gradients of independent batches, with a leading axis, against a claim."""

    def one(key: jax.Array) -> Any:
        return obj.value_and_grad(key, *args, samples=samples // BATCHES, argnums=argnums)

    # most of the time of these tests is XLA's
    run = jax.jit(jax.vmap(one), compiler_options={"xla_backend_optimization_level": 1})
    keys = jax.random.split(jax.random.key(7), BATCHES)
    kept.passed(run, [keys], [claim, samples, Z, POWER], lambda: test(*run(keys)))


def close(found: Any, exact: Any, bias: float | None = None) -> None:
    """z-test of batch means against exact numbers, and that a relative bias would be seen."""
    found = np.asarray(found, float)
    exact = np.broadcast_to(np.asarray(exact, float), found.shape[1:])
    mean, error = found.mean(0), found.std(0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(mean - exact) <= Z * error + 1e-9), (mean, exact, (mean - exact) / error)
    if bias is not None:
        assert np.all(error * POWER <= bias * np.abs(exact) + 1e-12), error * POWER / exact


def check(
    obj: Any,
    *args: Any,
    value: Any,
    grad: Any,
    samples: int = 50_000,
    bias: float = 0.05,
    argnums: Any = 0,
) -> None:
    def test(values: Any, grads: Any) -> None:
        close(values, value)
        assert jax.tree.structure(grads) == jax.tree.structure(grad)
        for found, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(grad), strict=True):
            close(found, exact, bias)

    claim = [value, grad, bias]
    estimates(obj, *args, samples=samples, claim=claim, test=test, argnums=argnums)


def derivative(f: Callable[[np.ndarray], float], x: Any, h: float = 1e-3) -> np.ndarray:
    """Gradient by five-point differences: error about 1e-10 for the functions here."""
    x = np.asarray(x, float)
    out = np.zeros(x.size)
    for i, e in enumerate(np.eye(x.size) * h):
        e = e.reshape(x.shape)
        out[i] = (f(x - 2 * e) - 8 * f(x - e) + 8 * f(x + e) - f(x + 2 * e)) / (12 * h)
    return out.reshape(x.shape)


# --- every row of the table ---------------------------------------------------------------------

expit, softmax = scipy.special.expit, scipy.special.softmax


def smooth(x: Any) -> Any:
    np_ = jnp if isinstance(x, jax.Array) else np
    return 0.5 * x + 0.2 * x**2 + 0.3 * np_.sin(2.0 * x)


def payoff(x: Any, c: float, a: Any) -> Any:
    """A smooth payoff where a = 1, one with a jump where a = 0."""
    return a * smooth(x) + (1 - a) * (x > c)


def categorical(p: Any) -> Any:
    return scipy.stats.rv_discrete(values=(np.arange(len(p)), np.asarray(p) / np.sum(p)))


def expected(law: Any, c: float, a: float) -> float:
    """The exact expectation of ``payoff``."""
    if hasattr(law, "pmf"):
        x = np.arange(400.0)
        return float(law.pmf(x) @ payoff(x, c, a))
    if a == 0:
        return float(law.sf(c))
    ends = [law.ppf(q) for q in (1e-14, 0.5, 1 - 1e-14)]
    pieces = itertools.pairwise(ends)
    f = lambda x: law.pdf(x) * smooth(x)
    return sum(scipy.integrate.quad(f, *ab, epsabs=1e-13, limit=200)[0] for ab in pieces)


S = scipy.stats
ROWS: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[float], float]] = {
    "Bernoulli(probs)": (lambda t: dist.Bernoulli(t[0]), lambda t: S.bernoulli(t[0]), [0.3], 0.5),
    "Categorical(probs)": (
        lambda t: dist.Categorical(jnp.stack([t[0], t[1], 0.1, 0.9 - t[0] - t[1]])),
        lambda t: categorical([t[0], t[1], 0.1, 0.9 - t[0] - t[1]]),
        [0.2, 0.4],
        1.5,
    ),
    "Categorical(logits)": (
        lambda t: dist.Categorical(logits=t),
        lambda t: categorical(softmax(t)),
        [0.3, -0.5, 0.9],
        1.5,
    ),
    "Binomial(probs)": (
        lambda t: dist.Binomial(9, t[0]),
        lambda t: S.binom(9, t[0]),
        [0.35],
        3.5,
    ),
    "Poisson": (lambda t: dist.Poisson(t[0]), lambda t: S.poisson(t[0]), [1.7], 2.5),
    "Geometric(probs)": (
        lambda t: dist.Geometric(t[0]),
        lambda t: S.geom(t[0], loc=-1),
        [0.45],
        1.5,
    ),
    "NegativeBinomial(probs)": (
        lambda t: dist.NegativeBinomial(t[0], probs=t[1]),
        lambda t: S.nbinom(t[0], 1 - t[1]),
        [2.5, 0.4],
        1.5,
    ),
    "Normal": (lambda t: dist.Normal(t[0], t[1]), lambda t: S.norm(t[0], t[1]), [0.4, 1.3], 1.2),
    "LogNormal": (
        lambda t: dist.LogNormal(t[0], t[1]),
        lambda t: S.lognorm(t[1], scale=np.exp(t[0])),
        [0.2, 0.4],
        1.5,
    ),
    "HalfNormal": (lambda t: dist.HalfNormal(t[0]), lambda t: S.halfnorm(0, t[0]), [1.6], 1.2),
    "Laplace": (
        lambda t: dist.Laplace(t[0], t[1]),
        lambda t: S.laplace(t[0], t[1]),
        [0.4, 0.9],
        1.2,
    ),
    "Uniform": (
        lambda t: dist.Uniform(t[0], t[1]),
        lambda t: S.uniform(t[0], t[1] - t[0]),
        [-0.6, 1.9],
        0.5,
    ),
    "Exponential": (
        lambda t: dist.Exponential(t[0]),
        lambda t: S.expon(scale=1 / t[0]),
        [0.7],
        1.0,
    ),
    "Gamma": (
        lambda t: dist.Gamma(t[0], t[1]),
        lambda t: S.gamma(t[0], scale=1 / t[1]),
        [2.3, 1.6],
        1.0,
    ),
    "Weibull": (
        lambda t: dist.Weibull(t[0], t[1]),
        lambda t: S.weibull_min(t[1], scale=t[0]),
        [1.8, 1.3],
        2.5,
    ),
    "Beta": (lambda t: dist.Beta(t[0], t[1]), lambda t: S.beta(t[0], t[1]), [1.2, 1.8], 0.4),
}


SAMPLES = {"LogNormal": 200_000, "Laplace": 150_000, "Gamma": 280_000, "Weibull": 180_000}
SAMPLES["Beta"] = 400_000


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str) -> None:
    make, law, theta, c = ROWS[name]

    @ppl.expectation
    def obj(theta: Any, a: Any) -> Any:
        return payoff(ppl.sample("x", make(theta), mvd()), c, a)

    theta = jnp.asarray(theta)
    cases = jnp.array([1.0, 0.0])

    @ppl.expectation
    def both(theta: Any) -> Any:
        return jax.vmap(lambda t, a: obj(t, a))(theta, cases).sum()

    def test(values: Any, grads: Any) -> None:
        close(values, sum(expected(law(theta), c, float(a)) for a in cases))
        for i, a in enumerate(cases):
            exact = lambda t, a=float(a): expected(law(t), c, a)
            close(grads[:, i], derivative(exact, theta), 0.05)

    claim = [law, theta, c, expected, derivative]
    copies = jnp.stack([theta, theta])
    estimates(both, copies, samples=SAMPLES.get(name, 90_000), claim=claim, test=test)


OTHERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "Bernoulli": (
        lambda t: dist.Bernoulli(logits=t[0]),
        lambda t: dist.Bernoulli(jax.nn.sigmoid(t[0])),
    ),
    "Categorical": (
        lambda t: dist.Categorical(logits=t),
        lambda t: dist.Categorical(jax.nn.softmax(t)),
    ),
    "Binomial": (
        lambda t: dist.Binomial(5, logits=t[0]),
        lambda t: dist.Binomial(5, jax.nn.sigmoid(t[0])),
    ),
    "Geometric": (
        lambda t: dist.Geometric(logits=t[0]),
        lambda t: dist.Geometric(jax.nn.sigmoid(t[0])),
    ),
    "NegativeBinomial": (
        lambda t: dist.NegativeBinomial(t[0], logits=t[1]),
        lambda t: dist.NegativeBinomial(t[0], jax.nn.sigmoid(t[1])),
    ),
    "NegativeBinomial2": (
        lambda t: dist.NegativeBinomial2(t[0], t[1]),
        lambda t: dist.NegativeBinomial(t[1], t[0] / (t[0] + t[1])),
    ),
    "GammaPoisson": (
        lambda t: dist.GammaPoisson(t[0], t[1]),
        lambda t: dist.NegativeBinomial(t[0], 1.0 / (1.0 + t[1])),
    ),
    "Chi2": (lambda t: dist.Chi2(t[0]), lambda t: dist.Gamma(t[0] / 2.0, 0.5)),
    "expanded": (
        lambda t: dist.Normal(t[0], t[1]).expand([9]).to_event(1),
        lambda t: dist.Normal(jnp.full(9, t[0]), jnp.full(9, t[1])),
    ),
    "masked": (
        lambda t: dist.Normal(t[0], t[1]).mask(jnp.asarray(True)),
        lambda t: dist.Normal(t[0], t[1]),
    ),
    "transformed": (
        lambda t: dist.TransformedDistribution(
            dist.Normal(t[0], t[1]).expand([9]), [dist.transforms.ExpTransform()]
        ),
        lambda t: dist.LogNormal(t[0], t[1]),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_parameters_mean_the_same(name: str) -> None:
    """The same alternatives, and by the chain rule weights with the same derivative."""
    theta, key = np.array([0.7, 1.3]), jax.random.key(3)
    discrete = jax.eval_shape(OTHERS[name][1], theta).is_discrete
    x = jnp.asarray(np.arange(9) % 2 if discrete else np.linspace(0.2, 2.0, 9))

    def density_and_terms(make: Callable[..., Any], theta: Any) -> Any:
        def f(t: Any) -> Any:
            found = terms(make(t), key, x)
            return [jnp.broadcast_to(w, x.shape) for w, _ in found], [v for _, v in found]

        return make(theta).log_prob(x).sum(), jax.jacfwd(f, has_aux=True)(theta)

    both = jax.jit(lambda theta: [density_and_terms(make, theta) for make in OTHERS[name]])
    (one, (dw_one, values_one)), (two, (dw_two, values_two)) = both(theta)
    assert np.allclose(one, two)
    assert len(values_one) == len(values_two)
    for a, b in zip(dw_one, dw_two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    for a, b in zip(values_one, values_two, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize(
    ("d", "runs"),
    [
        (dist.Bernoulli(0.3), 1),
        (dist.Categorical(logits=jnp.zeros(5)), 4),
        (dist.Binomial(4, 0.3), 1),
        (dist.Poisson(2.0), 1),
        (dist.Geometric(0.4), 1),
        (dist.Normal(0.0, 1.0), 3),
        (dist.Laplace(0.0, 1.0), 2),
        (dist.Gamma(2.0, 1.0), 2),
        (dist.Uniform(0.0, 1.0), 2),
    ],
)
def test_the_drawn_value_saves_runs(d: Any, runs: int) -> None:
    found = jax.eval_shape(lambda key: terms(d, key, d.sample(key)), jax.random.key(0))
    assert sum(t.value is not None for t in found) == runs


def test_weibull_alternatives_solve_their_equation() -> None:
    y = np.array([-30.0, -3.0, -1e-3, 1e-9, 0.2, 1.0, 3.5])[:, None]
    e = np.array([1e-12, 1e-6, 0.3, 4.0, 30.0])
    w = np.asarray(jax.jit(_beyond)(y, e))
    assert np.all(np.sign(w) == np.sign(y))
    np.testing.assert_allclose(np.exp(w) - w, np.exp(y) - y + e, rtol=1e-12)


# --- acceptance programs (exact numbers) ----------------------------------------------------------


def test_flip_affine() -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        return jnp.where(ppl.sample("b", dist.Bernoulli(t), mvd()) == 1, 0.0, -t / 2)

    check(obj, 0.4, value=-0.12, grad=-0.1, samples=150_000)


@pytest.mark.parametrize("t", [0.0, 1.0, 0.3])
def test_flip_at_boundary(t: float) -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        return jnp.where(ppl.sample("b", dist.Bernoulli(t), mvd()) == 1, 3.0, 1.0)

    grads = [obj.grad(jax.random.key(i), t) for i in range(5)]
    np.testing.assert_allclose(grads, 2.0, rtol=1e-12)


@pytest.mark.parametrize(("t", "exact"), [(0.0, 3.0), (1.0, 57.0)])
def test_binomial_at_boundary(t: float, exact: float) -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        return ppl.sample("k", dist.Binomial(3, t), mvd()) ** 3.0

    np.testing.assert_allclose(obj.grad(jax.random.key(0), t), exact)


NORMAL = {
    "normal_quadratic": (lambda x: (x - 1.5) ** 2, 2.9, (-2.2, 2.6)),
    "normal_sin": (
        lambda x: jnp.sin(1.3 * x) + 0.2 * x**2,
        0.48913994680031253,
        (0.43050690887362886, 0.2582495368797135),
    ),
    "floor_times_x": (lambda x: jnp.floor(x) * x, 1.65, (0.3, 2.6)),
}


@pytest.mark.parametrize("name", NORMAL)
def test_normal(name: str) -> None:
    f, value, grad = NORMAL[name]

    @ppl.expectation
    def obj(theta: Any) -> Any:
        return f(ppl.sample("x", dist.Normal(*theta), mvd()))

    check(obj, (0.4, 1.3), value=value, grad=grad, samples=200_000)


COUNTS = {
    "poisson_square": (dist.Poisson, lambda k: k**2.0, 1.7, 4.59, 4.4),
    "geometric_mean": (dist.Geometric, lambda k: 1.0 * k, 0.35, 0.65 / 0.35, -1 / 0.35**2),
    "binomial_cube": (lambda p: dist.Binomial(9, p), lambda k: k**3 / 10, 0.35, 5.1219, 34.542),
    "poisson_latent_elbo": (
        lambda u: dist.Poisson(jnp.exp(u)),
        None,
        0.8,
        -2.7147500821328117,
        1.9722972454613172,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_count(name: str) -> None:
    make, f, theta, value, grad = COUNTS[name]

    def elbo(k: Any, u: Any) -> Any:
        joint = dist.Poisson(3.0).log_prob(k) + dist.Normal(1.1 * k, 1.5).log_prob(4.2)
        return joint - make(u).log_prob(k)

    @ppl.expectation
    def obj(theta: Any) -> Any:
        k = ppl.sample("k", make(theta), mvd())
        return elbo(k, theta) if f is None else f(k)

    check(obj, theta, value=value, grad=grad, samples=80_000)


@pytest.mark.parametrize("y_by", [ppl.reinforce(), ppl.reparam(), mvd()])
def test_normal_chain(y_by: Any) -> None:
    @ppl.expectation
    def obj(m: Any, t: Any, s: Any) -> Any:
        x = ppl.sample("x", dist.Normal(m, 1.0), mvd())
        y = ppl.sample("y", dist.Normal(t * x, s), y_by)
        return x * y**2

    args, grad = (0.7, 1.2, 0.5), (6.6868, 5.8632, 0.7)
    check(obj, *args, value=3.69292, grad=grad, argnums=(0, 1, 2), samples=600_000, bias=0.5)


def test_random_walk_10() -> None:
    @ppl.expectation
    def obj(p: Any) -> Any:
        def step(x: Any, _: Any) -> Any:
            b = ppl.sample("b", dist.Bernoulli(jnp.exp(-x / p)), mvd())
            return x + 2.0 * b - 1.0, None

        return jax.lax.scan(step, 0.0, None, length=10)[0] ** 2

    check(obj, 20.0, value=50.032739824903075, grad=1.4898178246080853, samples=50_000, bias=0.1)


# --- programs around the choice -------------------------------------------------------------------


@pytest.mark.parametrize("later", [ppl.enum(), ppl.reinforce(), mvd()])
def test_later_choices_are_drawn_anew(later: Any) -> None:
    """dependent flips: the second run of the program must draw what follows again."""

    @ppl.expectation
    def obj(t: Any) -> Any:
        a = ppl.sample("a", dist.Bernoulli(t[0]), mvd())
        b = ppl.sample("b", dist.Bernoulli(jnp.where(a == 1, t[1], 0.2)), later)
        c = ppl.sample("c", dist.Bernoulli(jnp.where(b == 1, t[2], t[0])), mvd())
        return a + 2.0 * b * c + t[0] * c

    def exact(t: np.ndarray) -> float:
        total = 0.0
        for a, b, c in itertools.product((0, 1), repeat=3):
            q, r = (t[1] if a else 0.2), (t[2] if b else t[0])
            p = (t[0] if a else 1 - t[0]) * (q if b else 1 - q) * (r if c else 1 - r)
            total += p * (a + 2 * b * c + t[0] * c)
        return total

    t = jnp.array([0.3, 0.8, 0.6])
    check(obj, t, value=exact(t), grad=derivative(exact, t), samples=800_000)


def test_scan_of_three() -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        def step(h: Any, u: Any) -> Any:
            b = ppl.sample("b", dist.Bernoulli(logits=t * h + u), mvd())
            return h + u * (2 * b - 1), b

        h, b = jax.lax.scan(step, 0.5, jnp.array([0.3, 1.0, -0.7]))
        return h**2 + b[0] * b[2]

    def exact(t: np.ndarray) -> float:
        total = 0.0
        for bs in itertools.product((0, 1), repeat=3):
            h, p = 0.5, 1.0
            for b, u in zip(bs, (0.3, 1.0, -0.7), strict=True):
                q = expit(t * h + u)
                h, p = h + u * (2 * b - 1), p * (q if b else 1 - q)
            total += p * (h**2 + bs[0] * bs[2])
        return float(total)

    check(obj, 0.8, value=exact(0.8), grad=derivative(exact, 0.8), samples=100_000)


@pytest.mark.parametrize("u", [0.9, 0.1])
def test_cond_on_an_argument(u: float) -> None:
    @ppl.expectation
    def obj(t: Any, u: Any) -> Any:
        some = lambda: ppl.sample("x", dist.Poisson(t), mvd()) * 1.0
        x = jax.lax.cond(u > 0.5, some, lambda: t)
        return x**2

    value, grad = (1.7**2 + 1.7, 2 * 1.7 + 1) if u > 0.5 else (1.7**2, 2 * 1.7)
    check(obj, 1.7, u, value=value, grad=grad)


def test_batched_cond_whose_other_branch_is_not_finite() -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        def one(i: Any) -> Any:
            scale = i * t  # 0 for the branch not taken
            return jax.lax.cond(
                i > 0, lambda: ppl.sample("x", dist.Normal(t, scale), mvd()) > 1.0, lambda: False
            )

        return jax.vmap(one)(jnp.arange(3.0)) @ jnp.array([5.0, 1.0, 2.0])

    def exact(t: float) -> float:
        return float(S.norm(t, t).sf(1.0) + 2 * S.norm(t, 2 * t).sf(1.0))

    check(obj, 0.8, value=exact(0.8), grad=derivative(exact, 0.8))


def test_checkpoint_and_jit() -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        inside = jax.checkpoint(lambda t: ppl.sample("x", dist.Poisson(t), mvd()) ** 2.0)
        return jax.jit(inside)(t)

    check(obj, 1.7, value=4.59, grad=4.4)


def test_two_sites_and_an_enumerated_one() -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        k = ppl.sample("k", dist.Poisson(t[0]), mvd())
        b = ppl.sample("b", dist.Bernoulli(t[1]), ppl.enum())
        x = ppl.sample("x", dist.Exponential(jnp.where(b == 1, t[2], 1.0)), mvd())
        return (k + 1.0) * (x > 0.7)

    def exact(t: np.ndarray) -> float:
        return (t[0] + 1) * (t[1] * np.exp(-0.7 * t[2]) + (1 - t[1]) * np.exp(-0.7))

    t = jnp.array([1.7, 0.4, 0.5])
    check(obj, t, value=exact(t), grad=derivative(exact, t), samples=150_000)


def test_uniform_endpoint() -> None:
    """The support moves, so that REINFORCE is wrong, and the payoff jumps, so is reparam."""

    @ppl.expectation
    def obj(t: Any) -> Any:
        return (ppl.sample("x", dist.Uniform(0.0, t), mvd()) > 0.5) * 1.0

    check(obj, 0.8, value=1 - 0.5 / 0.8, grad=0.5 / 0.8**2)


# --- vectors ------------------------------------------------------------------------------------

PROBS = jnp.array([0.2, 0.3, 0.6])
VECTORS: dict[str, Callable[..., Any]] = {
    "batch": lambda t: ppl.sample("b", dist.Bernoulli(t), mvd()),
    "to_event": lambda t: ppl.sample("b", dist.Bernoulli(t).to_event(1), mvd()),
    "vmap": jax.vmap(lambda t: ppl.sample("b", dist.Bernoulli(t), mvd())),
    "vmap of a batch": lambda t: jax.vmap(lambda t: ppl.sample("b", dist.Bernoulli(t), mvd()))(
        t[:, None]
    )[:, 0],
}


@pytest.mark.parametrize("how", VECTORS)
def test_three_flips_product(how: str) -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        return jnp.prod(VECTORS[how](t) + 0.5)

    check(obj, PROBS, value=0.616, grad=jnp.array([0.88, 0.77, 0.56]))


def test_vmap_with_mapped_and_unmapped_parameters() -> None:
    """Elements that share a parameter; weights that tell the elements apart."""
    c, w = jnp.array([0.1, 0.9]), jnp.array([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]])

    @ppl.expectation
    def obj(m: Any, s: Any) -> Any:
        def row(m: Any) -> Any:
            return ppl.sample("x", dist.Normal(m, s).expand([2]).to_event(1), mvd())

        x = jax.vmap(row)(m) > c
        return jnp.sum(w * x) + 5.0 * x[0, 1] * x[2, 0]

    def exact(ms: np.ndarray) -> float:
        p = S.norm(ms[:3, None], ms[3]).sf(np.asarray(c))
        return float(np.sum(w * p) + 5 * p[0, 1] * p[2, 0])

    m, s = jnp.array([0.3, -0.2, 0.5]), 0.8
    grad = derivative(exact, np.array([*m, s]))
    check(
        obj,
        m,
        s,
        value=exact(np.array([*m, s])),
        grad=(grad[:3], grad[3]),
        argnums=(0, 1),
        samples=100_000,
    )


def test_vmap_without_mapped_parameters() -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        b = jax.vmap(lambda _: ppl.sample("b", dist.Bernoulli(t), mvd()))(jnp.arange(3))
        return jnp.prod(b + jnp.array([0.5, 0.2, 1.0]))

    exact = lambda t: (t + 0.5) * (t + 0.2) * (t + 1.0)
    check(obj, 0.3, value=exact(0.3), grad=derivative(exact, 0.3))


# --- what is promised -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [dist.Bernoulli, lambda t: dist.Normal(t, 1.0)])
def test_the_estimate_is_linear_in_the_tangent(make: Callable[..., Any]) -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        return jnp.sum(ppl.sample("x", make(t), mvd()) * jnp.array([1.0, 3.0])) ** 2

    key, t = jax.random.key(4), jnp.array([0.3, 0.6])
    grad = np.asarray(obj.grad(key, t))
    push = jax.jit(lambda v: jax.jvp(lambda t: obj.surrogate(key, t), (t,), (v,))[1])
    for v in np.array([[1.0, 0.0], [-1.0, 0.0], [2.0, -5.0]]):
        np.testing.assert_allclose(push(v), grad @ v, rtol=1e-12)


@pytest.mark.parametrize(
    "second",
    [
        lambda f: jax.grad(jax.grad(f)),
        lambda f: jax.jacfwd(jax.jacfwd(f)),
        lambda f: jax.jit(jax.hessian(f)),
        lambda f: jax.hessian(jax.jit(f)),
    ],
)
@pytest.mark.parametrize("f", [lambda x, t: x**2, lambda x, t: x + t**3])
def test_second_derivatives_are_refused(f: Any, second: Any) -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        return f(ppl.sample("x", dist.Exponential(t), mvd()), t)

    with pytest.raises(UnsupportedError, match="first derivatives only"):
        second(lambda t: obj.surrogate(jax.random.key(0), t))(1.5)


def test_the_value_alone_runs_the_program_once() -> None:
    w = jnp.ones((200, 200))

    def flops(estimator: Any, of: str) -> float:
        @ppl.expectation
        def obj(t: Any) -> Any:
            x = ppl.sample("x", dist.Normal(t, jnp.exp(t)), estimator)
            return jnp.sum(jnp.tanh(w @ jnp.sin(w @ (w * jnp.sum(x)))))

        run = jax.jit(lambda t: getattr(obj, of)(jax.random.key(0), t))
        return run.lower(jnp.zeros(4)).compile().cost_analysis()["flops"]

    once = flops(ppl.reinforce(), "value")
    assert flops(mvd(), "value") < 1.001 * once
    assert 12.9 * once < flops(mvd(), "grad") < 13.5 * once


def unsuitable(d: Any) -> str | None:
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), d)
    return MVD().unsuitable(shapes)


@pytest.mark.parametrize(
    ("d", "instead"),
    [
        (dist.StudentT(3.0), "ppl.reparam() or ppl.reinforce()."),
        (dist.DiscreteUniform(0, 3), "ppl.enum() or ppl.reinforce()."),
        (dist.ZeroInflatedPoisson(0.3, 2.0), "ppl.reinforce()."),
        (dist.Dirichlet(jnp.ones(3)), "ppl.reparam() or ppl.reinforce()."),
        (
            dist.TransformedDistribution(
                dist.Normal(), dist.transforms.AffineTransform(jnp.ones(()), 2.0)
            ),
            "ppl.reparam() or ppl.reinforce().",
        ),
        (dist.Binomial(jnp.asarray(3.0), 0.3), "total_count=9."),
    ],
)
def test_unsuitable(d: Any, instead: str) -> None:
    reason = unsuitable(d)
    assert reason is not None
    assert reason.endswith(instead)


def test_suitable() -> None:
    for make, _, theta, _ in ROWS.values():
        assert unsuitable(make(jnp.asarray(theta))) is None
    assert unsuitable(dist.Normal(jnp.zeros(3), 1.0).expand([2, 3]).to_event(1)) is None


def test_unsuitable_names_the_site() -> None:
    @ppl.expectation
    def obj(t: Any) -> Any:
        return ppl.sample("x", dist.StudentT(t), mvd())

    with pytest.raises(UnsupportedError, match=r"mvd cannot be used for .*x.* ~ StudentT"):
        obj.value(jax.random.key(0), 3.0)


def test_integers_stay_integers() -> None:
    found: list[Any] = []

    @ppl.expectation
    def obj(t: Any) -> Any:
        k = ppl.sample("k", dist.Poisson(t), mvd())
        found.append(k.dtype)
        return k * 1.0

    obj.grad(jax.random.key(0), jnp.asarray(1.5))
    assert all(jnp.issubdtype(t, jnp.integer) for t in found)
