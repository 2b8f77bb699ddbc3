"""Tests of the tests: mistakes planted in estimators and programs must not pass the z-test.

Each mutant is the mistake of an earlier system or an easy one to make, held beside its honest
twin: ``ztest.check`` must accept the twin and reject the mutant, on the acceptance programs and
with the sizes that ``test_acceptance.py`` uses.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest
from jax import lax

import ppl
from ppl import dist
from transforms.estimation.estimator import magic_box
from transforms.gradient import surrogate

pytestmark = pytest.mark.usefixtures("x64")
estimator = lambda cls: jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(cls))


class Fits:
    """Any distribution will do."""

    def unsuitable(self, d: Any) -> str | None:
        return None


# --- score --------------------------------------------------------------------------------------


@estimator
class Score(Fits, ppl.InPlace):
    """REINFORCE, in user space; ``score=False`` drops its term."""

    score: bool = True
    control: ppl.Baseline | None = None
    name = "score"

    @property
    def baseline(self):
        return self.control

    def draw(self, d, key, sample_shape):
        return lax.stop_gradient(d.sample(key, sample_shape))


@estimator
class Mean(ppl.Baseline):
    """The mean payoff of the other samples, or (wrongly) of all."""

    own: bool

    def accumulate(self, log_prob):
        return {"log_prob": log_prob}

    def finish(self, totals, payoff, context):
        k, own = context.samples, 0.0 if self.own else payoff
        mean = (lax.psum(payoff, surrogate.SAMPLES) - own) / (k if self.own else k - 1)
        return -mean * (magic_box(totals["log_prob"]) - 1.0)


@estimator
class Moving(ppl.Baseline):
    """A moving average that stands at 0.3, used and then updated, or (wrongly) the reverse."""

    update_first: bool

    def accumulate(self, log_prob):
        return {"log_prob": log_prob}

    def finish(self, totals, payoff, context):
        average = 0.9 * 0.3 + 0.1 * payoff if self.update_first else 0.3
        return -average * (magic_box(totals["log_prob"]) - 1.0)


# --- measure-valued -----------------------------------------------------------------------------


@estimator
class NormalMean(Fits, ppl.Continued):
    """Measure-valued derivative in the mean of a normal, with a constant times ``factor``."""

    factor: float = 1.0
    name = "normal mean"

    def surrogate(self, site, key, k):
        d = site.site.rebuild(site.operands)
        step = d.scale * jax.random.rayleigh(key, 1.0)
        c = self.factor / (d.scale * math.sqrt(2 * math.pi))
        return c * (k(d.loc + step) - k(d.loc - step)) * d.loc


@estimator
class PoissonRate(Fits, ppl.Continued):
    """E f(k + 1) - E f(k); the weight is 1, and (wrongly) k."""

    by_count: bool = False
    name = "poisson rate"

    def surrogate(self, site, key, k):
        d = site.site.rebuild(site.operands)
        weight = site.value if self.by_count else 1.0
        return weight * (k(site.value + 1) - site.payoff) * d.rate


# --- enumeration --------------------------------------------------------------------------------


@estimator
class Weights(ppl.Enumerated):
    """Enumeration of 0-1 elements, whose joint weight is ``joint`` of theirs."""

    joint: str = "product"
    name = "weights"

    def unsuitable(self, d):
        return None

    def support(self, d):
        return d.enumerate_support(expand=False).reshape(-1)

    def mass(self, d, value):
        p = jnp.exp(d.log_prob(value))
        if self.joint == "mean":
            return jnp.ones_like(p).at[0].set(p.mean())
        if self.joint == "forgotten":
            return jnp.ones_like(p)
        if self.joint == "first":
            return jnp.ones_like(p).at[0].set(p[0])
        return d.log_prob(value) if self.joint == "log" else p


# --- programs -----------------------------------------------------------------------------------


def flip(p, e):
    b = ppl.sample("b", dist.Bernoulli(p["t"]), e)
    return jnp.where(b == 1, 0.0, -p["t"] / 2)


def quadratic(p, e):
    return (ppl.sample("x", dist.Normal(p["m"], 1.3), e) - 1.5) ** 2


def poisson(p, e):
    return ppl.sample("k", dist.Poisson(p["l"]), e) ** 2.0


def product(p, e):
    return jnp.prod(ppl.sample("b", dist.Bernoulli(p["t"]), e) + 0.5)


def categorical(p, e):
    k = ppl.sample("k", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])), e)
    return p["a"] * jnp.array([1.0, 2.0, 4.0])[k]


class Batch(NamedTuple):
    """How many data are drawn, and by how much their sum is scaled."""

    drawn: int = 5
    scale: float = 10.0


DATA = np.random.default_rng(5).normal(size=50).round(3)


def minibatch(p, batch):
    def one():
        i = ppl.sample("i", dist.DiscreteUniform(0, 49))
        return (jnp.asarray(DATA)[i] - p["t"]) ** 2

    return batch.scale * jnp.sum(jax.vmap(one, axis_size=batch.drawn)())


def marginal(p, by):
    """E exp(w) = p(x), for x ~ N(u, 1) with u ~ N(0, 1)."""

    @ppl.gen
    def g():
        u = ppl.sample("u", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(u, 1.0))

    return jnp.exp(ppl.marginal(g(), "x", by=by).log_density({"x": p["x"]}))


@dataclasses.dataclass(frozen=True)
class Prior(ppl.Algorithm):
    """One particle from the program itself; its weight is the density of what is fixed, or
    (wrongly) of everything."""

    joint: bool

    def sample(self, target):
        run = target.draw()
        return run, self._weight(run)

    def estimate(self, target, retained=None):
        return self._weight(target.draw() if retained is None else retained)

    def _weight(self, run):
        return run.log_density if self.joint else run.log_weight


class Mutant(NamedTuple):
    """A program with an honest slot and a mistaken one, and its exact value and gradient."""

    f: Callable[[Any, Any], jax.Array]
    honest: Any
    mistaken: Any
    params: dict[str, Any]
    exact: tuple[Any, dict[str, Any]]
    samples: int = 1


FLIP = {"t": 0.4}, (-0.12, {"t": -0.1})
QUADRATIC = {"m": 0.4}, (2.9, {"m": -2.2})
POISSON = {"l": 1.7}, (4.59, {"l": 4.4})
PRODUCT = {"t": [0.2, 0.3, 0.6]}, (0.616, {"t": np.array([0.88, 0.77, 0.56])})
MINIBATCH = {"t": 0.25}, (53.77295, {"t": 57.448})
DENSITY = math.exp(-0.25) / math.sqrt(4 * math.pi)

MUTANTS = {
    "dropped score, discrete": Mutant(flip, Score(), Score(False), *FLIP),
    "dropped score, continuous": Mutant(quadratic, Score(), Score(False), *QUADRATIC),
    "mean baseline with own sample": Mutant(
        flip, Score(control=Mean(False)), Score(control=Mean(True)), *FLIP, samples=4
    ),
    "moving average updated first": Mutant(
        flip, Score(control=Moving(False)), Score(control=Moving(True)), *FLIP
    ),
    "measure-valued constant": Mutant(quadratic, NormalMean(), NormalMean(1.1), *QUADRATIC),
    "measure-valued weight": Mutant(poisson, PoissonRate(), PoissonRate(True), *POISSON),
    "mean of the weights": Mutant(product, Weights(), Weights("mean"), *PRODUCT),
    "weight of one element": Mutant(product, Weights(), Weights("first"), *PRODUCT),
    "forgotten weights": Mutant(product, Weights(), Weights("forgotten"), *PRODUCT),
    "log probabilities as weights": Mutant(
        categorical, Weights(), Weights("log"), {"a": 1.0}, (2.8, {"a": 2.8})
    ),
    "missing plate factor": Mutant(minibatch, Batch(), Batch(scale=1.0), *MINIBATCH),
    "all drawn, scaled as a batch": Mutant(minibatch, Batch(), Batch(drawn=50), *MINIBATCH),
    "joint density as weight": Mutant(
        marginal, Prior(False), Prior(True), {"x": 1.0}, (DENSITY, {"x": -0.5 * DENSITY})
    ),
}


def check(mutant: Mutant, slot: Any) -> None:
    objective = ppl.expectation(lambda p: mutant.f(p, slot))
    params = {k: jnp.asarray(v, float) for k, v in mutant.params.items()}
    samples = mutant.samples
    ztest.check(lambda key: objective.value_and_grad(key, params, samples=samples), mutant.exact)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_mutant_is_rejected(mutant: Mutant) -> None:
    check(mutant, mutant.honest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ppl.SoundnessWarning)  # the checker sees some of them
        with pytest.raises(AssertionError, match="biased"):
            check(mutant, mutant.mistaken)


def test_reused_downstream_draws_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two flips, the second dependent on the first: E[ab] = t (.3 + .5 t) and its derivative.

    The mutant keeps the second where an alternative of the first is run.
    """

    def flips(p, e):
        a = ppl.sample("a", dist.Bernoulli(p["t"]), e)
        b = ppl.sample("b", dist.Bernoulli(0.3 + 0.5 * a * p["t"]), e)
        return 1.0 * b

    t = 0.4
    exact = 0.3 + 0.5 * t**2, {"t": t}
    mutant = Mutant(flips, ppl.mvd(), ppl.mvd(), {"t": t}, exact)
    check(mutant, mutant.honest)

    def reusing(replays, first):
        kept = {
            s.path: (jnp.ones((), bool), lax.stop_gradient(first.made[s.path][2]))
            for s in replays.sites
        }
        return corrections(replays, first._replace(given={**first.given, **kept}))

    corrections = surrogate.Replays.corrections
    monkeypatch.setattr(surrogate.Replays, "corrections", reusing)
    with pytest.raises(AssertionError, match="biased"):
        check(mutant, mutant.mistaken)


