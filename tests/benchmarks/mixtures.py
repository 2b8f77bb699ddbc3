# numpyro has it that dist.Categorical may be None:
# pyright: reportArgumentType=false
"""Discrete choices summed out: a Gaussian mixture and a hidden Markov model, ours and by hand.

Models, guides and priors are those of NumPyro's benchmarks. In ``gmm`` and ``hmm`` the model's
discrete choices are summed out, an exact marginal; in ``gmm_guided`` and ``hmm_guided`` the guide
makes them too, and the objective averages over them.

A :class:`Form` writes an objective in one way. Its ``estimate`` draws the global choices; its
``exact`` is given them, so nothing random is left, and forms agree to rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import gammaln, logsumexp
from measure import looped

import ppl
from ppl import dist

KEY = jax.random.key(0)
NOISE = 0.5
"""Standard deviation of what the hidden Markov model emits."""

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Form:
    """An objective: of a key, parameters and data; and of global choices, parameters and data."""

    estimate: Callable[[jax.Array, Arrays, jax.Array], jax.Array]
    exact: Callable[[Arrays, Arrays, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Problem:
    """``forms`` by name, parameters, data, and global choices at which the forms are compared."""

    forms: Mapping[str, Form]
    params: Arrays
    data: jax.Array
    choices: Arrays


# --- data -----------------------------------------------------------------------------------------


def gmm(n: int, k: int = 8, d: int = 2) -> Problem:
    """``n`` points around ``k`` centres in ``d`` dimensions."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(k, d))
    x = centres[rng.integers(k, size=n)] + 0.7 * rng.normal(size=(n, d))
    params = {
        "a": np.full(k, np.log(10.0)),
        "loc": centres + 0.1 * rng.normal(size=(k, d)),
        "log_s": np.full((k, d), np.log(0.1)),
        "scale_loc": np.zeros(k),
        "scale_log_s": np.full(k, np.log(0.1)),
    }
    params = jax.tree.map(_array, params)
    return Problem(GMM, params, _array(x), jax.jit(gmm_draws)(KEY, params))


def hmm(t: int, s: int = 16) -> Problem:
    """A sequence of length ``t`` from a chain of ``s`` states."""
    rng = np.random.default_rng(0)
    transitions, levels = rng.dirichlet(np.full(s, 0.3), s), np.linspace(-8, 8, s)
    states = [0]
    for _ in range(t):
        states.append(rng.choice(s, p=transitions[states[-1]]))
    y = levels[states[1:]] + NOISE * rng.normal(size=t)
    params = {
        "a": np.full((s, s), np.log(2.0)),
        "loc": levels + 0.3 * rng.normal(size=s),
        "log_s": np.full(s, np.log(0.1)),
    }
    params = jax.tree.map(_array, params)
    return Problem(HMM, params, _array(y), jax.jit(hmm_draws)(KEY, params))


def gmm_guided(n: int, k: int = 8, d: int = 2) -> Problem:
    """As ``gmm``, with logits for the component of every point."""
    p = gmm(n, k, d)
    logits = jax.random.normal(KEY, (n, k))
    return dataclasses.replace(p, forms=GMM_GUIDED, params=p.params | {"logits": logits})


def hmm_guided(t: int, s: int = 16) -> Problem:
    """As ``hmm``, with logits for the state at every time, given the one before."""
    p = hmm(t, s)
    logits = jax.random.normal(KEY, (t, s, s))
    return dataclasses.replace(p, forms=HMM_GUIDED, params=p.params | {"logits": logits})


def _array(x: np.ndarray) -> jax.Array:
    return jax.device_put(x)


# --- ours: what a user types ----------------------------------------------------------------------


@ppl.gen
def gmm_model(n: int, k: int, d: int) -> None:
    w = ppl.sample("w", dist.Dirichlet(jnp.ones(k)))
    mu = ppl.sample("mu", dist.Normal(jnp.zeros((k, d)), 5.0))
    scale = ppl.sample("scale", dist.LogNormal(jnp.zeros(k), 1.0))

    def point() -> None:
        z = ppl.sample("z", dist.Categorical(w))
        ppl.sample("x", dist.Normal(mu[z], scale[z]))

    jax.vmap(point, axis_size=n)()


@ppl.gen
def gmm_guide(params: Arrays) -> None:
    """For the global choices; with logits, for the component of every point too."""
    ppl.sample("w", dist.Dirichlet(jnp.exp(params["a"])))
    ppl.sample("mu", dist.Normal(params["loc"], jnp.exp(params["log_s"])))
    ppl.sample("scale", dist.LogNormal(params["scale_loc"], jnp.exp(params["scale_log_s"])))
    if "logits" in params:
        gmm_components(params["logits"])


