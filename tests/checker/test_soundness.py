"""The soundness checker against measured bias: biased programs are flagged, sound ones are not.

Two tables of small objectives. Which table a program belongs to is measured: the mean of its
gradient (float64, 4,096 keys or as said) is compared with four-point central differences, of the
exact expected value where it is given, else of ``objective.value`` with the same keys, whose
noise then mostly cancels.

- BIASED: off by more than 5 standard errors and 1 % of the gradient (false-alarm rate 6e-7). This
  is kept in ``labels.json`` and measured again where a program has changed; renew the file by
  ``python tests/checker/test_soundness.py``.
- SOUND: |z| <= 3.3, else |z| <= 4.3 with 8 times as many fresh keys, beyond a thousandth of the
  gradient, which is left to the truncation of the differences (1.7e-8 for each number).
"""

from __future__ import annotations

import functools
import inspect
import math
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import kept
import labels
import numpy as np
import optax
import pytest
import soundness_alarms
import soundness_missed
import ztest
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.lax import stop_gradient
from scipy.special import gammaincc, ndtr

import ppl
from ppl import dist

pytestmark = pytest.mark.usefixtures("x64")
PATHWISE = ppl.reparam()
SCORE = ppl.reinforce()
STEPS = np.array([-2.0, -1.0, 1.0, 2.0])
SLOPE = np.array([1.0, -8.0, 8.0, -1.0]) / 12.0


class Program(NamedTuple):
    """An objective ``f(theta, *args)`` with one of three sources of the right gradient."""

    f: Callable[..., Any]
    theta: Any
    kind: str | None
    texts: tuple[str, ...]
    args: tuple[Any, ...] = ()
    exact: Callable[[Any], float] | None = None  # the expected value
    gradient: Any = None  # by hand
    like: Callable[..., Any] | None = None  # another objective of the same expected value
    samples: int = 1
    n: int = 4096
    h: float = 0.05
    place: tuple[bool, int] | None = None  # in JUMPS or SMOOTH


BIASED: dict[str, Program] = {}
SOUND: dict[str, Program] = {}


def biased(*texts, at=0.3, kind="biased", **more):
    """Register a program whose finding has ``texts``; none stands for its site ``"x"``."""

    def register(f):
        BIASED[f.__name__] = Program(f, at, kind, texts or ("'x'",), **more)
        return f

    return register


unsupported = functools.partial(biased, kind="unsupported")


def sound(f=None, *, at=0.3, **more):
    if f is None:
        return functools.partial(sound, at=at, **more)
    SOUND[f.__name__] = Program(f, at, None, (), **more)
    return f


# --- functions of three pathwise draws ----------------------------------------------------------

W = np.array([1.0, -0.5, 2.0])
TABLE = np.array([0.3, 1.0, -1.0, 2.0, 0.5, 1.5, -0.7])
RISING = np.array([0.0, 0.3, 1.0, 2.0, 2.5, 4.0, 4.2, 5.0])
EDGES = np.array([-0.5, 0.1, 0.6])


def three(f, t):
    x = ppl.sample("x", dist.Normal(t * W + jnp.array([0.1, 0.5, -0.4]), 0.7), PATHWISE)
    return f(x)


def bucket(x):
    return jnp.clip(jnp.floor(x) + 3, 0, 6).astype(int)


def read_line(x, slope=1.0):
    u = jnp.clip(x + 3.0, 0.0, 6.999)
    i, w = jnp.floor(u).astype(int), slope * (u - jnp.floor(u))
    line = jnp.asarray(RISING)
    return (1.0 - w) * line[i] + w * line[i + 1]


@jax.custom_jvp
def straight_through(x):
    return 3.0 * jnp.round(x / 3.0)


straight_through.defjvp(lambda p, t: (straight_through(p[0]), t[0]))


@jax.custom_vjp
def binarize(x):
    return jnp.where(x > 0, 1.0, -1.0)


binarize.defvjp(lambda x: (binarize(x), x), lambda x, ct: (ct * (jnp.abs(x) < 1),))


def count_up(x):
    return lax.while_loop(lambda i: i < x, lambda i: i + 1, -3) * 1.0


def relu_of_the_last(x):
    return lax.cond(x[2] > 0, lambda: x[2] + 0.0 * x[0], lambda: 0.4 + x[1])