# --- in the code of estimators --------------------------------------------------------------------

LOGITS, PAYOFFS = np.array([0.4, -0.3, 0.9]), np.array([1.0, 4.0, 2.5])


def categories(p, e):
    """Two categorical elements that meet."""
    k = ppl.sample("k", dist.Categorical(logits=p["l"]).expand((2,)), e)
    x = jnp.asarray(PAYOFFS)[k]
    return x[0] * x[1]


def _categories_exactly():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum()
    mean = p @ PAYOFFS
    return mean**2, {"l": 2 * mean * p * (PAYOFFS - mean)}


def _unconditional(honest):
    """A relaxed draw that is not given the discrete one."""

    def kind(d):
        right = honest(d)

        def draw(d, key, x):
            drawn = right.draw(d, key, d.sample(key))
            return right.draw(d, key, x)._replace(again=drawn.again, z=drawn.z)

        return dataclasses.replace(right, draw=draw)

    return kind


PLANTED = {
    "relaxed draw of another value": (
        ppl.relax(lambda z: jnp.sum(z[..., 0])),
        "estimators.relax",
        "kind",
        _unconditional,
    ),
    "sets without their probability": (
        ppl.unordered(),
        "estimators.unordered",
        "_ratios",
        lambda honest: lambda *a: (jnp.ones_like(honest(*a)[0]), honest(*a)[1]),
    ),
    "baseline of the set with itself": (
        ppl.unordered(),
        "estimators.unordered",
        "_ratios",
        lambda honest: (
            lambda log_p, outside, f: (
                honest(log_p, outside, f)[0],
                jnp.broadcast_to(f.mean(0), f.shape),
            )
        ),
    ),
    "steps kept and not weighed": (
        ppl.spa(),
        "estimators.perturbation",
        "_kept",
        lambda honest: (
            lambda sizes, m, key: (
                honest(sizes, m, key)[0],
                jnp.full_like(sizes, 1.0 / len(sizes)),
            )
        ),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_mistake_in_the_code_is_rejected(name, monkeypatch):
    estimator, module, function, mistaken = PLANTED[name]
    mutant = Mutant(categories, estimator, estimator, {"l": LOGITS}, _categories_exactly())
    check(mutant, estimator)
    owner = importlib.import_module(module)
    monkeypatch.setattr(owner, function, mistaken(getattr(owner, function)))
    with pytest.raises(AssertionError, match="biased"):
        check(mutant, estimator)