def gmm_components(logits: jax.Array) -> None:
    jax.vmap(lambda l: ppl.sample("z", dist.Categorical(logits=l), ppl.enum()))(logits)


@ppl.expectation
def gmm_elbo(params: Arrays, x: jax.Array) -> jax.Array:
    return ppl.elbo(gmm_marginal(params, x), gmm_guide(params), {"x": x})


def gmm_marginal(params: Arrays, x: jax.Array) -> ppl.Generative:
    model = gmm_model(len(x), *params["loc"].shape)
    return ppl.marginal(model, keep=["w", "mu", "scale", "x"], by=ppl.enumeration())


@ppl.expectation
def gmm_guided_elbo(params: Arrays, x: jax.Array) -> jax.Array:
    return ppl.elbo(gmm_model(len(x), *params["loc"].shape), gmm_guide(params), {"x": x})


@ppl.gen
def hmm_model(t: int, s: int) -> None:
    transitions = ppl.sample("P", dist.Dirichlet(jnp.ones((s, s))))
    mu = ppl.sample("mu", dist.Normal(jnp.zeros(s), 5.0))

    def step(z: jax.Array, _: None) -> tuple[jax.Array, None]:
        z = ppl.sample("z", dist.Categorical(transitions[z]))
        ppl.sample("y", dist.Normal(mu[z], NOISE))
        return z, None

    jax.lax.scan(step, 0, length=t)


@ppl.gen
def hmm_guide(params: Arrays) -> None:
    """For the global choices; with logits, for the state at every time too."""
    ppl.sample("P", dist.Dirichlet(jnp.exp(params["a"])))
    ppl.sample("mu", dist.Normal(params["loc"], jnp.exp(params["log_s"])))
    if "logits" in params:
        hmm_states(params["logits"])


def hmm_states(logits: jax.Array) -> None:
    def step(z: jax.Array, logits: jax.Array) -> tuple[jax.Array, None]:
        return ppl.sample("z", dist.Categorical(logits=logits[z]), ppl.enum()), None

    jax.lax.scan(step, 0, logits)


@ppl.expectation
def hmm_elbo(params: Arrays, y: jax.Array) -> jax.Array:
    return ppl.elbo(hmm_marginal(params, y), hmm_guide(params), {"y": y})


def hmm_marginal(params: Arrays, y: jax.Array) -> ppl.Generative:
    model = hmm_model(len(y), len(params["loc"]))
    return ppl.marginal(model, keep=["P", "mu", "y"], by=ppl.enumeration())


@ppl.expectation
def hmm_guided_elbo(params: Arrays, y: jax.Array) -> jax.Array:
    return ppl.elbo(hmm_model(len(y), len(params["loc"])), hmm_guide(params), {"y": y})


# --- ours, the global choices given ---------------------------------------------------------------


def without_logits(params: Arrays) -> Arrays:
    return {name: value for name, value in params.items() if name != "logits"}


@ppl.expectation
def gmm_given(choices: Arrays, params: Arrays, x: jax.Array) -> jax.Array:
    log_p = gmm_marginal(params, x).log_density(choices | {"x": x})
    return log_p - gmm_guide(params).log_density(choices)


@ppl.expectation
def gmm_guided_given(choices: Arrays, params: Arrays, x: jax.Array) -> jax.Array:
    z = ppl.gen(gmm_components)(params["logits"]).simulate()
    model = gmm_model(len(x), *params["loc"].shape)
    log_p = model.log_density(choices | z.choices | {"x": x})
    return log_p - z.log_density - gmm_guide(without_logits(params)).log_density(choices)


@ppl.expectation
def hmm_given(choices: Arrays, params: Arrays, y: jax.Array) -> jax.Array:
    log_p = hmm_marginal(params, y).log_density(choices | {"y": y})
    return log_p - hmm_guide(params).log_density(choices)


@ppl.expectation
def hmm_guided_given(choices: Arrays, params: Arrays, y: jax.Array) -> jax.Array:
    z = ppl.gen(hmm_states)(params["logits"]).simulate()
    model = hmm_model(len(y), len(params["loc"]))
    log_p = model.log_density(choices | z.choices | {"y": y})
    return log_p - z.log_density - hmm_guide(without_logits(params)).log_density(choices)


# --- by hand --------------------------------------------------------------------------------------


def normal(x: Any, loc: Any, scale: Any) -> jax.Array:
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def log_normal(x: Any, loc: Any, scale: Any) -> jax.Array:
    return normal(jnp.log(x), loc, scale) - jnp.log(x)