JUMPS = {
    "comparison": lambda x: jnp.sum(x > 0.0) * 1.0,
    "comparison by multiplication": lambda x: (x > 0.0) * (1.0 + x) @ W,
    "distance from the largest": lambda x: (x == x.max()) @ W,
    "not equal": lambda x: (x != jnp.maximum(x, 0.2)) @ W,
    "logical": lambda x: jnp.where((x > 0) & ~(x > 1), 1.0, 0.0) @ W,
    "any": lambda x: jnp.any(x > 1.0) * 1.0,
    "all": lambda x: jnp.where(jnp.all(x > -0.5), 2.0, 0.5),
    "sign": lambda x: jnp.sign(x) @ W,
    "sign of a cube": lambda x: jnp.sign(x**3 + 0.1) @ W,
    "copysign": lambda x: jnp.copysign(1.0, x) @ W,
    "signbit": lambda x: jnp.signbit(x) @ W,
    "floor": lambda x: jnp.floor(2.0 * x) @ W,
    "ceil": lambda x: jnp.ceil(x) @ W,
    "round": lambda x: jnp.round(x) @ W,
    "trunc": lambda x: jnp.trunc(2.0 * x) @ W,
    "to integer": lambda x: (2.0 * x).astype(int) @ W,
    "remainder": lambda x: (x % 1.0) @ W,
    "lax rem": lambda x: lax.rem(x, 0.5) @ W,
    "fraction": lambda x: (x - jnp.floor(x)) ** 2 @ W,
    "floor division": lambda x: (x // 0.5) @ W,
    "divmod": lambda x: jnp.divmod(x, 0.7)[1] @ W,
    "modf": lambda x: jnp.modf(x)[1] @ W,
    "floor with weights that do not match": lambda x: read_line(x, 0.5).sum(),
    "heaviside": lambda x: jnp.heaviside(x, 0.5) @ W,
    "isnan": lambda x: jnp.isnan(jnp.sqrt(x)) @ W,
    "argmax": lambda x: jnp.argmax(x) * 1.0,
    "argmin": lambda x: jnp.asarray(TABLE)[jnp.argmin(x)],
    "other values at the argmax": lambda x: (2.0 * x[::-1])[jnp.argmax(x)],
    "nanargmax": lambda x: jnp.asarray(W)[jnp.nanargmax(x)],
    "argsort": lambda x: jnp.asarray(W)[jnp.argsort(x)] @ jnp.array([1.0, 2.0, 4.0]),
    "argpartition": lambda x: jnp.argpartition(x, 1)[0] * 1.0,
    "sorted companions": lambda x: lax.sort((x, jnp.asarray(W)), num_keys=1)[1] @ W,
    "lexsort": lambda x: jnp.lexsort((x,))[-1] * 1.0,
    "rank": lambda x: jnp.sum(x[:, None] > x, axis=1) @ W,
    "top_k indices": lambda x: lax.top_k(x, 2)[1] @ jnp.array([1.0, 3.0]),
    "one_hot of the argmax": lambda x: jax.nn.one_hot(jnp.argmax(x), 3) @ W,
    "cummax of indicators": lambda x: lax.cummax((x > 0).astype(float)) @ W,
    "searchsorted": lambda x: jnp.searchsorted(jnp.asarray(EDGES), x) @ W,
    "digitize": lambda x: jnp.asarray(TABLE)[jnp.digitize(x, EDGES)] @ W,
    "histogram": lambda x: jnp.histogram(x, jnp.array([0.0, 1.0, 9.0]))[0] @ jnp.array([1.0, 2]),
    "piecewise": lambda x: jnp.piecewise(x, [x < 0, x > 0.5], [1.0, 2.0, lambda x: x]) @ W,
    "select": lambda x: jnp.select([x < -0.2, x < 0.4], [x, x + 0.3], 2.0 * x) @ W,
    "small jump": lambda x: jnp.where(x > 0.2, x + 0.05, x) @ W,
    "jump of one element": lambda x: x.at[1].set(jnp.sign(x[1])).sum(),
    "continuous at one of two edges": lambda x: jnp.where((x > 0) & (x < 1), x, 0.0) @ W,
    "cut": lambda x: jnp.where(jnp.abs(x) < 1, 0.5 * x**2, jnp.abs(x)) @ W,
    "slope of relu": lambda x: jax.vmap(jax.grad(jax.nn.relu))(x) @ W,
    "slope of abs": lambda x: jax.grad(lambda x: jnp.abs(x).sum())(x) @ W,
    "slope of max": lambda x: jax.grad(jnp.max)(x) @ W,
    "slope of a hinge by jvp": lambda x: jax.jvp(lambda x: jnp.maximum(x, 0.1), (x,), (x,))[1] @ W,
    "index": lambda x: jnp.asarray(TABLE)[bucket(x)] @ W,
    "dynamic slice": lambda x: lax.dynamic_slice(jnp.asarray(TABLE), (bucket(x[0]),), (2,)).sum(),
    "scatter": lambda x: jnp.zeros(7).at[bucket(x)].add(1.0) @ TABLE,
    "segment sum": lambda x: jax.ops.segment_sum(x, bucket(x), 8) @ RISING,
    "roll by a draw": lambda x: jnp.roll(jnp.asarray(TABLE), bucket(x[0])) @ TABLE,
    "reshape, concatenate, matmul": lambda x: (
        jnp.concatenate([jnp.ceil(x).reshape(3, 1), x[:, None]], 1) @ jnp.array([1.0, 2.0]) @ W
    ),
    "exp of a step": lambda x: jnp.exp(0.3 * jnp.floor(x @ W)),
    "jit": lambda x: jax.jit(lambda x: jnp.sign(x))(x) @ W,
    "vmap of cond": lambda x: (
        jax.vmap(lambda x: lax.cond(x > 0, lambda: 1.0 + x, lambda: x))(x) @ W
    ),
    "cond": relu_of_the_last,
    "switch": lambda x: lax.switch(bucket(x[0]) % 3, [lambda: 1.0, lambda: 2.0, lambda: x[1]]),
    "while": lambda x: count_up(x[0]),
    "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, c: c + (x[i] > 0.3 * i), 0.0),
    "scan carry": lambda x: lax.scan(lambda c, x: (jnp.sign(c + x), None), 0.5, x)[0],
    "scan carry, one step late": lambda x: lax.scan(
        lambda c, x: ((c[1], jnp.floor(x)), None), (0.5, 0.5), x
    )[0][0],
    "scan ys": lambda x: lax.scan(lambda c, x: (c + x, c > 0.2), 0.0, x)[1].sum() * 1.0,
    "lax map": lambda x: lax.map(lambda x: jnp.where(x > 0, 1.0, x), x) @ W,
    "checkpoint": lambda x: jax.checkpoint(lambda x: jnp.round(x))(x) @ W,
    "straight-through rule": lambda x: straight_through(x) @ W,
    "straight-through by hand": lambda x: (x + stop_gradient(3 * jnp.round(x / 3) - x)) @ W,
    "straight-through argmax": lambda x: (
        (lambda p: stop_gradient(jax.nn.one_hot(jnp.argmax(x), 3) - p) + p)(jax.nn.softmax(x)) @ W
    ),
    "held draw": lambda x: (x * stop_gradient(x)) @ W,
    "held weights": lambda x: stop_gradient(jax.nn.softmax(x)) @ x,
    "held norm": lambda x: (x / stop_gradient(jnp.linalg.norm(x))) @ W,
    "held by integers": lambda x: (
        lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.int64), jnp.float64) @ W
    ),
    "held branch": lambda x: jnp.where(x > 0, x, stop_gradient(x)) @ W,
}

JUMPS |= soundness_missed.JUMPS
JUMPS |= soundness_alarms.JUMPS
HELD = {name for name in JUMPS if name.startswith(("held", "straight-through"))}

for _i, (_name, _f) in enumerate(JUMPS.items()):
    _program = Program(functools.partial(three, _f), 0.3, "biased", ("'x'",), n=32768)
    BIASED[_name] = _program._replace(place=(True, _i))


def leaky(x):
    return jnp.where(x > 0, x, 0.1 * x)


def huber(x, d=0.7):
    return jnp.where(jnp.abs(x) <= d, 0.5 * x**2, d * (jnp.abs(x) - 0.5 * d))


def my_softplus(x):
    return jnp.where(x > 30.0, x, jnp.log1p(jnp.exp(jnp.minimum(x, 30.0))))


def log_guarded(x):
    positive = x > 0
    return jnp.where(positive, x * jnp.log(jnp.where(positive, x, 1.0)), 0.0)


def attention(x):
    scores = jax.nn.softmax(x[:, None] * x / jnp.sqrt(3.0), axis=-1)
    return (scores @ x) @ W


@jax.custom_jvp
def stable_square(x):
    return x**2


stable_square.defjvp(lambda p, t: (stable_square(p[0]), 2.0 * p[0] * t[0]))


@jax.custom_vjp
def my_relu(x):
    return jnp.where(x > 0, x, 0.0)


my_relu.defvjp(lambda x: (my_relu(x), x), lambda x, ct: (ct * (x > 0),))


