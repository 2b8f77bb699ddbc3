"""Attend, Infer, Repeat (Eslami et al. 2016), sizes and priors as in Becker et al. (PLDI 2024).

A canvas is a sum of up to three objects, each present or not (``pres``), somewhere (``where``:
scale, x, y) and something (``what``, a code of 50 numbers). The guide looks at the canvas through
an LSTM, step by step. The strategies of the paper differ in what is written in ``STRATEGIES``:
the model, the guide and the objective stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import ppl
from ppl import dist

STEPS = 3
CANVAS, WINDOW = 50, 20
WHAT, HIDDEN, DENSE = 50, 256, 200
PRES_PRIOR = (0.05, 0.05**2.3, 0.05**5)
WHERE_PRIOR = (jnp.array([3.0, 0.0, 0.0]), jnp.array([0.2, 1.0, 1.0]))
NOISE = 0.3
EPS = 1e-4

Params = Mapping[str, Any]


# --- networks and the spatial transformer ---------------------------------------------------------


def init(key: jax.Array, canvas: int = CANVAS) -> Params:
    """Random weights, uniform in ±1/√inputs."""

    def dense(key: jax.Array, n: int, m: int) -> Params:
        w, b = jax.random.split(key)
        bound = n**-0.5
        return {
            "w": jax.random.uniform(w, (n, m), minval=-bound, maxval=bound),
            "b": jax.random.uniform(b, (m,), minval=-bound, maxval=bound),
        }

    k = jax.random.split(key, 6)
    return {
        "lstm": dense(k[0], canvas**2 + 3 + WHAT + 1 + HIDDEN, 4 * HIDDEN),
        "predict": dense(k[1], HIDDEN, 7),
        "encoder": [dense(k[2], WINDOW**2, DENSE), dense(k[3], DENSE, 2 * WHAT)],
        "decoder": [dense(k[4], WHAT, DENSE), dense(k[5], DENSE, WINDOW**2)],
    }


def linear(layer: Params, x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def perceptron(layers: Any, x: jax.Array) -> jax.Array:
    return linear(layers[1], jax.nn.leaky_relu(linear(layers[0], x)))


def lstm(layer: Params, x: jax.Array, state: Any) -> tuple[jax.Array, jax.Array]:
    h, c = state
    i, f, g, o = jnp.split(linear(layer, jnp.concatenate([x, h])), 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def resample(image: jax.Array, n: int, scale: Any, x: Any, y: Any) -> jax.Array:
    """``f32[n, n]``: an image seen through scale · (-1 .. 1) + (x, y), bilinear, zero outside."""
    size = image.shape[0]
    grid, pixels = jnp.linspace(-1.0, 1.0, n), jnp.arange(size)

    def weights(shift: Any) -> jax.Array:
        at = 0.5 * (scale * grid + shift + 1.0) * (size - 1)
        return jax.nn.relu(1.0 - jnp.abs(at[:, None] - pixels))

    return weights(y) @ image @ weights(x).T


def onto_canvas(where: jax.Array, window: jax.Array, canvas: int) -> jax.Array:
    return resample(window.reshape(WINDOW, WINDOW), canvas, *where)


def out_of_canvas(where: jax.Array, image: jax.Array) -> jax.Array:
    scale, x, y = where
    return resample(image, WINDOW, 1 / scale, -x / scale, -y / scale).ravel()


def decode(params: Params, what: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(perceptron(params["decoder"], what))


def encode(params: Params, window: jax.Array) -> tuple[jax.Array, jax.Array]:
    loc, scale = jnp.split(perceptron(params["encoder"], window), 2)
    return loc, jax.nn.softplus(scale)


def look(params: Params, image: jax.Array, last: Any, state: Any) -> Any:
    """One step of the guide's LSTM: its state and what it says of ``pres`` and ``where``."""
    pres, where, what = last
    seen = jnp.concatenate([image.ravel(), where, what, jnp.reshape(pres, 1).astype(float)])
    state = lstm(params["lstm"], seen, state)
    out = linear(params["predict"], state[0])
    p = (EPS + jax.nn.sigmoid(out[0]) * pres) / (1 + 1.01 * EPS)
    return state, p, (out[1:4], jax.nn.softplus(out[4:]))


START = (jnp.ones(()), jnp.zeros(3), jnp.zeros(WHAT)), (jnp.zeros(HIDDEN), jnp.zeros(HIDDEN))


# --- model, guide, objectives ---------------------------------------------------------------------


@ppl.gen
def model(params: Params, size: int = CANVAS) -> None:
    canvas = jnp.zeros((size, size))
    for t in range(STEPS):
        pres = ppl.sample(f"pres{t}", dist.Bernoulli(PRES_PRIOR[t]))
        where = ppl.sample(f"where{t}", dist.Normal(*WHERE_PRIOR))
        what = ppl.sample(f"what{t}", dist.Normal(jnp.zeros(WHAT), 1.0))
        canvas += pres * onto_canvas(where, decode(params, what), size)
    ppl.sample("image", dist.Normal(canvas, NOISE))