def dirichlet(p: jax.Array, a: jax.Array) -> jax.Array:
    each = ((a - 1) * jnp.log(p)).sum(-1) + gammaln(a.sum(-1)) - gammaln(a).sum(-1)
    return each.sum()


def gmm_draws(key: jax.Array, params: Arrays) -> Arrays:
    keys = jax.random.split(key, 3)
    k, d = params["loc"].shape
    noise = jax.random.normal(keys[1], (k, d)), jax.random.normal(keys[2], (k,))
    return {
        "w": jax.random.dirichlet(keys[0], jnp.exp(params["a"])),
        "mu": params["loc"] + jnp.exp(params["log_s"]) * noise[0],
        "scale": jnp.exp(params["scale_loc"] + jnp.exp(params["scale_log_s"]) * noise[1]),
    }


def gmm_weight(choices: Arrays, params: Arrays) -> jax.Array:
    """log p - log q of the global choices."""
    w, mu, scale = choices["w"], choices["mu"], choices["scale"]
    log_p = dirichlet(w, jnp.ones_like(w)) + normal(mu, 0.0, 5.0).sum()
    log_q = dirichlet(w, jnp.exp(params["a"]))
    log_q += normal(mu, params["loc"], jnp.exp(params["log_s"])).sum()
    log_p += log_normal(scale, 0.0, 1.0).sum()
    log_q += log_normal(scale, params["scale_loc"], jnp.exp(params["scale_log_s"])).sum()
    return log_p - log_q


def gmm_table(choices: Arrays, x: jax.Array) -> jax.Array:
    """log p(z, x) of every component and point, f32[k, n]: a matrix product."""
    w, mu, scale = choices["w"], choices["mu"], choices["scale"]
    precision, d = 1 / scale**2, x.shape[1]
    own = jnp.log(w) - d * jnp.log(scale) - 0.5 * (mu**2).sum(-1) * precision
    square = 0.5 * precision[:, None] * (x**2).sum(-1)
    return own[:, None] + (mu * precision[:, None]) @ x.T - square - 0.5 * d * jnp.log(2 * jnp.pi)


def gmm_table_directly(choices: Arrays, x: jax.Array) -> jax.Array:
    """The same from the densities; more work, less rounding."""
    w, mu, scale = choices["w"], choices["mu"], choices["scale"]
    each = normal(x[None], mu[:, None], scale[:, None, None])
    return jnp.log(w)[:, None] + each.sum(-1)


def gmm_by_hand(choices: Arrays, params: Arrays, x: jax.Array) -> jax.Array:
    return logsumexp(gmm_table(choices, x), axis=0).sum() + gmm_weight(choices, params)


def gmm_directly(choices: Arrays, params: Arrays, x: jax.Array) -> jax.Array:
    return logsumexp(gmm_table_directly(choices, x), axis=0).sum() + gmm_weight(choices, params)


def gmm_guided_by_hand(choices: Arrays, params: Arrays, x: jax.Array) -> jax.Array:
    log_q = jax.nn.log_softmax(params["logits"].T, axis=0)
    local = (jnp.exp(log_q) * (gmm_table(choices, x) - log_q)).sum()
    return local + gmm_weight(choices, params)


def hmm_draws(key: jax.Array, params: Arrays) -> Arrays:
    keys = jax.random.split(key)
    noise = jax.random.normal(keys[1], params["loc"].shape)
    return {
        "P": jax.random.dirichlet(keys[0], jnp.exp(params["a"])),
        "mu": params["loc"] + jnp.exp(params["log_s"]) * noise,
    }


def hmm_weight(choices: Arrays, params: Arrays) -> jax.Array:
    """log p - log q of the global choices."""
    rows, mu = choices["P"], choices["mu"]
    log_p = dirichlet(rows, jnp.ones_like(rows)) + normal(mu, 0.0, 5.0).sum()
    log_q = dirichlet(rows, jnp.exp(params["a"]))
    return log_p - log_q - normal(mu, params["loc"], jnp.exp(params["log_s"])).sum()


def hmm_by_hand(choices: Arrays, params: Arrays, y: jax.Array) -> jax.Array:
    emitted, log_p = normal(y[:, None], choices["mu"], NOISE), jnp.log(choices["P"])

    def step(alpha: jax.Array, emitted: jax.Array) -> tuple[jax.Array, None]:
        return logsumexp(alpha[:, None] + log_p, axis=0) + emitted, None

    alpha, _ = jax.lax.scan(step, log_p[0] + emitted[0], emitted[1:])
    return logsumexp(alpha) + hmm_weight(choices, params)


