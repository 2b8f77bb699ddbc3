"""Every estimator under every JAX construct, against a second implementation in plain numpy.

Each construct is written twice: as a program with sites, and as straight-line numpy over the
draws (:class:`Reference`), which is differentiated by a complex step. Given the draws, the
gradients of pathwise and score estimators are then known exactly, and the laws of the draws are
checked by themselves; enumeration is exact; only measure-valued derivatives are compared by
z-tests (8,192 draws, float64, bound 4.75).
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import kept
import numpy as np
import pytest
import scipy.stats
from jax import lax

import ppl
from ppl import dist

N = 8192
BOUND = 4.75
TH = np.array([0.7, -0.4])
STEP = 1e-150

BERNOULLI = {
    "enum": ppl.enum(),
    "constant": ppl.reinforce(baseline=0.7),
    "loo": ppl.reinforce(baseline="loo"),
    "mvd": ppl.mvd(),
}
NORMAL = {
    "reparam": ppl.reparam(),
    "reinforce": ppl.reinforce(),
}


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


# --- the two implementations ---------------------------------------------------------------------


class Sites:
    """Draws by the library, with one estimator for all of them."""

    def __init__(self, kind, estimator):
        self.kind, self.estimator = kind, estimator

    def draw(self, name, u):
        if self.kind == "bernoulli":
            x = ppl.sample(name, dist.Bernoulli(logits=u), self.estimator)
            return x.astype(jnp.asarray(u).dtype)
        return ppl.sample(name, dist.Normal(u, jnp.exp(0.3 * u)), self.estimator)


class Reference:
    """Takes known draws (or known noise, for pathwise), keeps the score of each scope."""

    def __init__(self, kind, values, pathwise=False, score=False):
        self.kind, self.values, self.pathwise, self.score = kind, list(values), pathwise, score
        self.scopes, self.log_p = [], 0.0
        self.noise = []

    def draw(self, u):
        v = self.values.pop(0)
        u = u + np.zeros(v.shape)
        if self.pathwise:
            return u + np.exp(0.3 * u) * v
        if self.kind == "bernoulli":
            lp = -np.log1p(np.exp(np.where(v == 1, -u, u)))
        else:
            z = (v - u) * np.exp(-0.3 * u)
            self.noise.append(z.real)
            lp = -0.5 * z**2 - 0.3 * u - 0.5 * math.log(2 * math.pi)
        self.scopes[-1] = self.scopes[-1] + lp
        self.log_p = self.log_p + lp
        return v

    def scope(self, f):
        """The surrogate of a scope: f times a factor 1 whose derivative is the score."""
        self.scopes.append(0.0)
        payoff = f()
        score = self.scopes.pop()
        return payoff + np.real(payoff) * 1j * np.imag(score) if self.score else payoff


def derivative(f):
    """Value(s) and gradient of ``f(theta)`` at TH by a complex step."""
    outs = []
    for i in range(len(TH)):
        th = TH.astype(complex)
        th[i] += 1j * STEP
        outs.append(f(th))
    return np.real(outs[0]), np.stack([np.imag(o) / STEP for o in outs], axis=-1)


# --- the constructs ------------------------------------------------------------------------------

CONSTRUCTS = {}


def construct(n):
    """Register the pair (program, reference) that a function returns; it makes ``n`` draws."""

    def register(f):
        CONSTRUCTS[f.__name__] = (n, *f())
        return f

    return register


def _cat(*xs):
    return jnp.concatenate([jnp.ravel(x) for x in xs])


@construct(2)
def straight_line():
    def program(th, s):
        x = s.draw("x", th[0])
        y = s.draw("y", th[0] * x + th[1])
        return (1 + th[0] * x) * (y + 0.5) ** 2, _cat(x, y)

    def reference(th, r):
        x = r.draw(th[0])
        y = r.draw(th[0] * x + th[1])
        return (1 + th[0] * x) * (y + 0.5) ** 2

    return program, reference


def _wrapped(wrap):
    def make():
        def program(th, s):
            x = s.draw("x", th[0])

            def f(u, x):
                y = s.draw("y", u * x + 0.2)
                return y, y * u + x

            y, z = wrap(f)(th[1], x)
            return z**2 + th[0] * y, _cat(x, y)

        def reference(th, r):
            x = r.draw(th[0])
            y = r.draw(th[1] * x + 0.2)
            return (y * th[1] + x) ** 2 + th[0] * y

        return program, reference

    return make


def _custom_jvp_containing(f):
    g = jax.custom_jvp(f)
    g.defjvp(lambda primals, tangents: (g(*primals), jax.jvp(f, primals, tangents)[1]))
    return g


def _custom_vjp_containing(f):
    g = jax.custom_vjp(f)
    g.defvjp(lambda *a: (f(*a), a), lambda a, t: jax.vjp(f, *a)[1](t))
    return g


for _name, _wrap in {
    "jit": jax.jit,
    "jit_inline": functools.partial(jax.jit, inline=True),
    "checkpoint": jax.checkpoint,
    "custom_jvp_containing": _custom_jvp_containing,
    "custom_vjp_containing": _custom_vjp_containing,
}.items():
    CONSTRUCTS[_name] = (2, *_wrapped(_wrap)())


@jax.custom_jvp
def _tripled(x):  # its rule says 3 times the truth, so a lost rule shows
    return x**2


_tripled.defjvp(lambda p, t: (_tripled(p[0]), 6 * p[0] * t[0]))


@jax.custom_vjp
def _halved(x):
    return x**2


_halved.defvjp(lambda x: (x**2, x), lambda x, t: (x * t,))


def _rule_kept(f, factor):
    f = ppl.continuous(f, reason="its rule is meant, though it is not the derivative")

    def make():
        def program(th, s):
            x = s.draw("x", th[0])
            y = s.draw("y", f(th[1] + 0.3))
            return f(th[0] * x + 1.0) + y, _cat(x, y)

        def square(x):
            return np.real(x) ** 2 + 1j * factor * 2 * np.real(x) * np.imag(x)

        def reference(th, r):
            x = r.draw(th[0])
            y = r.draw(square(th[1] + 0.3))
            return square(th[0] * x + 1.0) + y

        return program, reference

    return make


CONSTRUCTS["custom_jvp_around"] = (2, *_rule_kept(_tripled, 3.0)())
CONSTRUCTS["custom_vjp_around"] = (2, *_rule_kept(_halved, 0.5)())


W = np.array([1.0, -0.5, 2.0, 0.3])


def _elements(n, run):
    """Independent draws with parameters th[0] * i + th[1] that ``run`` maps over."""

    def make():
        def program(th, s):
            xs = run(lambda u: s.draw("x", u), th[0] * jnp.arange(n) + th[1])
            return (xs @ W[:n] + th[0]) ** 2, xs

        def reference(th, r):
            return (sum(W[i] * r.draw(th[0] * i + th[1]) for i in range(n)) + th[0]) ** 2

        return program, reference

    return make


for _name, _n, _run in [
    ("vmap_mapped", 3, lambda f, us: jax.vmap(f)(us)),
    ("lax_map", 3, lambda f, us: lax.map(f, us)),
    ("lax_map_batched", 4, lambda f, us: lax.map(f, us, batch_size=2)),
    ("lax_map_remainder", 3, lambda f, us: lax.map(f, us, batch_size=2)),
]:
    CONSTRUCTS[_name] = (_n, *_elements(_n, _run)())


@construct(3)
def vmap_unmapped():
    def program(th, s):
        xs = jax.vmap(lambda: s.draw("x", th[0]), axis_size=3)()
        return th[1] * (xs @ W[:3] + th[0]) ** 2, xs

    def reference(th, r):
        return th[1] * (sum(W[i] * r.draw(th[0]) for i in range(3)) + th[0]) ** 2

    return program, reference


@construct(4)
def vmap_nested():
    def program(th, s):
        rows = jax.vmap(lambda u: jax.vmap(lambda: s.draw("x", u), axis_size=2)())(th)
        return (rows.ravel() @ W + th[0]) ** 2, _cat(rows)

    def reference(th, r):
        total = sum(W[2 * i + j] * r.draw(th[i]) for i in range(2) for j in range(2))
        return (total + th[0]) ** 2

    return program, reference


@construct(4)
def vmap_other_axes():
    def program(th, s):
        u = th[:, None] + jnp.array([0.0, 0.5])
        f = jax.vmap(lambda u: s.draw("x", u))
        xs = jax.vmap(f, in_axes=1, out_axes=1)(u)
        return (xs.ravel() @ W + th[0]) ** 2, _cat(xs)

    def reference(th, r):
        total = sum(W[2 * i + j] * r.draw(th[i] + 0.5 * j) for i in range(2) for j in range(2))
        return (total + th[0]) ** 2

    return program, reference


def _chain(c, x, th, t):
    return 0.5 * c + x * (1 + 0.1 * t) + 0.2 * th[1]


@construct(3)
def scan():
    def program(th, s):
        def step(c, t):
            x = s.draw("x", th[0] * c + th[1] * t)
            c = _chain(c, x, th, t)
            return c, (x, c)

        c, (xs, cs) = lax.scan(step, th[0], jnp.arange(3.0))
        return c**2 + cs.sum(), xs

    def reference(th, r):
        c, total = th[0], 0.0
        for t in range(3):
            c = _chain(c, r.draw(th[0] * c + th[1] * t), th, t)
            total = total + c
        return c**2 + total

    return program, reference


@construct(3)
def scan_reversed_weak_carry():
    def program(th, s):
        def step(c, t):
            x = s.draw("x", th[0] * c + th[1] * t)
            return _chain(c, x, th, t), x

        c, xs = lax.scan(step, 0.0, jnp.arange(3.0), reverse=True)
        return c**2 + th[0], xs[::-1]

    def reference(th, r):
        c = 0.0
        for t in (2, 1, 0):
            c = _chain(c, r.draw(th[0] * c + th[1] * t), th, t)
        return c**2 + th[0]

    return program, reference


@construct(4)
def scan_nested():
    def program(th, s):
        def outer(c, t):
            def inner(c, i):
                x = s.draw("x", th[0] * c + th[1] * i)
                return _chain(c, x, th, t), x

            return lax.scan(inner, c, jnp.arange(2.0))

        c, xs = lax.scan(outer, 0.1 * th[0], jnp.arange(2.0))
        return c**2, _cat(xs)

    def reference(th, r):
        c = 0.1 * th[0]
        for t in range(2):
            for i in range(2):
                c = _chain(c, r.draw(th[0] * c + th[1] * i), th, t)
        return c**2

    return program, reference


@construct(4)
def scan_under_vmap():
    def program(th, s):
        def chain(a):
            def step(c, t):
                x = s.draw("x", a * c + th[1] * t)
                return _chain(c, x, th, t), x

            return lax.scan(step, a, jnp.arange(2.0))

        c, xs = jax.vmap(chain)(th)
        return c.sum() ** 2, _cat(xs)

    def reference(th, r):
        total = 0.0
        for a in th:
            c = a
            for t in range(2):
                c = _chain(c, r.draw(a * c + th[1] * t), th, t)
            total = total + c
        return total**2

    return program, reference


@construct(4)
def vmap_in_scan():
    def program(th, s):
        def step(c, t):
            xs = jax.vmap(lambda u: s.draw("x", u * c))(th)
            return _chain(c, xs.sum(), th, t), xs

        c, xs = lax.scan(step, th[0], jnp.arange(2.0))
        return c**2, _cat(xs)

    def reference(th, r):
        c = th[0]
        for t in range(2):
            c = _chain(c, r.draw(th[0] * c) + r.draw(th[1] * c), th, t)
        return c**2

    return program, reference


@construct(3)
def fori_loop():
    def program(th, s):
        def body(i, state):
            c, xs = state
            x = s.draw("x", th[0] * c)
            return _chain(c, x, th, i), xs.at[i].set(x)

        c, xs = lax.fori_loop(0, 3, body, (th[1], jnp.zeros(3)))
        return c**2, xs

    def reference(th, r):
        c = th[1]
        for t in range(3):
            c = _chain(c, r.draw(th[0] * c), th, t)
        return c**2

    return program, reference


def _two_branches(th, s, flag, x):
    return lax.cond(
        flag,
        lambda: s.draw("y", th[0] * x + 0.3) * 2.0 + th[1],
        lambda: s.draw("z", th[1] * x - 0.2) - th[0],
    )


def _two_branches_reference(th, r, flag, x):
    y = r.draw(np.where(flag, th[0] * x + 0.3, th[1] * x - 0.2))
    return y, np.where(flag, y * 2.0 + th[1], y - th[0])


def _cond(sign):
    def make():
        def program(th, s):
            x = s.draw("x", th[0])
            v = _two_branches(th, s, sign * th[0] > 0, x)
            y = (v - th[1]) / 2 if sign > 0 else v + th[0]
            return v**2 + x, lax.stop_gradient(_cat(x, y))

        def reference(th, r):
            x = r.draw(th[0])
            return _two_branches_reference(th, r, sign > 0, x)[1] ** 2 + x

        return program, reference

    return make


CONSTRUCTS["cond_taken"] = (2, *_cond(1)())
CONSTRUCTS["cond_not_taken"] = (2, *_cond(-1)())


@construct(2)
def cond_one_branch_without_site():
    def program(th, s):
        x = s.draw("x", th[0])
        y = lax.cond(th[0] > 0, lambda: s.draw("y", th[1] * x), lambda: x * 3.0)
        return (x + th[0] * y + 1) ** 2, _cat(x, y)

    def reference(th, r):
        x = r.draw(th[0])
        return (x + th[0] * r.draw(th[1] * x) + 1) ** 2

    return program, reference


@construct(2)
def switch():
    def program(th, s):
        x = s.draw("x", th[0])
        branches = [
            lambda: x * 2.0,
            lambda: s.draw("y", th[0] * x - 0.5),
            lambda: s.draw("z", th[1] * x + 0.5),
        ]
        y = lax.switch(jnp.where(th[0] > 0, 2, 0), branches)
        return (x + th[0] * y + 1) ** 2, _cat(x, y)

    def reference(th, r):
        x = r.draw(th[0])
        return (x + th[0] * r.draw(th[1] * x + 0.5) + 1) ** 2

    return program, reference


@construct(2)
def cond_on_a_draw():
    def program(th, s):
        x = s.draw("x", th[0])
        v = _two_branches(th, s, x > 0.5, x)
        y = jnp.where(x > 0.5, (v - th[1]) / 2, v + th[0])
        return v**2 + x, lax.stop_gradient(_cat(x, y))

    def reference(th, r):
        x = r.draw(th[0])
        return _two_branches_reference(th, r, x.real > 0.5, x)[1] ** 2 + x

    return program, reference


FLAGS = np.array([True, False, True])


@construct(3)
def cond_under_vmap():
    def program(th, s):
        us = jnp.array([0.5, 1.0, -1.0])
        vs = jax.vmap(lambda flag, x: _two_branches(th, s, flag, x))(jnp.array(FLAGS), us)
        ys = jnp.where(FLAGS, (vs - th[1]) / 2, vs + th[0])
        return (vs @ W[:3]) ** 2, lax.stop_gradient(ys)

    def reference(th, r):
        vs = [
            _two_branches_reference(th, r, f, x)[1]
            for f, x in zip(FLAGS, [0.5, 1.0, -1.0], strict=True)
        ]
        return sum(w * v for w, v in zip(W, vs, strict=False)) ** 2

    return program, reference


@construct(3)
def cond_in_cond_under_vmap():
    def program(th, s):
        def one(i, x):
            return lax.cond(
                i > 0,
                lambda: lax.cond(
                    i > 1, lambda: s.draw("y", th[0] * x), lambda: s.draw("z", th[1] * x)
                ),
                lambda: s.draw("w", x + th[0]),
            )

        ys = jax.vmap(one)(jnp.arange(3), jnp.array([0.5, 1.0, -1.0]))
        return (ys @ W[:3] + th[0]) ** 2, ys

    def reference(th, r):
        us = [0.5 + th[0], th[1] * 1.0, -th[0]]
        return (sum(w * r.draw(u) for w, u in zip(W, us, strict=False)) + th[0]) ** 2

    return program, reference


@construct(3)
def cond_in_scan():
    def program(th, s):
        def step(c, flag):
            v = _two_branches(th, s, flag, c)
            y = jnp.where(flag, (v - th[1]) / 2, v + th[0])
            return 0.5 * c + v, lax.stop_gradient(y)

        c, ys = lax.scan(step, th[1], jnp.array(FLAGS))
        return c**2, ys

    def reference(th, r):
        c = th[1]
        for flag in FLAGS:
            c = 0.5 * c + _two_branches_reference(th, r, flag, c)[1]
        return c**2

    return program, reference


@construct(3)
def scan_in_cond():
    def program(th, s):
        x = s.draw("x", th[0])

        def loop():
            def step(c, t):
                y = s.draw("y", th[1] * c + t)
                return _chain(c, y, th, t), y

            return lax.scan(step, x, jnp.arange(2.0))

        def other():
            return th[0] * s.draw("z", th[1]), jnp.zeros(2)

        c, ys = lax.cond(th[0] > 0, loop, other)
        return c**2 + th[0] * x, _cat(x, ys)

    def reference(th, r):
        x = c = r.draw(th[0])
        for t in range(2):
            c = _chain(c, r.draw(th[1] * c + t), th, t)
        return c**2 + th[0] * x

    return program, reference


@construct(4)
def scan_in_cond_under_vmap():
    def program(th, s):
        def one(flag, a):
            def loop():
                def step(c, t):
                    y = s.draw("y", th[1] * c + t)
                    return _chain(c, y, th, t), y

                return lax.scan(step, a, jnp.arange(2.0))

            def other():
                y = s.draw("z", jnp.array([0.3, -0.3]) + a)
                return y.sum() * th[0], y

            return lax.cond(flag, loop, other)

        cs, ys = jax.vmap(one)(jnp.array([True, False]), th)
        return cs.sum() ** 2, _cat(ys)

    def reference(th, r):
        c = th[0]
        for t in range(2):
            c = _chain(c, r.draw(th[1] * c + t), th, t)
        y = r.draw(0.3 + th[1]) + r.draw(-0.3 + th[1])
        return (c + y * th[0]) ** 2

    return program, reference


@construct(2)
def nested_generative():
    def program(th, s):
        @ppl.gen
        def inner(a):
            return s.draw("y", a) * 2.0

        @ppl.gen
        def outer(th):
            x = s.draw("x", th[0])
            return x, ppl.sample("inner", inner(th[1] * x + 0.1))

        x, y2 = ppl.sample("outer", outer(th))
        return (x + th[0] * y2) ** 2, _cat(x, y2 / 2)

    def reference(th, r):
        x = r.draw(th[0])
        return (x + th[0] * 2.0 * r.draw(th[1] * x + 0.1)) ** 2

    return program, reference


@construct(3)
def nested_generative_under_vmap():
    def program(th, s):
        @ppl.gen
        def inner(a):
            return s.draw("y", a) + 0.5 * a

        ys = jax.vmap(lambda a: ppl.sample("inner", inner(a)))(th)
        x = ppl.sample("last", inner(ys.sum()))
        a = jnp.array([*th, ys.sum()])
        return x**2 + ys @ W[:2], lax.stop_gradient(jnp.array([*ys, x]) - 0.5 * a)

    def reference(th, r):
        ys = [r.draw(a) + 0.5 * a for a in th]
        x = r.draw(sum(ys)) + 0.5 * sum(ys)
        return x**2 + ys[0] * W[0] + ys[1] * W[1]

    return program, reference


@construct(2)
def simulate_with_density():
    def program(th, s):
        @ppl.gen
        def guide(th):
            x = s.draw("x", th[0])
            s.draw("y", th[1] * x)

        t = guide(th).simulate()
        x, y = (t[a].astype(th.dtype) for a in "xy")
        return (x + y + th[0]) ** 2 - t.log_density, _cat(x, y)

    def reference(th, r):
        start = r.log_p
        x = r.draw(th[0])
        y = r.draw(th[1] * x)
        if r.pathwise:
            log_q = sum(
                -0.5 * ((v - u) * np.exp(-0.3 * u)) ** 2 - 0.3 * u - 0.5 * math.log(2 * math.pi)
                for v, u in [(x, th[0]), (y, th[1] * x)]
            )
        else:
            log_q = r.log_p - start
        return (x + y + th[0]) ** 2 - log_q

    return program, reference


def _inner(s):
    @functools.partial(ppl.expectation, has_aux=True)
    def inner(a, x):
        y = s.draw("y", a * x + 0.2)
        return (y + a) ** 2 + x, y

    return inner


def _inner_reference(r, a, x):
    def f():
        y = r.draw(a * x + 0.2)
        return (y + a) ** 2 + x

    return r.scope(f)


@construct(2)
def inner_expectation():
    def program(th, s):
        x = s.draw("x", th[0])
        f, y = _inner(s)(th[1], x)
        return th[0] * x * f + f, _cat(x, y)

    def reference(th, r):
        x = r.draw(th[0])
        f = _inner_reference(r, th[1], x)
        return th[0] * x * f + f

    return program, reference


@construct(3)
def inner_expectation_under_vmap():
    def program(th, s):
        x = s.draw("x", th[0])
        fs, ys = jax.vmap(_inner(s), in_axes=(0, None))(th, x)
        return fs.mean() * (1 + x), _cat(x, ys)

    def reference(th, r):
        x = r.draw(th[0])
        return (_inner_reference(r, th[0], x) + _inner_reference(r, th[1], x)) / 2 * (1 + x)

    return program, reference


@construct(4)
def inner_expectation_in_scan():
    def program(th, s):
        def step(total, t):
            x = s.draw("x", th[0] + t)
            f, y = _inner(s)(th[1] * t + 0.5, x)
            return total + f * t, _cat(x, y)

        total, xs = lax.scan(step, 0.0, jnp.arange(1.0, 3.0))
        return total + th[0], _cat(xs)

    def reference(th, r):
        total = 0.0
        for t in (1.0, 2.0):
            x = r.draw(th[0] + t)
            total = total + _inner_reference(r, th[1] * t + 0.5, x) * t
        return total + th[0]

    return program, reference


# --- the tests -----------------------------------------------------------------------------------


def _objective(program, kind, estimator):
    def objective(th):
        f, draws = program(th, Sites(kind, estimator))
        return f, (draws, jnp.outer(draws, draws))

    return ppl.expectation(objective, has_aux=True)


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def _run(program, kind, estimators, n, samples):
    """Value, gradient and draws for each estimator from a key, as one compiled function."""

    def all_of_them(key):
        out = {}
        for name, estimator in estimators.items():
            objective = _objective(program, kind, estimator)
            k = samples.get(name, 1)
            size = 2 if name == "enum" else n

            def one(key, objective=objective, k=k):
                f = lambda th: objective.surrogate(key, th, samples=k)
                (value, aux), grad = jax.value_and_grad(f, has_aux=True)(jnp.asarray(TH))
                return value, grad, aux

            out[name] = jax.vmap(one)(jax.random.split(key, size))
        return out

    return jax.jit(all_of_them, compiler_options=QUICK)


def _passed(run, reference, test):
    """Test what is drawn against the reference; both as they were before, it passed."""
    key, of_reference = jax.random.key(0), [Reference.draw, Reference.scope, Reference.__init__]
    known = [reference, *of_reference, test]
    kept.passed(run, [key], known, lambda: test(jax.tree.map(np.asarray, run(key))))


def _exact(reference, n):
    """Value and gradient of the expectation over all 2**n outcomes."""
    values = np.array(list(itertools.product([0.0, 1.0], repeat=n))).T
    seen = {}

    def expected(th):
        r = Reference("bernoulli", values)
        f = r.scope(lambda: reference(th, r))
        seen["p"] = np.real(np.exp(r.log_p))
        return np.sum(np.exp(r.log_p) * f)

    value, grad = derivative(expected)
    return value, grad, seen["p"]


def _score_estimate(reference, kind, draws):
    """What the score estimator must return, given the draws [n, K]."""
    seen = {}

    def surrogate(th):
        r = Reference(kind, draws, score=True)
        f = r.scope(lambda: reference(th, r))
        seen["noise"] = r.noise
        return f

    value, grad = derivative(surrogate)
    return value, grad, seen


def _pair(aux):
    """The two draws whose mean and mean outer product are known, up to their order."""
    mean, second = aux
    half = second - mean[:, :, None] * mean[:, None, :]  # outer(d, d), d = half the difference
    size = np.sqrt(np.maximum(np.einsum("kii->ki", half), 0.0))
    pivot = np.argmax(size, axis=1)
    sign = np.sign(np.take_along_axis(half, pivot[:, None, None], axis=1)[:, 0])
    d = size * np.where(sign == 0, 1.0, sign)
    return np.round(mean + d).T, np.round(mean - d).T


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_bernoulli(name):
    n, program, reference = CONSTRUCTS[name]
    value, grad, p = _exact(reference, n)
    run = _run(program, "bernoulli", BERNOULLI, N, {"loo": 2})
    _passed(run, reference, functools.partial(_is_right, n, reference, value, grad, p))


def _is_right(n, reference, value, grad, p, out):
    np.testing.assert_allclose(out["enum"][0], value, rtol=1e-10)
    np.testing.assert_allclose(out["enum"][1], np.tile(grad, (2, 1)), rtol=1e-9)

    f, g, (draws, _) = out["constant"]
    count = np.bincount((draws @ 2.0 ** np.arange(n)[::-1]).astype(int), minlength=2**n)
    likely = p * N > 5
    tail = scipy.stats.chisquare(count[likely], p[likely] / p[likely].sum() * count[likely].sum())
    assert tail.pvalue > 1e-6, (count, p * N)
    naive = _score_estimate(reference, "bernoulli", draws.T)
    np.testing.assert_allclose(f, naive[0], atol=1e-9)
    _is_unbiased(g - naive[1], 0.0)
    outcome, first, group = np.unique(draws, axis=0, return_index=True, return_inverse=True)
    np.testing.assert_allclose(g, g[first][group.ravel()], atol=1e-9)  # a function of the draws
    if len(outcome) == 2**n:  # whose expectation is known exactly
        code = (outcome @ 2.0 ** np.arange(n)[::-1]).astype(int)
        np.testing.assert_allclose(p[code] @ g[first], grad, atol=1e-9)

    f, g, aux = out["loo"]
    pair = [_score_estimate(reference, "bernoulli", x) for x in _pair(aux)]
    np.testing.assert_allclose(f, (pair[0][0] + pair[1][0]) / 2, atol=1e-9)
    _is_unbiased(g, grad)

    f, g, _ = out["mvd"]
    _is_unbiased(f[:, None], value)
    _is_unbiased(g, grad)


def _is_unbiased(estimates, exact):
    error = np.std(estimates, axis=0) / math.sqrt(len(estimates))
    mean = estimates.mean(axis=0)
    assert np.all(np.abs(mean - exact) <= BOUND * error + 1e-9), (mean, exact, error)


@pytest.mark.filterwarnings("ignore::transforms.errors.SoundnessWarning")  # a cond on a draw
@pytest.mark.parametrize("name", CONSTRUCTS)
def test_normal(name):
    n, program, reference = CONSTRUCTS[name]
    run = _run(program, "normal", NORMAL, 1024, {})
    _passed(run, reference, functools.partial(_has_known_derivatives, n, reference))


def _has_known_derivatives(n, reference, out):
    f, g, (draws, _) = out["reinforce"]
    value, grad, seen = _score_estimate(reference, "normal", draws.T)
    np.testing.assert_allclose(f, value, rtol=1e-9, atol=1e-9)
    _is_unbiased(g - grad, 0.0)
    noise = np.array(seen["noise"])
    assert np.all(np.abs(noise.mean(axis=1)) * 32 < BOUND)
    assert np.all(np.abs(np.cov(noise).reshape(n, n) - np.eye(n)) * 32 < BOUND * math.sqrt(2))

    f, g, (draws, _) = out["reparam"]
    noise = np.array(_score_estimate(reference, "normal", draws.T)[2]["noise"])
    value, grad = derivative(lambda th: _pathwise(reference, noise, th))
    np.testing.assert_allclose(f, value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(g, grad, rtol=1e-8, atol=1e-8)


def _pathwise(reference, noise, th):
    r = Reference("normal", noise, pathwise=True)
    return r.scope(lambda: reference(th, r))


@pytest.mark.parametrize("kind", ["bernoulli", "normal"])
def test_automatic_chooses_the_estimators_above(kind):
    """Up to 64 joint values are enumerated; normal draws are pathwise."""
    for name, (_, program, _) in CONSTRUCTS.items():
        rows = _objective(program, kind, None).explain(jnp.asarray(TH)).rows
        column = 3
        chosen = {row[column] for row in rows}
        if kind == "normal":
            jumps = {"reinforce"} if name == "cond_on_a_draw" else set()
            assert chosen == {"reparam"} | jumps, (name, chosen)
        elif name in ("cond_in_cond_under_vmap", "scan_in_cond_under_vmap"):  # 512, 256 values
            assert chosen == {"enum", "reinforce"}
        else:
            assert chosen == {"enum"}, (name, chosen)