@ppl.gen
def guide(params: Params, image: jax.Array) -> jax.Array:
    last, state = START
    count = jnp.zeros((), int)
    for t in range(STEPS):
        state, p, law = look(params, image, last, state)
        pres = ppl.sample(f"pres{t}", dist.Bernoulli(p))
        where = ppl.sample(f"where{t}", dist.Normal(*law))
        what = ppl.sample(f"what{t}", dist.Normal(*encode(params, out_of_canvas(where, image))))
        last, count = (pres, where, what), count + pres
    return count


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Estimators for ``pres`` at the three steps, and the objective for one image."""

    estimators: tuple[ppl.Estimator, ...]
    objective: Callable[..., jax.Array] = ppl.elbo

    def expectation(self) -> ppl.Expectation:
        """The mean over ``images`` (``f32[n, size, size]``), to be maximised."""
        given = {f"pres{t}": e for t, e in enumerate(self.estimators)}

        @ppl.expectation
        def mean(params: Params, images: jax.Array) -> jax.Array:
            @ppl.expectation
            def one(image: jax.Array) -> jax.Array:
                p = model(params, image.shape[0])
                q = ppl.with_estimators(guide(params, image), given)
                return self.objective(p, q, {"image": image})

            return jax.vmap(one)(images).mean()

        return mean


def iwae(p: Any, q: Any, data: Any) -> jax.Array:
    return ppl.iwelbo(p, q, data, n=2)


def wake_wake(p: Any, q: Any, data: Any) -> jax.Array:
    return ppl.wake_theta(p, q, data, n=10) + ppl.wake_phi(p, q, data, n=10)


STRATEGIES = {
    "REINFORCE": Strategy(3 * (ppl.reinforce(),)),
    "ENUM": Strategy(3 * (ppl.enum(),)),
    "MVD": Strategy(3 * (ppl.mvd(),)),
    "hybrid": Strategy((ppl.mvd(), ppl.mvd(), ppl.enum())),
    "IWAE + REINFORCE": Strategy(3 * (ppl.reinforce(),), iwae),
    "IWAE + MVD": Strategy(3 * (ppl.mvd(),), iwae),
    "RWS": Strategy(3 * (ppl.reinforce(),), wake_wake),
}


# --- REINFORCE and ENUM by hand -------------------------------------------------------------------


def normal(x: Any, loc: Any, scale: Any) -> jax.Array:
    return (-0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)).sum()


def bernoulli(x: Any, p: Any) -> jax.Array:
    return jnp.where(x == 1, jnp.log(p), jnp.log1p(-p))


def step_by_hand(t: int, params: Params, image: jax.Array, keys: Any, pres: Any, p: Any, law: Any):
    """Draws at one step given ``pres``, the part of the canvas, and the terms of the ELBO."""
    loc, scale = law
    where = loc + scale * jax.random.normal(keys[0], (3,))
    code = encode(params, out_of_canvas(where, image))
    what = code[0] + code[1] * jax.random.normal(keys[1], (WHAT,))
    terms = bernoulli(pres, PRES_PRIOR[t]) - bernoulli(pres, p)
    terms += normal(where, *WHERE_PRIOR) - normal(where, loc, scale)
    terms += normal(what, 0.0, 1.0) - normal(what, *code)
    part = pres * onto_canvas(where, decode(params, what), image.shape[0])
    return (pres, where, what), part, terms


def reinforce_by_hand(key: jax.Array, params: Params, images: jax.Array) -> jax.Array:
    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        last, state = START
        total, score, canvas = 0.0, 0.0, jnp.zeros_like(image)
        for t, k in enumerate(jax.random.split(key, STEPS)):
            keys = jax.random.split(k, 3)
            state, p, law = look(params, image, last, state)
            pres = jax.random.bernoulli(keys[2], jax.lax.stop_gradient(p)).astype(float)
            last, part, terms = step_by_hand(t, params, image, keys, pres, p, law)
            total, canvas = total + terms, canvas + part
            score += bernoulli(pres, p)
        total += normal(image, canvas, NOISE)
        return total + jax.lax.stop_gradient(total) * (score - jax.lax.stop_gradient(score))

    return jax.vmap(one)(jax.random.split(key, len(images)), images).mean()


def enum_by_hand(key: jax.Array, params: Params, images: jax.Array) -> jax.Array:
    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        keys = jax.random.split(key, (STEPS, 2))

        def rest(t: int, last: Any, state: Any, canvas: jax.Array) -> jax.Array:
            if t == STEPS:
                return normal(image, canvas, NOISE)
            state, p, law = look(params, image, last, state)

            def given(pres: jax.Array) -> jax.Array:
                new, part, terms = step_by_hand(t, params, image, keys[t], pres, p, law)
                return terms + rest(t + 1, new, state, canvas + part)

            without, with_ = jax.vmap(given)(jnp.arange(2.0))
            return (1 - p) * without + p * with_

        return rest(0, *START, jnp.zeros_like(image))

    return jax.vmap(one)(jax.random.split(key, len(images)), images).mean()


BY_HAND = {"REINFORCE": reinforce_by_hand, "ENUM": enum_by_hand}