def hmm_guided_by_hand(choices: Arrays, params: Arrays, y: jax.Array) -> jax.Array:
    """The guide's marginals, forward in time; a term for every pair of states."""
    emitted, log_p = normal(y[:, None], choices["mu"], NOISE), jnp.log(choices["P"])
    log_q = jax.nn.log_softmax(params["logits"])

    def step(q: jax.Array, given: Any) -> tuple[jax.Array, jax.Array]:
        log_q, emitted = given
        pairs = q[:, None] * jnp.exp(log_q)
        return pairs.sum(0), (pairs * (log_p + emitted - log_q)).sum()

    start = jax.nn.one_hot(0, len(log_p), dtype=log_p.dtype)
    _, terms = jax.lax.scan(step, start, (log_q, emitted))
    return terms.sum() + hmm_weight(choices, params)


# --- the forms ------------------------------------------------------------------------------------


def _by_hand(draws: Callable[..., Arrays], exact: Callable[..., jax.Array]) -> Form:
    return Form(lambda key, params, data: exact(draws(key, params), params, data), exact)


def _ours(elbo: ppl.Expectation, given: ppl.Expectation) -> Form:
    return Form(elbo.surrogate, functools.partial(given.surrogate, KEY))


GMM = {
    "by hand": _by_hand(gmm_draws, gmm_by_hand),
    "by hand, densities": _by_hand(gmm_draws, gmm_directly),
    "ours": _ours(gmm_elbo, gmm_given),
}
HMM = {"by hand": _by_hand(hmm_draws, hmm_by_hand), "ours": _ours(hmm_elbo, hmm_given)}
GMM_GUIDED = {
    "by hand": _by_hand(gmm_draws, gmm_guided_by_hand),
    "ours": _ours(gmm_guided_elbo, gmm_guided_given),
}
HMM_GUIDED = {
    "by hand": _by_hand(hmm_draws, hmm_guided_by_hand),
    "ours": _ours(hmm_guided_elbo, hmm_guided_given),
}


# --- what is measured -----------------------------------------------------------------------------


def ascent(gradient: Callable[..., Any], steps: int) -> Callable[..., Any]:
    """``steps`` of Adam by ``gradient(key, params, data)`` in one compiled loop."""
    adam = optax.adam(1e-3)

    def run(key: jax.Array, params: Arrays, data: jax.Array) -> Any:
        def step(state: Any, i: jax.Array) -> Any:
            params, moments = state
            value, slope = gradient(jax.random.fold_in(key, i), params, data)
            updates, moments = adam.update(jax.tree.map(jnp.negative, slope), moments)
            return (optax.apply_updates(params, updates), moments), value

        return jax.lax.scan(step, (params, adam.init(params)), jnp.arange(steps))

    return run


def repeated(gradient: Callable[..., Any], steps: int) -> Callable[..., Any]:
    """``measure.looped`` with data among the arguments, so that XLA cannot fold them."""
    return lambda key, params, data: looped(lambda key, p: gradient(key, p, data), steps)(
        key, params
    )


def value_and_slopes(form: Form, problem: Problem) -> Any:
    """Given the global choices: the value, and the gradient in them and in the parameters."""
    f = jax.jit(jax.value_and_grad(form.exact, argnums=(0, 1)))
    return jax.device_get(f(problem.choices, problem.params, problem.data))


def doubled(problem: Problem) -> Problem:
    """The same numbers in 64 bits; for use under ``jax.enable_x64``."""
    wide = lambda tree: jax.tree.map(lambda a: _array(np.asarray(a, float)), tree)
    params, data, choices = wide((problem.params, problem.data, problem.choices))
    return Problem(problem.forms, params, data, choices)


def error(slopes: Any, exact: Any) -> float:
    """The largest difference of two gradients: of each array, relative to its largest slope."""

    def of_leaf(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max() / np.abs(b).max())

    return max(jax.tree.leaves(jax.tree.map(of_leaf, slopes, exact)))


def errors(problem: Problem) -> dict[str, dict[str, float]]:
    """Of the gradient of every form in 32 and 64 bits, in parts per million of that by hand."""
    single = {name: value_and_slopes(f, problem)[1] for name, f in problem.forms.items()}
    with jax.enable_x64(True):
        wide = doubled(problem)
        double = {name: value_and_slopes(f, wide)[1] for name, f in wide.forms.items()}
    exact = double["by hand"]
    return {
        name: {
            "error, ppm": 1e6 * error(single[name], exact),
            "64 bits": 1e6 * error(double[name], exact),
        }
        for name in problem.forms
    }