SMOOTH = {
    "relu": lambda x: jax.nn.relu(x) @ W,
    "relu6": lambda x: jax.nn.relu6(5 * x) @ W,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x) @ W,
    "elu, selu, celu": lambda x: (jax.nn.elu(x) + jax.nn.selu(x) + jax.nn.celu(x)) @ W,
    "gelu, silu, mish": lambda x: (jax.nn.gelu(x) + jax.nn.silu(x) + jax.nn.mish(x)) @ W,
    "hard activations": lambda x: (jax.nn.hard_tanh(x) + jax.nn.hard_sigmoid(3 * x)) @ W,
    "softplus": lambda x: jax.nn.softplus(x) @ W,
    "log_sigmoid": lambda x: jax.nn.log_sigmoid(x) @ W,
    "logsumexp": lambda x: jax.nn.logsumexp(x * W),
    "logsumexp, where": lambda x: jax.nn.logsumexp(x, where=jnp.array([True, False, True])),
    "logaddexp": lambda x: jnp.logaddexp(x, x[::-1] * 2.0) @ W,
    "softmax": lambda x: jax.nn.softmax(x) @ W,
    "log_softmax": lambda x: jax.nn.log_softmax(2.0 * x) @ W,
    "softmax by hand": lambda x: (lambda e: e / e.sum())(jnp.exp(x - stop_gradient(x.max()))) @ W,
    "logsumexp by hand": lambda x: (lambda m: jnp.log(jnp.exp(x - m).sum()) + m)(
        stop_gradient(x.max())
    ),
    "attention": attention,
    "clip": lambda x: jnp.clip(x, -0.3, 0.6) @ W,
    "clip, then smooth": lambda x: jnp.tanh(jnp.clip(2 * x, -1.0, 1.0)) @ W,
    "abs": lambda x: jnp.abs(x) @ W,
    "hinge": lambda x: jnp.maximum(0.0, 1.0 - x) @ W,
    "max": lambda x: x.max() - 2 * x.min(),
    "max pool": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (1,), "VALID").sum(),
    "cummax": lambda x: lax.cummax(x) @ W,
    "sort": lambda x: jnp.sort(x) @ W,
    "median": lambda x: jnp.median(x) ** 2,
    "quantile": lambda x: jnp.quantile(x, 0.3),
    "top_k values": lambda x: lax.top_k(x, 2)[0] @ jnp.array([1.0, 3.0]),
    "value at the argmax": lambda x: x[jnp.argmax(x)] ** 2,
    "values in the order of argsort": lambda x: x[jnp.argsort(x)] @ W,
    "norm": lambda x: jnp.linalg.norm(x),
    "norms of order 1 and inf": lambda x: jnp.linalg.norm(x, 1) + jnp.linalg.norm(x, jnp.inf),
    "cholesky": lambda x: jnp.linalg.cholesky(jnp.outer(x, x) + jnp.eye(3)).sum(),
    "solve": lambda x: jnp.linalg.solve(jnp.outer(x, x) + 2 * jnp.eye(3), jnp.ones(3)).sum(),
    "slogdet": lambda x: jnp.linalg.slogdet(jnp.outer(x, W) + 9 * jnp.eye(3))[1],
    "optax huber": lambda x: optax.huber_loss(x, delta=0.6) @ W,
    "optax smooth labels, hinge": lambda x: optax.hinge_loss(x, jnp.array([1.0, -1, 1])).sum(),
    "cross entropy": lambda x: optax.softmax_cross_entropy_with_integer_labels(x, 2),
    "interp": lambda x: jnp.interp(x, np.linspace(-2, 2, 7), TABLE) @ W,
    "sinc": lambda x: jnp.sinc(x) @ W,
    "arctan2": lambda x: jnp.arctan2(x, 3.0 + x**2) @ W,
    "power": lambda x: jnp.power(jnp.abs(x) + 0.1, 1.7) @ W,
    "xlogy": lambda x: jax.scipy.special.xlogy(x**2, x**2) @ W,
    "nan_to_num": lambda x: jnp.nan_to_num(jnp.sin(x)) @ W,
    "where, leaky": lambda x: leaky(x) @ W,
    "where, huber": lambda x: huber(x) @ W,
    "where, hinge": lambda x: jnp.where(x < 1.0, 1.0 - x, 0.0) @ W,
    "where, softplus": lambda x: my_softplus(x) @ W,
    "where, guarded log": lambda x: log_guarded(x) @ W,
    "where, mask of data": lambda x: jnp.where(jnp.asarray(W) > 0, x, 0.0).sum(),
    "product with an indicator": lambda x: (x * (x > 0)) @ W,
    "select": lambda x: jnp.select([x < 0, x < 1], [0 * x, x**2], 2 * x - 1) @ W,
    "piecewise": lambda x: jnp.piecewise(x, [x < 0], [lambda x: -x, lambda x: 2 * x]) @ W,
    "cond": lambda x: lax.cond(x[0] > 0, lambda: x[0] * x[1], lambda: 3.0 * x[0]),
    "vmap of cond": lambda x: (
        jax.vmap(lambda x: lax.cond(x > 0.2, lambda: 2 * x - 0.2, lambda: x))(x) @ W
    ),
    "sign times x": lambda x: (jnp.sign(x) * x) @ W,
    "angle modulo a turn": lambda x: jnp.sin(3 * x % (2 * jnp.pi)) @ W,
    "triangle wave": lambda x: jnp.abs((x % 2.0) - 1.0) @ W,
    "floor with matching weights": lambda x: read_line(x) @ W,
    "in a scan carry": lambda x: lax.scan(lambda c, x: (leaky(c + x), c), 0.5, x)[0],
    "in scan ys": lambda x: lax.scan(lambda c, x: (c + x, huber(c)), 0.0, x)[1] @ W,
    "in a fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.maximum(c, x[i]), -1.0),
    "checkpoint": lambda x: jax.checkpoint(leaky)(x) @ W,
    "own rule, jvp": lambda x: stable_square(x) @ W,
    "slope of a smooth function": lambda x: jax.grad(lambda x: jnp.sum(x**3))(x) @ W,
    "slope of softplus": lambda x: jax.vmap(jax.grad(jax.nn.softplus))(x) @ W,
    "slope of a huber loss": lambda x: jax.vmap(jax.grad(optax.huber_loss))(x) @ W,
    "unused jump": lambda x: (x + 0.0 * W, jnp.sign(x))[0] @ W,
    "held without effect": lambda x: x @ W + stop_gradient(x @ W) - stop_gradient(x @ W),
}

SMOOTH |= soundness_missed.SMOOTH
SMOOTH |= soundness_alarms.SMOOTH
SOUND |= {n: Program(f, 0.3, None, (), n=256) for n, f in soundness_alarms.SOUND.items()}
BIASED |= {n: Program(f, 0.3, "biased", ("'x'",)) for n, f in soundness_alarms.BIASED.items()}
for _i, (_name, _f) in enumerate(SMOOTH.items()):
    _program = Program(functools.partial(three, _f), 0.3, None, ())
    SOUND[f"smooth: {_name}"] = _program._replace(place=(False, _i))


@biased()
def straight_through_rule_in_reverse(t):
    return binarize(ppl.sample("x", dist.Normal(t, 0.3), PATHWISE))


@sound
def own_rule_in_reverse(t):
    return my_relu(ppl.sample("x", dist.Normal(t, 1.0), PATHWISE))


# --- programs that are biased -------------------------------------------------------------------


@biased("<")
def uniform_below_theta(t):
    u = ppl.sample("u", dist.Uniform(0.0, 1.0), PATHWISE)
    return jnp.where(u < t, 1.0, 0.0)


for _e in (PATHWISE, SCORE, ppl.mvd()):

    def below_theta(t, e=_e):
        return (ppl.sample("x", dist.Normal(0.0, 1.0), e) < t) * 1.0

    BIASED[f"below theta, {_e.name}"] = Program(below_theta, 0.3, "biased", ("<",))


@biased(">", exact=lambda t: ndtr((2 * t - 0.5) / 1.0))
def score_of_a_draw_above_a_moving_threshold(t):
    return (ppl.sample("x", dist.Normal(t, 1.0), SCORE) > 0.5 - t) * 1.0


@biased("searchsorted", at=[0.2, -0.1, 0.4])
def inverse_cdf_of_a_categorical(t):
    u = ppl.sample("u", dist.Uniform(0.0, 1.0))
    k = jnp.searchsorted(jnp.cumsum(jax.nn.softmax(t)), u)
    return jnp.asarray(W)[jnp.minimum(k, 2)]


@biased("argmax", at=[0.2, -0.1, 0.4])
def gumbel_max(t):
    g = ppl.sample("g", dist.Gumbel(jnp.zeros(3), 1.0), PATHWISE)
    return jnp.asarray(W)[jnp.argmax(t + g)]


@biased("stop_gradient", at=[0.2, -0.1, 0.4])
def gumbel_softmax_straight_through(t):
    g = ppl.sample("g", dist.Gumbel(jnp.zeros(3), 1.0), PATHWISE)
    soft = jax.nn.softmax((t + g) / 3.0)
    hard = jax.nn.one_hot(jnp.argmax(soft), 3)
    return (hard + soft - stop_gradient(soft)) @ W


@biased("bernoulli")
def raw_bernoulli(t):
    seed = ppl.sample("seed", dist.DiscreteUniform(0, 2**30), SCORE)
    return jax.random.bernoulli(jax.random.key(seed), t) * 1.0


@biased("argmax", at=[0.2, -0.1, 0.4])
def raw_categorical(t):
    seed = ppl.sample("seed", dist.DiscreteUniform(0, 2**30), SCORE)
    return jnp.asarray(W)[jax.random.categorical(jax.random.key(seed), t)]


