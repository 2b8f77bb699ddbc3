"""Programs for the tables of ``test_soundness.py``: correct ones that look as if they jumped.

``SMOOTH`` and ``JUMPS`` are functions of three draws, ``SOUND`` and ``BIASED`` objectives.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.ode import odeint

import ppl
from ppl import dist

PATHWISE = ppl.reparam()
W = np.array([1.0, -0.5, 2.0])
KNOTS = jnp.array([-2.0, -4 / 3, -2 / 3, 0.0, 2 / 3, 4 / 3, 2.0])
HEIGHTS = jnp.array([0.3, 1.0, -1.0, 2.0, 0.5, 1.5, -0.7])
NEXT_TO_0 = np.array([1e-8, 1e-9, 1e-7], np.float32)
MIX = np.array([[0.8, -0.4, 0.3], [0.2, 0.9, -0.5], [-0.3, 0.1, 0.7]])


def leaky(x):
    return jnp.where(x > 0, x, 0.1 * x)


def clipped(x):
    return jnp.where(x < -1, -1.0, jnp.where(x > 1, 1.0, x))


def huber(x):
    return jnp.where(jnp.abs(x) <= 1, 0.5 * x**2, jnp.abs(x) - 0.5)


def sine_over(x, near, term=1 / 6):
    small = jnp.abs(x) < near
    return jnp.where(small, 1.0 - term * x**2, jnp.sin(x) / jnp.where(small, 1.0, x))


def layers(activation, n):
    def network(x):
        for _ in range(n):
            x = activation(x @ MIX + 0.1)
        return x @ W

    return network


def between(i, x):
    slope = (HEIGHTS[i + 1] - HEIGHTS[i]) / (KNOTS[i + 1] - KNOTS[i])
    return (HEIGHTS[i] + (x - KNOTS[i]) * slope) @ W


def rising_pieces(i, x):
    return between(i, x) + 0.5 * i @ W


def sparsemax(x):
    z = jnp.sort(x)[::-1]
    sums, ranks = jnp.cumsum(z), jnp.arange(1, 4)
    n = jnp.sum(1 + ranks * z > sums)
    return jnp.maximum(x - (sums[n - 1] - 1) / n, 0.0) @ W


def sparsemax_by_bisection(x):
    def halve(s, _):
        low, high = s
        middle = (low + high) / 2
        large = jnp.sum(jnp.maximum(x - middle, 0)) > 1
        return (jnp.where(large, middle, low), jnp.where(large, high, middle)), None

    (low, _), _ = lax.scan(halve, (x.max() - 1, x.max()), None, length=25)
    support = x > low
    tau = (jnp.sum(jnp.where(support, x, 0.0)) - 1) / jnp.sum(support)
    return jnp.maximum(x - tau, 0.0) @ W


def guarded(x, least=0.0):
    norm = jnp.linalg.norm(x)
    return (x / jnp.where(norm > least, norm, 1.0)) @ W


def guarded_twice(x):
    square = jnp.sum(x**2)
    positive = square > 0
    norm = jnp.sqrt(jnp.where(positive, square, 1.0))
    return jnp.where(positive, x / norm, 0.0) @ W


def clipped_by_norm(x):
    norm = jnp.sqrt(jnp.sum(x**2))
    return jnp.where(norm > 1.0, x / norm, x) @ W


SMOOTH = {
    "leaky relus, 12 layers": layers(leaky, 12),
    "clips, 8 layers": layers(clipped, 8),
    "huber losses, 8 layers": layers(huber, 8),
    "piecewise linear by searchsorted": lambda x: between(
        jnp.clip(jnp.searchsorted(KNOTS, x) - 1, 0, 5), x
    ),
    "piecewise linear by digitize": lambda x: between(
        jnp.clip(jnp.digitize(x, KNOTS) - 1, 0, 5), x
    ),
    "piecewise linear by counting": lambda x: between(
        jnp.clip(jnp.sum(x[:, None] >= KNOTS, -1) - 1, 0, 5), x
    ),
    "sparsemax": sparsemax,
    "sparsemax by bisection": sparsemax_by_bisection,
    "guarded norm": guarded,
    "sine over x, by its series at 0": lambda x: sine_over(x, 1e-4) @ W,
    "sine over x, 1 at next to 0": lambda x: sine_over(x, NEXT_TO_0, 0.0) @ W,
    "sine over x, of a wider series": lambda x: sine_over(x, 1e-3) @ W,
    "sine over a norm, by its series": lambda x: sine_over(jnp.linalg.norm(x), 1e-4),
    "norm guarded by next to nothing": lambda x: guarded(x, 1e-12),
    "norm guarded twice": guarded_twice,
    "clipped by norm": clipped_by_norm,
    "sine of unwrapped angles": lambda x: jnp.sin(jnp.unwrap(3.0 * x)) @ W,
    "cosine of a wrapped angle": lambda x: (
        jnp.cos(jnp.arctan2(jnp.sin(3.0 * x), jnp.cos(3.0 * x))) @ W
    ),
}

JUMPS = {
    "jumps, 4 layers": layers(lambda x: jnp.where(x > 0, x, 0.1 * x - 0.1), 4),
    "piecewise linear, pieces that do not meet": lambda x: rising_pieces(
        jnp.clip(jnp.searchsorted(KNOTS, x) - 1, 0, 5), x
    ),
    "sign without 0": lambda x: jnp.where(jnp.abs(x) < 1e-8, 0.0, x / jnp.abs(x)) @ W,
    "one of several from a table": lambda x: KNOTS[jnp.clip(jnp.round(x), 0, 6).astype(int)][0],
    "least one, rounded": lambda x: jnp.round(x)[jnp.argmin(x)],
    "norm guarded by something": lambda x: guarded(x, 0.5),
}


def iterate(a):
    apart = lambda s: jnp.abs(s[0] - s[1]) > 1e-10
    return lax.while_loop(apart, lambda s: (a * jnp.tanh(s[0]) + 1, s[0]), (1.0 + 0 * a, 0 * a))[0]


def implicit(a, q):
    return jnp.tanh(q) / (1 - a * (1 - jnp.tanh(q) ** 2))


@jax.custom_vjp
def fixed_point(a):
    return iterate(a)


@jax.custom_vjp
def fixed_point_of_a_wrong_rule(a):
    return iterate(a)


fixed_point.defvjp(
    lambda a: (lambda q: (q, (a, q)))(iterate(a)), lambda r, ct: (ct * implicit(*r),)
)
fixed_point_of_a_wrong_rule.defvjp(
    lambda a: (lambda q: (q, q))(iterate(a)), lambda q, ct: (ct * jnp.tanh(q),)
)


@jax.custom_jvp
def newton_root(x):
    return lax.while_loop(lambda y: jnp.abs(y * y - x) > 1e-6 * x, lambda y: 0.5 * (y + x / y), x)


newton_root.defjvp(lambda p, t: (lambda y: (y, t[0] / (2 * y)))(newton_root(p[0])))


def implicit_derivative(t):
    return fixed_point(ppl.sample("x", dist.Normal(t, 0.1), PATHWISE)) ** 2


def implicit_derivative_that_is_wrong(t):
    return fixed_point_of_a_wrong_rule(ppl.sample("x", dist.Normal(t, 0.1), PATHWISE)) ** 2


def root_of_a_lognormal(t):
    return newton_root(ppl.sample("x", dist.LogNormal(t, 0.5), PATHWISE))


def linear_ode(t):
    rate = ppl.sample("x", dist.LogNormal(t, 0.3), PATHWISE)
    return odeint(lambda y, s: -rate * y, jnp.array(1.0), jnp.array([0.0, 0.5]))[-1]


def logistic_ode(t):
    rate = ppl.sample("x", dist.LogNormal(t, 0.3), PATHWISE)
    return odeint(lambda y, s: rate * y * (1 - y), jnp.array(0.1), jnp.array([0.0, 0.5]))[-1]


def angle(t):
    return ppl.sample("x", dist.VonMises(t + 2.0, 1.0), PATHWISE)


SOUND = {
    "cosine of an angle": lambda t: jnp.cos(angle(t)),
    "implicit derivative": implicit_derivative,
    "root of a lognormal draw": root_of_a_lognormal,
    "linear ODE": linear_ode,
    "logistic ODE": logistic_ode,
}
BIASED = {
    "implicit derivative that is wrong": implicit_derivative_that_is_wrong,
    "angle": angle,
}