@biased()
def two_levels_of_functions(t):
    @jax.jit
    def outer(x):
        return jax.checkpoint(lambda x: jax.jit(jnp.floor)(x) + x)(x)

    return outer(ppl.sample("x", dist.Normal(t, 1.0), PATHWISE))


@biased()
def draws_under_vmap(t):
    def one(w):
        return jnp.where(ppl.sample("x", dist.Normal(w * t, 1.0), PATHWISE) > 0.2, 1.0, w)

    return jax.vmap(one)(jnp.asarray(W)).sum()


@biased()
def draws_in_a_scan(t):
    def step(c, _):
        x = ppl.sample("x", dist.Normal(c, 0.5), PATHWISE)
        return jnp.where(x > 0.4, 0.5 * x, x), None

    return lax.scan(step, t, length=3)[0]


@biased()
def number_of_draws_in_a_scan(t):
    def step(c, _):
        x = ppl.sample("x", dist.Normal(t, 0.5), PATHWISE)
        return c + (x > 0.0), None

    return lax.scan(step, 0.0, length=3)[0]


@biased()
def probability_that_jumps(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    k = ppl.sample("k", dist.Bernoulli(jnp.where(x > 0, 0.8, 0.2)), ppl.enum())
    return k * 1.0


@biased()
def probability_that_jumps_by_score(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    k = ppl.sample("k", dist.Bernoulli(jnp.where(x > 0, 0.7, 0.4)), SCORE)
    return k * 2.0


@biased()
def probability_that_jumps_by_mvd(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    return ppl.sample("k", dist.Bernoulli(0.3 + 0.4 * jnp.heaviside(x, 0.0)), ppl.mvd()) * 1.0


@biased()
def logits_of_the_winner(t):
    x = ppl.sample("x", dist.Normal(t * jnp.asarray(W), 1.0), PATHWISE)
    k = ppl.sample("k", dist.Categorical(logits=jax.nn.one_hot(jnp.argmax(x), 3)), ppl.enum())
    return jnp.asarray(W)[k]


@biased()
def mean_that_jumps(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    return ppl.sample("y", dist.Normal(jnp.sign(x), 1.0), PATHWISE)


@biased()
def scale_that_jumps(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    return ppl.sample("y", dist.Normal(0.0, 1.0 + (x > 0)), SCORE) ** 2


@biased()
def jump_before_a_second_jump(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    y = ppl.sample("y", dist.Normal(jnp.floor(x), 0.5), SCORE)
    return (y > 0) * 1.0


@biased()
def integer_of_an_exponential(t):
    return jnp.floor(ppl.sample("x", dist.Exponential(t), PATHWISE))


@biased(at=0.7, exact=lambda t: gammaincc(t, 1.0))
def tail_of_a_gamma(t):
    return (ppl.sample("x", dist.Gamma(t, 1.0), PATHWISE) > 1.0) * 1.0


@biased(at=0.7)
def half_of_a_kumaraswamy(t):
    return (ppl.sample("x", dist.Kumaraswamy(t, 1.2), PATHWISE) > 0.5) * 1.0


@biased()
def largest_of_a_multivariate_normal(t):
    d = dist.MultivariateNormal(t * jnp.asarray(W), jnp.eye(3) + 0.5)
    return jnp.argmax(ppl.sample("x", d, PATHWISE)) * 1.0


@biased()
def window_of_a_lognormal(t):
    x = ppl.sample("x", dist.LogNormal(t, 0.5), PATHWISE)
    return jnp.where(x < 2.0, x, 0.0)


@biased()
def ends_of_a_uniform(t):
    x = ppl.sample("x", dist.Uniform(t, 2.0), PATHWISE)
    return jnp.where(x > 1.0, 1.0, 0.0)


@biased()
def one_of_two_sites(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    y = ppl.sample("y", dist.Normal(t, 1.0), SCORE)
    return (x > y) * 1.0


@biased(at={"a": 0.3, "b": [0.5, -0.4]})
def threshold_network(p):
    x = ppl.sample("x", dist.Normal(p["a"], 1.0), PATHWISE)
    return jnp.sum(p["b"] * jnp.where(x * p["b"] + 0.1 > 0, 1.0, 0.0))


@biased("'x'", args=(np.array([-0.5, 0.2, 1.0]),))
def accuracy_on_data(t, data):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    return jnp.mean(data > x)


@ppl.gen
def steps(scale):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("y", dist.Normal(jnp.where(z > 0, 1.0, -1.0), scale))


@ppl.gen
def lines(scale):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("y", dist.Normal(z, scale))


@ppl.gen
def guide(phi):
    return ppl.sample("z", dist.Normal(phi[0], jnp.exp(phi[1])), PATHWISE)


PHI = [0.3, -0.4]
Y = {"y": 0.8}


@biased("'z'", at=PHI)
def elbo_of_a_threshold(phi):
    return ppl.elbo(steps(1.0), guide(phi), Y)


@biased("'z'", at=PHI)
def elbo_of_a_threshold_by_hand(phi):
    q = guide(phi).simulate()
    return steps(1.0).log_density(q.choices | Y) - q.log_density


@biased("'z'", at=PHI)
def iwelbo_of_a_threshold(phi):
    return ppl.iwelbo(steps(1.0), guide(phi), Y, 3)


@biased("'z'", at=PHI)
def elbo_with_one_threshold_among_smooth_terms(phi):
    smooth = ppl.elbo(lines(1.0), guide(phi), Y)
    return smooth + 0.3 * jnp.floor(guide(phi).simulate()["z"])


@biased("'z'", at=PHI)
def elbo_with_held_weights(phi):
    w = jax.vmap(lambda: ppl.elbo(lines(1.0), guide(phi), Y), axis_size=3)()
    return stop_gradient(jax.nn.softmax(w)) @ w


@biased("'z'", at=PHI, like=lambda phi: ppl.elbo(lines(1.0), guide(phi), Y), n=16384)
def elbo_without_the_entropy(phi):
    q = guide(phi).simulate()
    held = guide([phi[0], stop_gradient(phi[1])]).log_density(stop_gradient(q.choices))
    return lines(1.0).log_density(q.choices | Y) - held


@biased("'z'", at=PHI)
def held_trace(phi):
    q = stop_gradient(guide(phi).simulate().choices)
    return lines(1.0).log_density(q | Y)


@biased("'z'", at=PHI)
def retval_of_a_nested_program(phi):
    @ppl.gen
    def inner():
        return jnp.sign(ppl.sample("in", guide(phi)))

    @ppl.gen
    def outer():
        return ppl.sample("out", inner()) * 2.0

    return outer().simulate().retval


@biased("'z'", at=PHI)
def density_at_a_rounded_draw(phi):
    z = guide(phi).simulate()["z"]
    return dist.Normal(0.0, 1.0).log_prob(jnp.round(z))


@biased("'z'", at=PHI)
def density_of_a_program_at_a_rounded_draw(phi):
    z = guide(phi).simulate()["z"]
    return lines(1.0).log_density({"z": jnp.round(z)} | Y)


@biased("'z'", at=PHI)
def constraint_that_jumps(phi):
    z = guide(phi).simulate()["z"]
    return lines(1.0).generate({"y": jnp.floor(z), "z": 0.2})[1]


@biased("'z'", at=PHI)
def marginal_with_a_jumping_density(phi):
    @ppl.gen
    def auxiliary():
        u = ppl.sample("u", dist.Bernoulli(0.3))
        ppl.sample("y", dist.Normal(u * 1.0, 1.0))

    z = guide(phi).simulate()["z"]
    p = ppl.marginal(auxiliary(), "y", ppl.enumeration())
    return p.log_density({"y": jnp.floor(z)})


@biased("'z'", at=PHI)
def marginal_proposed_by_a_jump(phi):
    p = ppl.marginal(steps(1.0), "y", ppl.importance(2, guide(phi)))
    return p.log_density(Y)


@biased("'z'", at=PHI)
def posterior_that_is_rounded(phi):
    q = ppl.normalize(lines(1.0), Y, ppl.importance(1, guide(phi)))
    return jnp.round(q.simulate()["z"])


@biased("'z'", at=PHI)
def expectation_with_a_jump(phi):
    @ppl.expectation
    def inner():
        return jnp.where(guide(phi).simulate()["z"] > 0, 1.0, 0.0)

    return 2.0 * inner() + phi[0]


@biased()
def expectation_of_a_jumping_argument(t):
    @ppl.expectation
    def inner(m):
        return 2.0 * ppl.sample("y", dist.Normal(m, 1.0), PATHWISE)

    return inner(jnp.round(ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)))


@biased("stop_gradient")
def held_parameter(t):
    return stop_gradient(t) * ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)


@biased("stop_gradient")
def held_in_the_mean(t):
    return ppl.sample("x", dist.Normal(t + stop_gradient(t), 1.0), PATHWISE) ** 2


@biased("stop_gradient")
def held_in_a_score(t):
    return ppl.sample("x", dist.Normal(0.5 * t + 0.5 * stop_gradient(t), 1.0), SCORE) ** 2


@biased("stop_gradient")
def held_factor_of_a_score(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), SCORE)
    return stop_gradient(t) * jnp.sin(x)


@biased("stop_gradient")
def held_factor_of_an_enumerated_choice(t):
    k = ppl.sample("k", dist.Bernoulli(t), ppl.enum())
    return k * stop_gradient(jnp.exp(t))


# --- estimators that do not support the site ----------------------------------------------------


@unsupported("'x'")
def score_of_a_uniform(t):
    return ppl.sample("x", dist.Uniform(0.0, t), SCORE)


@unsupported("'x'")
def score_of_a_moving_window(t):
    return ppl.sample("x", dist.Uniform(t, t + 1.0), SCORE) ** 2


@unsupported("'x'")
def score_of_uniforms(t):
    d = dist.Uniform(0.0, t * jnp.ones(2)).to_event(1)
    return jnp.sum(ppl.sample("x", d, SCORE) ** 2)


@unsupported("'x'")
def score_of_a_truncated_normal(t):
    return ppl.sample("x", dist.TruncatedNormal(0.0, 1.0, low=t), SCORE)


@unsupported("'x'")
def score_of_a_doubly_truncated_normal(t):
    return ppl.sample("x", dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=t), SCORE)


@unsupported("'x'")
def score_of_a_pareto(t):
    return jnp.minimum(ppl.sample("x", dist.Pareto(t, 3.0), SCORE), 2.0)


@unsupported("'x'")
def score_of_a_shifted_exponential(t):
    shift = dist.transforms.AffineTransform(t, 1.0)
    d = dist.TransformedDistribution(dist.Exponential(1.0), shift)
    return jnp.sin(ppl.sample("x", d, SCORE))


@unsupported("'x'")
def score_of_a_scaled_beta(t):
    scale = dist.transforms.AffineTransform(0.0, t)
    d = dist.TransformedDistribution(dist.Beta(1.5, 1.0), scale)
    return ppl.sample("x", d, SCORE)


@unsupported("'x'")
def score_of_a_log_uniform(t):
    return ppl.sample("x", dist.LogUniform(0.1, t), SCORE)


@unsupported("'y'")
def score_of_a_support_that_follows_a_draw(t):
    x = ppl.sample("x", dist.LogNormal(t, 0.3), PATHWISE)
    return ppl.sample("y", dist.Uniform(0.0, x), SCORE)


@unsupported("'x'")
def score_of_a_uniform_in_a_scan(t):
    def step(c, _):
        return c + ppl.sample("x", dist.Uniform(0.0, t), SCORE), None

    return lax.scan(step, 0.0, length=2)[0]


@unsupported("'x'", samples=2)
def score_of_a_uniform_with_a_baseline(t):
    return ppl.sample("x", dist.Uniform(0.0, t), ppl.reinforce("loo")) ** 2


@ppl.expectation
def heads(t):
    return ppl.sample("k", dist.Bernoulli(t), SCORE) + 0.5


@unsupported("expectation", "log", exact=lambda t: np.log(t + 0.5))
def log_of_an_estimate(t):
    return jnp.log(heads(t))


@unsupported("expectation", "pow", exact=lambda t: (t + 0.5) ** 2)
def square_of_an_estimate(t):
    return heads(t) ** 2


@unsupported("expectation", "mul", exact=lambda t: (t + 0.5) ** 2)
def product_of_an_estimate_with_itself(t):
    y = heads(t)
    return y * y


@unsupported("expectation", "div", exact=lambda t: 1 / (t + 0.5))
def ratio_of_estimates(t):
    return (1.0 + 0.0 * heads(t)) / heads(t)


@unsupported("expectation", "logaddexp", exact=lambda t: np.logaddexp(t + 0.5, 1.0))
def logsumexp_of_estimates(t):
    return jnp.logaddexp(heads(t), 1.0)


@unsupported("expectation", "exp", exact=lambda t: 2 * np.exp(t + 0.5))
def exp_of_estimates_under_vmap(t):
    return jnp.exp(jax.vmap(lambda: heads(t), axis_size=2)()).sum()


@unsupported("expectation", "log", exact=lambda t: np.log(2.0 + t**2))
def log_of_a_pathwise_estimate(t):
    @ppl.expectation
    def inner():
        return ppl.sample("x", dist.Normal(t, 1.0), PATHWISE) ** 2 + 1.0

    return jnp.log(inner())


@unsupported("expectation", "sample", exact=lambda t: ndtr((t + 0.5 - 1.0) / 0.3))
def estimate_as_a_mean(t):
    y = ppl.sample("y", dist.Normal(heads(t), 0.3), SCORE)
    return (y > 1.0) * 1.0


@jax.tree_util.register_static
class Own(ppl.Baseline):
    """A baseline that is the payoff itself: it removes the whole score term."""

    def accumulate(self, log_prob):
        return {"log_prob": log_prob}

    def finish(self, totals, payoff, context):
        return -0.5 * payoff * (ppl.magic_box(totals["log_prob"]) - 1.0)


@unsupported("'k'")
def baseline_of_the_own_draw(t):
    k = ppl.sample("k", dist.Bernoulli(t), ppl.reinforce(Own()))
    return 1.0 + 2.0 * k


# --- programs that are sound --------------------------------------------------------------------


for _e in (SCORE, ppl.mvd()):

    def jump(t, e=_e):
        x = ppl.sample("x", dist.Normal(t, 1.0), e)
        return jnp.where(x > 0.2, 1.0 + jnp.floor(x), jnp.sign(x))

    def expected(t):
        return (
            ndtr(t - 0.2)
            + ndtr(t - np.arange(1.0, 9.0)).sum()
            - ndtr(-t)
            + (ndtr(t) - ndtr(t - 0.2))
        )

    SOUND[f"jump, {_e.name}"] = Program(jump, 0.3, None, (), exact=expected)


@sound(exact=lambda t: ndtr(t) ** 2)
def product_of_thresholds_with_two_estimators(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), SCORE)
    y = ppl.sample("y", dist.Normal(t, 1.0), ppl.mvd())
    return ((x > 0) & (y > 0)) * 1.0


@sound(exact=lambda t: t + 2 * (1 - t))
def cond_on_an_enumerated_choice(t):
    k = ppl.sample("k", dist.Bernoulli(t), ppl.enum())
    return lax.cond(k == 1, lambda: 1.0, lambda: 2.0)


@sound(at=[0.2, -0.1, 0.4])
def index_by_an_enumerated_choice(t):
    k = ppl.sample("k", dist.Categorical(logits=t), ppl.enum())
    return jnp.asarray(TABLE)[k] + (k % 2) * jnp.sign(k - 1) * t[0]


@sound
def switch_on_a_scored_choice(t):
    k = ppl.sample("k", dist.Categorical(jnp.array([0.2, 0.5, 0.3])), SCORE)
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    return lax.switch(k, [lambda: x, lambda: x**2, lambda: 1.0])


@sound(exact=lambda t: 2 * t)
def automatic_choice_of_small_support(t):
    k = ppl.sample("k", dist.Binomial(2, t))
    return jnp.where(k > 0, k * 1.0, 0.0)


@sound(exact=lambda t: 1 - t)
def loop_up_to_a_scored_count(t):
    k = ppl.sample("k", dist.Geometric(t), SCORE)
    return lax.while_loop(lambda c: c < jnp.minimum(k, 1), lambda c: c + 1, 0) * 1.0


@sound
def constant_coin_by_a_uniform(t):
    u = ppl.sample("u", dist.Uniform(0.0, 1.0), PATHWISE)
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    return jnp.where(u < 0.5, x, x**2)


@sound
def pathwise_and_scored_side_by_side(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    k = ppl.sample("k", dist.Normal(0.0, 1.0), SCORE)
    return jnp.where(k > 0, x**2, 2.0 * x)


@sound
def branch_on_the_parameter_alone(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    return lax.cond(t > 0, lambda: x**2, lambda: -x)


@sound(args=(np.array([-0.5, 0.2, 1.0]),))
def comparison_of_data(t, data):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    return jnp.sum(jnp.where(data > 0, x * data, jnp.floor(data)))


@sound(args=(1,))
def index_by_data(t, label):
    x = ppl.sample("x", dist.Normal(t * jnp.asarray(W), 1.0), PATHWISE)
    return jax.nn.log_softmax(x)[label] + jax.nn.one_hot(label, 3) @ x


@sound(args=(2.0,))
def padded_sequence(t, length):
    def step(c, i):
        x = ppl.sample("x", dist.Normal(t * c, 0.5), PATHWISE)
        return jnp.where(i < length, x, c), None

    return lax.scan(step, 1.0, jnp.arange(3.0))[0] ** 2


@sound(at=PHI)
def elbo(phi):
    return ppl.elbo(lines(1.0), guide(phi), Y)


@sound(at=PHI)
def iwelbo(phi):
    return ppl.iwelbo(lines(1.0), guide(phi), Y, 3)


@sound(at=PHI)
def renyi(phi):
    return ppl.renyi(lines(1.0), guide(phi), Y, 0.5, 3)


@sound(at=PHI, h=0.02)
def chi2(phi):
    return ppl.chi2(lines(1.0), guide(phi), Y, 3)


@sound(at=PHI, like=elbo)
def stl(phi):
    return ppl.stl(lines(1.0), guide(phi), Y)


@sound(at=PHI, like=iwelbo)
def dreg(phi):
    return ppl.dreg(lines(1.0), guide(phi), Y, 3)


@sound(at=0.9, like=lambda s: ppl.iwelbo(lines(s), guide(PHI), Y, 3))
def wake_theta(s):
    return ppl.wake_theta(lines(s), guide(PHI), Y, 3)


def _sleep(phi):
    def one():
        z = ppl.sample("z", dist.Normal(PHI[0], math.exp(PHI[1])))
        p = lines(1.0).log_density({"z": z} | Y)
        return guide(phi).log_density({"z": z}), p - guide(PHI).log_density({"z": z})

    log_q, log_w = jax.vmap(one, axis_size=3)()
    return jax.nn.softmax(log_w) @ log_q


@sound(at=PHI, like=_sleep)
def wake_phi(phi):
    return ppl.wake_phi(lines(1.0), guide(phi), Y, 3)


@sound(at=PHI)
def forward_kl(phi):
    return ppl.forward_kl(ppl.normalize(lines(1.0), Y, ppl.importance(2)), guide(phi))


@sound(at=PHI, like=elbo)
def sticking_the_landing_by_hand(phi):
    q = guide(phi).simulate()
    return lines(1.0).log_density(q.choices | Y) - ppl.detach(guide(phi)).log_density(q.choices)


@sound(gradient=0.3)
def detached_draw(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    return ppl.detach(x) * x


@sound(at=PHI)
def elbo_with_a_scored_threshold(phi):
    g = ppl.with_estimators(guide(phi), {"z": ppl.mvd()})
    return ppl.elbo(steps(1.0), g, Y)


@sound(at=PHI)
def hierarchical(phi):
    @ppl.gen
    def wide():
        u = ppl.sample("u", dist.Uniform(-1.0, 1.0))
        ppl.sample("z", dist.Normal(phi[0] + u, jnp.exp(phi[1])))

    return ppl.elbo(lines(1.0), ppl.marginal(wide(), "z", ppl.importance(2)), Y)


@sound(at=PHI)
def likelihood_of_a_mixture(phi):
    @ppl.gen
    def mixture():
        k = ppl.sample("k", dist.Categorical(jnp.array([0.3, 0.7])))
        ppl.sample("y", dist.Normal(jnp.where(k == 1, phi[0], -1.0), jnp.exp(phi[1])))

    y = ppl.sample("data", dist.Normal(phi[0], 1.0), PATHWISE)
    return ppl.marginal(mixture(), "y", ppl.enumeration()).log_density({"y": y})


@sound
def posterior_by_enumeration(t):
    @ppl.gen
    def mixture():
        k = ppl.sample("k", dist.Bernoulli(0.4))
        ppl.sample("y", dist.Normal(k * t, 1.0))

    return ppl.normalize(mixture(), {"y": 0.8}, ppl.enumeration()).log_density({"k": 1})


@sound(exact=lambda t: np.log(t + 0.5))
def log_of_an_enumerated_expectation(t):
    @ppl.expectation
    def inner():
        return ppl.sample("k", dist.Bernoulli(t), ppl.enum()) + 0.5

    return jnp.log(inner())


@sound(exact=lambda t: (2 * t + 0.5) ** 2)
def square_of_an_expectation_enumerated_unasked(t):
    @ppl.expectation
    def inner():
        return 0.5 + jnp.sum(ppl.sample("k", dist.Bernoulli(t * jnp.ones(2))))

    return inner() ** 2


@sound(exact=lambda t: 2 * (t + 0.5) + t)
def linear_in_an_estimate(t):
    return 2.0 * heads(t) + t


@sound(exact=lambda t: t * (t + 0.5))
def estimate_times_a_draw(t):
    return ppl.sample("x", dist.Normal(t, 1.0), PATHWISE) * heads(t)


@sound(exact=lambda t: (t + 0.5) / 2 + (t + 1.0) / 2)
def mean_of_estimates(t):
    return jax.vmap(heads)(t + jnp.array([0.0, 0.5])).mean()


@sound(args=(1.5,), exact=lambda t: -t)
def learned_baseline_of_held_features(t, b):
    context = ppl.sample("c", dist.Normal(t, 1.0), PATHWISE)
    estimator = ppl.reinforce(ppl.learned(b * stop_gradient(jnp.tanh(context))))
    return -1.0 * ppl.sample("k", dist.Bernoulli(t), estimator)


@sound(exact=lambda t: -t, samples=2)
def leave_one_out(t):
    return -1.0 * ppl.sample("k", dist.Bernoulli(t), ppl.reinforce("loo"))


@sound(exact=lambda t: t**2)
def baseline_that_jumps_upstream(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    k = ppl.sample("k", dist.Bernoulli(t), ppl.reinforce(jnp.where(x > 0, 0.5, -0.5)))
    return x * k


@sound(exact=lambda t: t**2 / 3)
def pathwise_uniform_of_moving_end(t):
    return ppl.sample("x", dist.Uniform(0.0, t), PATHWISE) ** 2


@sound(exact=lambda t: 0.25 / t + 0.5)
def mvd_of_the_ends_of_a_uniform(t):
    x = ppl.sample("x", dist.Uniform(0.0, t), ppl.mvd())
    return 1.5 - (x > 0.25)


@sound
def pathwise_pareto(t):
    return jnp.minimum(ppl.sample("x", dist.Pareto(t, 3.0), PATHWISE), 2.0)


@sound
def pathwise_truncated_normal(t):
    return ppl.sample("x", dist.TruncatedNormal(t, 1.0, low=t - 1.0, high=2.0), PATHWISE) ** 2


@sound(exact=lambda t: t)
def score_of_a_fixed_window(t):
    return ppl.sample("x", dist.Beta(t, 1.0 - t), SCORE)


@sound
def density_with_its_support(t):
    x = ppl.sample("x", dist.LogNormal(t, 0.5), PATHWISE)
    gamma = dist.Gamma(2.0, 1.0, validate_args=True).log_prob(x)
    return gamma + dist.Uniform(0.0, 99.0).log_prob(x) + dist.HalfNormal(2.0).log_prob(x)


@sound
def log_prob_of_kinked_densities(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    return dist.Laplace(0.2, 1.0).log_prob(x) + dist.AsymmetricLaplace(0.1).log_prob(x)


@sound
def log_prob_of_counts(t):
    rate = jnp.exp(ppl.sample("x", dist.Normal(t, 0.5), PATHWISE))
    counts = dist.NegativeBinomial2(rate, 2.0).log_prob(3) + dist.Poisson(rate).log_prob(2)
    return counts + dist.ZeroInflatedPoisson(0.2, rate).log_prob(0)


@sound
def log_prob_of_bernoulli_and_categorical(t):
    x = ppl.sample("x", dist.Normal(t * jnp.asarray(W), 1.0), PATHWISE)
    flips = dist.Bernoulli(logits=x).log_prob(jnp.array([0, 1, 1])).sum()
    return flips + dist.Categorical(logits=x).log_prob(1)


@sound
def other_densities(t):
    x = ppl.sample("x", dist.Normal(t, 0.7), PATHWISE)
    truncated = dist.TruncatedNormal(0.0, 1.0, low=-9.0, high=9.0).log_prob(x)
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(EDGES[:2], 1.0))
    return truncated + mixture.log_prob(x) + dist.StudentT(3.0).log_prob(x)


IMAGE = np.cos(np.arange(25.0)).reshape(5, 5)


def bilinear(image, rows, columns):
    """Zero outside of the image, as in a spatial transformer."""
    i, j = jnp.floor(rows), jnp.floor(columns)
    total = 0.0
    for a in (0, 1):
        for b in (0, 1):
            r, c = i + a, j + b
            inside = (r >= 0) & (r < 5) & (c >= 0) & (c < 5)
            at = image[jnp.clip(r, 0, 4).astype(int), jnp.clip(c, 0, 4).astype(int)]
            weight = (1 - jnp.abs(rows - r)) * (1 - jnp.abs(columns - c))
            total += jnp.where(inside, at * weight, 0.0)
    return total


def glimpse(where):
    grid = jnp.linspace(-1.0, 1.0, 3)
    y, x = where[0] * grid[:, None] + where[1], where[0] * grid + where[2]
    rows, columns = jnp.broadcast_arrays(2.0 * (y + 1.0), 2.0 * (x + 1.0))
    return rows, columns


@sound(at=[0.8, 0.2, -0.3])
def spatial_transformer(where):
    z = ppl.sample("z", dist.Normal(where, 0.3), PATHWISE)
    return jnp.sum(bilinear(jnp.asarray(IMAGE), *glimpse(z)) ** 2)


@sound(at=[0.8, 0.2, -0.3])
def spatial_transformer_clamped(where):
    z = ppl.sample("z", dist.Normal(where, 0.3), PATHWISE)
    rows, columns = glimpse(z)
    i, j = jnp.clip(jnp.floor(rows), 0, 3), jnp.clip(jnp.floor(columns), 0, 3)
    u, v = jnp.clip(rows, 0, 4) - i, jnp.clip(columns, 0, 4) - j
    i, j, image = i.astype(int), j.astype(int), jnp.asarray(IMAGE)
    top = image[i, j] * (1 - v) + image[i, j + 1] * v
    bottom = image[i + 1, j] * (1 - v) + image[i + 1, j + 1] * v
    return jnp.sum((top * (1 - u) + bottom * u) ** 2)


@sound(at=[0.8, 0.2, -0.3])
def spatial_transformer_of_jax(where):
    z = ppl.sample("z", dist.Normal(where, 0.3), PATHWISE)
    seen = jax.scipy.ndimage.map_coordinates(jnp.asarray(IMAGE), glimpse(z), 1, mode="nearest")
    return jnp.sum(seen**2)


@sound(at=[0.8, 0.2, -0.3])
def vectors_of_a_rotation(t):
    x = ppl.sample("x", dist.Normal(t, 0.3), PATHWISE)
    angle = jnp.mod(x[0], 2 * jnp.pi)
    return jnp.cos(angle) * x[1] - jnp.sin(angle) * x[2]


@sound
def reflected_walk(t):
    def step(c, _):
        x = ppl.sample("x", dist.Normal(c, 0.5), PATHWISE)
        return jnp.where(x < 0, -x, x), x

    c, xs = lax.scan(step, t, length=3)
    return c + jax.nn.relu(xs).sum()


@sound
def two_layers_with_dropout(t):
    keep = ppl.sample("keep", dist.Bernoulli(0.7 * jnp.ones(3)), SCORE)
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)
    hidden = jnp.where(keep == 1, jax.nn.relu(x * W) / 0.7, 0.0)
    return jax.nn.leaky_relu(hidden @ W - 0.5)


# --- the tests ----------------------------------------------------------------------------------


Sums = Callable[[jax.Array], Any]
"""From a key: sums of the gradient, of its difference from the right one, and of its square."""


def moments(program: Program) -> Sums:
    if program.place is not None:
        jumps, i = program.place
        return functools.partial(family(jumps), i=i)
    params = parameters(program)
    flat, unravel = ravel_pytree(params)
    objective = ppl.expectation(program.f)
    other = program.like and ppl.expectation(program.like)
    steps = program.h * np.kron(STEPS[:, None], np.eye(flat.size))

    def values(key, at):
        return (other or objective).value(key, unravel(at), *program.args)

    def estimate(key, at):
        at = unravel(at)
        value, grad = objective.value_and_grad(key, at, *program.args, samples=program.samples)
        return value, ravel_pytree(grad)[0]

    def one(key):
        if program.gradient is not None:
            grad, right = estimate(key, flat)[1], jnp.asarray(program.gradient)
        elif program.exact is not None:
            grad = estimate(key, flat)[1]
            right = SLOPE @ [program.exact(program.theta + s) for s in steps[:, 0]] / program.h
        elif program.like is not None:
            grad = estimate(key, flat)[1]
            v = jax.vmap(lambda at: values(key, at))(flat + steps)
            right = SLOPE @ v.reshape(4, -1) / program.h
        else:  # one run of the program for all places compiles in half the time
            v, grads = jax.vmap(lambda at: estimate(key, at))(
                flat + np.pad(steps, ((1, 0), (0, 0)))
            )
            grad, right = grads[0], SLOPE @ v[1:].reshape(4, -1) / program.h
        return grad, grad - right

    return compiled_sums(one, program.n)


def parameters(program: Program) -> Any:
    as_list = lambda a: isinstance(a, list)
    return jax.tree.map(lambda a: jnp.asarray(a, float), program.theta, is_leaf=as_list)


@functools.cache
def family(jumps: bool) -> Sums:
    """All functions of three draws as one objective, with their number as its data.

    In forward mode, in which a ``switch`` keeps nothing for later.
    """
    like = next(p for p in (BIASED if jumps else SOUND).values() if p.place is not None)
    functions = (JUMPS if jumps else SMOOTH).values()
    branches = [lambda x, f=f: jnp.asarray(f(x), float) for f in functions]
    measured = lambda x, i: lax.switch(i, branches, x)  # all at once: no case for the checker
    at_once = ppl.continuous(measured, "the bias is what is measured")
    objective = ppl.expectation(lambda t, i: three(lambda x: at_once(x, i), t))

    def one(key, i):
        at = lambda t: jax.jvp(lambda t: objective.surrogate(key, t, i), (t,), (1.0,))
        values, grads = jax.vmap(at)(0.3 + like.h * np.array([0.0, *STEPS]))
        return grads[:1], grads[:1] - SLOPE @ values[1:] / like.h

    return compiled_sums(one, like.n)


def compiled_sums(one: Callable[..., Any], n: int) -> Sums:
    @ztest.compiled
    def sums(key, **data):
        grad, off = jax.vmap(functools.partial(one, **data))(jax.random.split(key, n))
        return grad.sum(0), off.sum(0), (off**2).sum(0)

    return sums


def bias(sums: Sums, n: int, keys: Any) -> tuple[np.ndarray, ...]:
    """The mean difference, its standard error, and the scale of the gradient."""
    total = functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), map(sums, keys))
    n *= len(keys)
    grad, off, square = (np.asarray(s) / n for s in total)
    error = np.sqrt(np.maximum(square - off**2, 0.0) / n)
    return np.abs(off), error, np.abs(grad) + np.abs(grad - off)


def first_bias(program: Program) -> tuple[np.ndarray, ...]:
    return bias(moments(program), program.n, [jax.random.split(jax.random.key(1))[0]])


def known_by(program: Program) -> Program:
    """Without its place in a table, which others may take."""
    return program._replace(place=None)


def named(program: Program) -> str:
    return next(name for name, p in BIASED.items() if p is program)


PROGRAMS = [
    pytest.param(p, id=f"{'sound' if p.kind is None else p.kind}: {name}")
    for table in (BIASED, SOUND)
    for name, p in table.items()
]


@pytest.mark.filterwarnings("ignore::ppl.SoundnessWarning")
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_label_is_right(program: Program) -> None:
    if program.kind is not None:
        off, error, scale = labels.measured(
            named(program), known_by(program), lambda: first_bias(program)
        )
        assert np.any((off > 5 * error) & (off > 0.01 * scale)), (off, error, scale)
        return
    sums = moments(program)
    first, *more = jax.random.split(jax.random.key(1), 1 + ztest.MORE)

    def test() -> None:
        off, error, scale = bias(sums, program.n, [first])
        excess = lambda off, scale: np.maximum(off - 1e-3 * scale - 1e-9, 0.0)
        if not np.all(excess(off, scale) <= ztest.FIRST * error):  # nor with NaN
            off, error, scale = bias(sums, program.n, more)
            assert np.all(excess(off, scale) <= ztest.SECOND * error), (off, error, scale)

    which = getattr(sums, "keywords", {})  # of a family of programs
    claim = [which, program.n, ztest.FIRST, ztest.SECOND, ztest.MORE]
    kept.passed(sums, [first], claim, test)


def trace_the_gradient(program: Program, **options: Any) -> None:
    """Nothing runs: what is wrong shows while the gradient is traced."""
    objective = ppl.expectation(program.f, **options)
    params = parameters(program)
    grad = lambda key: objective.grad(key, params, *program.args, samples=program.samples)
    jax.eval_shape(grad, jax.random.key(0))


@pytest.mark.parametrize("program", PROGRAMS)
def test_verdict(program: Program) -> None:
    if program.kind is None:
        trace_the_gradient(program, strict=True)
        return
    objective = ppl.expectation(program.f)
    findings = objective.explain(parameters(program), *program.args).findings
    right = lambda f: f.kind == program.kind and all(text in f.message for text in program.texts)
    assert any(map(right, findings)), findings


# --- what is said, and when ---------------------------------------------------------------------


def marked(f: Callable[..., Any], mark: str) -> str:
    """``file:line:`` of the line of ``f`` that ends in a mark."""
    lines, start = inspect.getsourcelines(f)
    (i,) = (i for i, line in enumerate(lines) if line.rstrip().endswith(f"# {mark}"))
    return f"{inspect.getsourcefile(f)}:{start + i}:"


def a_threshold(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)  # site
    return jnp.where(x > 0.0, 1.0, 0.0)  # fault


def a_rounded_draw_in_a_scan(t):
    def step(c, _):
        x = ppl.sample("x", dist.Normal(c, 1.0), PATHWISE)  # site
        return jnp.round(x), None  # fault

    return lax.scan(step, t, length=2)[0]


def a_straight_through_rule(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)  # site
    return straight_through(x)  # fault


def a_held_draw(t):
    x = ppl.sample("x", dist.Normal(t, 1.0), PATHWISE)  # site
    return x * stop_gradient(x)  # fault


def a_moving_support(t):
    return ppl.sample("x", dist.Uniform(0.0, t), SCORE)  # site


@pytest.mark.parametrize(
    ("f", "texts"),
    [
        (a_threshold, ["'x'", ">", "ppl.reinforce()", "ppl.mvd()"]),
        (a_rounded_draw_in_a_scan, ["'x'", "round", "ppl.reinforce()", "ppl.mvd()"]),
        (a_straight_through_rule, ["'x'", "rule", "ppl.continuous("]),
        (a_held_draw, ["'x'", "stop_gradient", "ppl.detach("]),
        (a_moving_support, ["'x'", "ppl.mvd()", "ppl.reparam()"]),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)
def test_message(f: Callable[..., Any], texts: list[str]) -> None:
    """The addresses, both lines, and what to type; as a warning, and under ``strict``."""
    texts = [*texts, marked(f, "site")]
    if "# fault" in inspect.getsource(f):
        texts.append(marked(f, "fault"))
    with pytest.warns(ppl.SoundnessWarning) as caught:
        ppl.expectation(f).grad(jax.random.key(0), 0.3)
    with pytest.raises(ppl.SoundnessError) as strict:
        ppl.expectation(f, strict=True).grad(jax.random.key(0), 0.3)
    with ppl.strict(), pytest.raises(ppl.SoundnessError):
        ppl.expectation(f).grad(jax.random.key(0), 0.3)
    for messages in ([str(w.message) for w in caught], [str(strict.value)]):
        assert any(all(text in message for text in texts) for message in messages), messages


def test_a_value_is_never_refused() -> None:
    """What is biased is the gradient."""
    assert ppl.expectation(a_threshold, strict=True).value(jax.random.key(0), 0.3) in (0.0, 1.0)


def test_data_are_not_differentiated() -> None:
    """The same program, biased in its first argument only."""
    f = lambda t, m: (
        m * ppl.sample("x", dist.Normal(m, 1.0), PATHWISE)
        + (ppl.sample("y", dist.Normal(t, 1.0), PATHWISE) > 0.0)
    )
    objective = ppl.expectation(f, strict=True)
    objective.grad(jax.random.key(0), 0.3, 0.5, argnums=1)
    with pytest.raises(ppl.SoundnessError, match="'y'"):
        objective.grad(jax.random.key(0), 0.3, 0.5)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", ppl.SoundnessWarning)
    measured = lambda p: labels.measured(named(p), known_by(p), lambda: first_bias(p))
    labels.write({name: (known_by(p), measured(p)) for name, p in BIASED.items()})
