"""Random objectives, each with an exact value and gradient.

A program is a small syntax tree (:class:`Program`) whose expressions are Python source. It is
read in two ways that share no code but this tree:

- :func:`objective` renders it as a user would write it, with ``ppl.sample``, ``jax.vmap``,
  ``lax.scan``, ``lax.map``, ``lax.cond``, ``lax.switch``, ``jit``, ``checkpoint``, ``custom_jvp``,
  masked and expanded distributions, integers, generative functions and inner expectations;
- :func:`exact` sums over a product grid in numpy. A discrete choice adds an axis with its values,
  a continuous one an axis with the nodes of a composite Gauss-Legendre rule in its noise
  (x = loc + scale ε) that is split where a later use of x jumps or has a kink. The derivative is a
  complex step, which moves these ends too: it is that of the integral, and not of the program.

With ``pathwise=True`` the ends stay where they are and choices without ``ppl.reparam()`` have fixed
nodes. That is the derivative which the estimators have on average; where it differs from the exact
one, the program is *biased* by construction.

:func:`generate` draws a program from any ``random.Random``, that of hypothesis included.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import ppl
from ppl import dist

node = dataclasses.dataclass(frozen=True)


# --- programs -----------------------------------------------------------------------------------


@node
class Block:
    """Steps, and an expression of what they have named."""

    steps: tuple[Any, ...]
    out: str


@node
class Draw:
    """A random choice. ``params``: logits of a discrete law, loc and scale of a continuous one.

    Where ``mask`` is false its density does not count; it is drawn all the same.
    """

    name: str
    law: str
    params: tuple[str, ...]
    estimator: str
    mask: str = ""


@node
class Many:
    """One choice of ``n`` elements ``name_0``, ``name_1`` ... of a law.

    ``wraps`` are applied to it in order: "expand", "event" (``to_event``), "mask". The parameters
    may mention the index ``k``, unless expanded; the mask (that of the draw) where it stands
    between the other two.
    """

    name: str
    n: int
    draw: Draw
    wraps: tuple[str, ...]


@node
class Integer:
    """Arithmetic of discrete choices in a type of integers, which wraps around."""

    name: str
    dtype: str
    of: tuple[str, ...]
    source: str


@node
class Bend:
    """A function of the choice ``of`` that jumps or has a kink at ``at``."""

    name: str
    kind: str
    of: str
    at: str


@node
class Plate:
    """``n`` independent blocks, ``i`` is the index; their outputs are summed, or multiplied, or
    their squares summed.

    by: "vmap", "map" (``lax.map``), or "batch" for choices with a batch shape.
    """

    name: str
    by: str
    n: int
    body: Block
    join: str


@node
class Loop:
    """``lax.scan``: the output of the block is its next value of ``name``."""

    name: str
    n: int
    start: str
    body: Block


@node
class Branch:
    """``lax.cond`` on whether ``on`` exceeds 1/2."""

    name: str
    on: str
    then: Block
    other: Block


@node
class Switch:
    """``lax.switch`` on the discrete choice ``on``."""

    name: str
    on: str
    branches: tuple[Block, ...]


@node
class Wrap:
    """A block within ``jit``, ``jit`` of ``jit``, or ``checkpoint``."""

    name: str
    by: str
    body: Block


@node
class Guide:
    """A generative function that is simulated; the log densities of its trace become ``name_ld``,
    and ``name_at`` with other parameters. ``out`` is its return value, or, with ``choices``, an
    expression of its choices."""

    name: str
    choices: bool
    body: Block


@node
class Inner:
    """An expectation of its own, used linearly."""

    name: str
    body: Block


@node
class Subsample:
    """A sum over a plate of size ``n``, of which ``drawn`` are drawn; used linearly."""

    name: str
    n: int
    drawn: int
    body: Block


@node
class Program:
    """An objective of ``t``, at ``theta``."""

    theta: tuple[float, ...]
    samples: int
    body: Block


def walk(step: Any) -> Iterator[Any]:
    """The step and all below it."""
    yield step
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        for below in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(below):
                yield from walk(below)


CONTINUOUS = "normal", "laplace", "exponential", "gamma", "uniform"
JUMPS = "step", "where", "argmax", "sign", "floor"
KINKS = "relu", "abs", "clip", "maximum"
OFFSETS = {"clip": (0.0, 0.8), "floor": (0.0, 1.0)}
"""Where a bend is not smooth, relative to ``at``; 0 if not here."""


@functools.cache
def _code(source: str) -> Any:
    return compile(source, source, "eval")


# --- as a user writes it --------------------------------------------------------------------------

ESTIMATORS: Mapping[str, Callable[[], Any]] = {
    "auto": lambda: None,
    "reparam": ppl.reparam,
    "reinforce": ppl.reinforce,
    "constant": lambda: ppl.reinforce(baseline=0.7),
    "loo": lambda: ppl.reinforce("loo"),
    "enum": ppl.enum,
    "mvd": ppl.mvd,
}


@jax.custom_jvp
def _own(x: Any) -> Any:
    return jnp.sin(x)


_own.defjvp(lambda primals, tangents: (_own(*primals), jnp.cos(primals[0]) * tangents[0]))

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tanh": jnp.tanh,
    "exp": jnp.exp,
    "own": _own,
    "ratio": lambda z, n: jnp.where(n > 0, z / jnp.asarray(n), 0.0),
    "entropy": lambda z, w: jnp.where(w > 0, z * jnp.log(w), 0.0),
}

DISTRIBUTIONS: Mapping[str, Callable[..., Any]] = {
    "bernoulli": lambda a: dist.Bernoulli(logits=a),
    "probability": lambda a: dist.Bernoulli(jax.nn.sigmoid(a)),
    "categorical": lambda a, b: dist.Categorical(probs=jax.nn.softmax(_three(a, b))),
    "logits": lambda a, b: dist.Categorical(logits=_three(a, b)),
    "normal": dist.Normal,
    "laplace": dist.Laplace,
    "exponential": lambda loc, scale: dist.Exponential(1.0 / scale),
    "gamma": lambda loc, scale: dist.Gamma(2.0, 1.0 / scale),
    "uniform": lambda loc, scale: dist.Uniform(loc, loc + scale),
}

BENT: Mapping[str, Callable[[Any, Any], Any]] = {
    "step": lambda x, at: (x > at).astype(float),
    "where": lambda x, at: jnp.where(x > at, 1.3, -0.4),
    "argmax": lambda x, at: jnp.argmax(jnp.stack([at + 0.0 * lax.stop_gradient(x), x])) * 1.0,
    "sign": lambda x, at: jnp.sign(x - at),
    "floor": lambda x, at: jnp.floor(jnp.clip(x - at, -0.5, 1.5)),
    "relu": lambda x, at: jax.nn.relu(x - at),
    "abs": lambda x, at: jnp.abs(x - at),
    "clip": lambda x, at: jnp.clip(x - at, 0.0, 0.8),
    "maximum": lambda x, at: jnp.maximum(x, at),
}


WRAPS: Mapping[str, Callable[..., Any]] = {
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "jit of jit": lambda f: jax.jit(lambda t: jax.jit(f)(t)),
}
JOINED = {"sum": jnp.sum, "prod": jnp.prod, "squares": lambda out: out @ out}


def _three(a: Any, b: Any) -> Any:
    return jnp.stack(jnp.broadcast_arrays(jnp.zeros(()), a, b), axis=-1)


@node
class Library:
    """Renders blocks with the library; ``plate_factor`` and ``estimators`` can be spoilt."""

    estimators: Mapping[str, Callable[[], Any]] = dataclasses.field(
        default_factory=lambda: ESTIMATORS
    )
    plate_factor: bool = True

    def block(self, block: Block, env: Mapping[str, Any]) -> Any:
        return self.value(block.out, self.steps(block.steps, env))

    def steps(self, steps: Sequence[Any], env: Mapping[str, Any]) -> dict[str, Any]:
        env = dict(env)
        for step in steps:
            env.update(self.step(step, env))
        return env

    def value(self, source: str, env: Mapping[str, Any]) -> Any:
        return eval(_code(source), {**FUNCTIONS, **env})

    def step(self, step: Any, env: dict[str, Any]) -> dict[str, Any]:
        match step:
            case Draw(name, law, params, estimator):
                values = [self.value(p, env) for p in params]
                if "batch" in env:
                    values = [jnp.broadcast_to(v, env["batch"]) for v in values]
                d = DISTRIBUTIONS[law](*values)
                if step.mask:
                    d = d.mask(self.value(step.mask, env))
                x = ppl.sample(name, d, self.estimators[estimator]())
                return {name: jnp.asarray(x, float), f"{name}_n": x}
            case Many():
                return self.many(step, env)
            case Integer(name, dtype, of, source):
                small = {z: env[f"{z}_n"].astype(dtype) for z in of}
                return {name: self.value(source, small)}
            case Bend(name, kind, of, at):
                x, at = jnp.broadcast_arrays(env[of], self.value(at, env))
                bent = jnp.vectorize(BENT[kind]) if "batch" in env else BENT[kind]
                return {name: bent(x, at)}
            case Plate(name, by, n, body, join):
                i = jnp.arange(n) * 1.0
                if by == "batch":
                    out = jnp.broadcast_to(self.block(body, {**env, "i": i, "batch": (n,)}), (n,))
                else:
                    run = lambda i: self.block(body, {**env, "i": i})
                    out = lax.map(run, i) if by == "map" else jax.vmap(run)(i)
                return {name: JOINED[join](out)}
            case Loop(name, n, start, body):

                def advance(carry: Any, _: None) -> tuple[Any, None]:
                    return self.block(body, {**env, name: carry}), None

                start = jnp.asarray(self.value(start, env), float)
                return {name: lax.scan(advance, start, length=n)[0]}
            case Branch(name, on, then, other):
                run = lambda block: lambda: jnp.asarray(self.block(block, env), float)
                return {name: lax.cond(self.value(on, env) > 0.5, run(then), run(other))}
            case Switch(name, on, branches):
                run = lambda block: lambda: jnp.asarray(self.block(block, env), float)
                return {name: lax.switch(env[f"{on}_n"], [run(b) for b in branches])}
            case Wrap(name, by, body):
                f = WRAPS[by](lambda t: jnp.asarray(self.block(body, {**env, "t": t}), float))
                return {name: f(env["t"])}
            case Guide(name, choices, body):
                g = ppl.gen(lambda t: self.block(body, {**env, "t": t}))
                trace = g(env["t"]).simulate()
                elsewhere = g(_elsewhere(env["t"])).log_density(trace.choices)
                densities = {f"{name}_ld": trace.log_density, f"{name}_at": elsewhere}
                if not choices:
                    return {name: trace.retval, **densities}
                drawn = {k: jnp.asarray(v, float) for k, v in trace.choices.items()}
                return {name: self.value(body.out, {**env, **drawn}), **densities}
            case Inner(name, body):
                return {name: ppl.expectation(lambda: self.block(body, env))()}
            case Subsample(name, n, drawn, body):

                def one() -> Any:
                    i = ppl.sample(f"{name}_i", dist.DiscreteUniform(0, n - 1))
                    return self.block(body, {**env, "i": jnp.asarray(i, float)})

                scale = n / drawn if self.plate_factor else 1.0
                return {name: scale * jnp.sum(jax.vmap(one, axis_size=drawn)())}
        raise TypeError(step)

    def many(self, step: Many, env: dict[str, Any]) -> dict[str, Any]:
        draw, names = step.draw, {**env, "k": jnp.arange(step.n) * 1.0}
        values = [self.value(p, names) for p in draw.params]
        if "expand" not in step.wraps:
            values = [jnp.broadcast_to(v, (step.n,)) for v in values]
        d = DISTRIBUTIONS[draw.law](*values)
        for wrap in step.wraps:
            match wrap:
                case "expand":
                    d = d.expand((step.n,))
                case "event":
                    d = d.to_event(1)
                case "mask":
                    d = d.mask(self.value(draw.mask, names))
        xs = ppl.sample(step.name, d, self.estimators[draw.estimator]())
        elements = {f"{step.name}_{k}": xs[k] for k in range(step.n)}
        integers = {f"{name}_n": x for name, x in elements.items()}
        return {**integers, **{name: jnp.asarray(x, float) for name, x in elements.items()}}


def objective(program: Program, library: Library | None = None) -> Any:
    """The program as an objective of its parameters."""
    rendered = library or Library()
    return ppl.expectation(lambda t: jnp.asarray(rendered.block(program.body, {"t": t}), float))


def generative(block: Block, env: Mapping[str, Any]) -> Any:
    """A block as a generative function of ``t``."""
    return ppl.gen(lambda t: Library().block(block, {**env, "t": t}))


def _elsewhere(t: Any) -> Any:
    return [0.7 * a + 0.1 for a in t]


# --- exactly ------------------------------------------------------------------------------------

AXES = 30
STEP = 1e-150
NODES = 28
"""For each panel of a composite Gauss-Legendre rule."""


def _guarded(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of z and n where n exceeds 0, and 0 elsewhere."""

    def run(z: Any, n: Any) -> Any:
        some = np.real(n) > 0
        return np.where(some, f(z, np.where(some, n, 1.0)), 0.0)

    return run


NUMPY: Mapping[str, Callable[..., Any]] = {
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "exp": np.exp,
    "own": np.sin,
    "ratio": _guarded(lambda z, n: z / n),
    "entropy": _guarded(lambda z, n: z * np.log(n)),
}


@node
class Noise:
    """Log density of ε on panels between the ends."""

    log_density: Callable[[Any], Any]
    ends: tuple[float, ...]


NOISE = {
    "normal": Noise(lambda e: -0.5 * e**2 - 0.5 * math.log(2 * math.pi), (-7.7, 0.0, 7.7)),
    "laplace": Noise(
        lambda e: -np.where(np.real(e) > 0, e, -e) - math.log(2),
        (-32.0, -10.0, -3.5, 0.0, 3.5, 10.0, 32.0),
    ),
    "exponential": Noise(lambda e: -e, (0.0, 4.0, 12.0, 34.0)),
    "gamma": Noise(lambda e: np.log(e) - e, (0.0, 4.0, 13.0, 38.0)),
    "uniform": Noise(lambda e: 0.0 * e, (0.0, 1.0)),
}


def _wide(x: Any) -> Any:
    """Sums of small integers are made in large ones."""
    return x.astype(np.int64) if getattr(x, "dtype", np.dtype(float)).kind in "iu" else x


def _squares(out: Any) -> Any:
    with np.errstate(over="ignore"):  # an inner product of small integers is one
        return sum(v**2 for v in out)


JOINED_EXACTLY = {
    "sum": lambda out: sum(map(_wide, out)),
    "prod": math.prod,
    "squares": _squares,
}


def _up(x: Any, at: Any) -> Any:
    return np.real(x) > np.real(at)


BENT_EXACTLY: Mapping[str, Callable[[Any, Any], Any]] = {
    "step": lambda x, at: np.where(_up(x, at), 1.0, 0.0),
    "where": lambda x, at: np.where(_up(x, at), 1.3, -0.4),
    "argmax": lambda x, at: np.where(_up(x, at), 1.0, 0.0),
    "sign": lambda x, at: np.where(_up(x, at), 1.0, -1.0),
    "floor": lambda x, at: np.where(_up(x, at + 1.0), 1.0, np.where(_up(x, at), 0.0, -1.0)),
    "relu": lambda x, at: np.where(_up(x, at), x - at, 0.0),
    "abs": lambda x, at: np.where(_up(x, at), x - at, at - x),
    "clip": lambda x, at: np.where(_up(x, at + 0.8), 0.8, np.where(_up(x, at), x - at, 0.0)),
    "maximum": lambda x, at: np.where(_up(x, at), x, at),
}


class Oracle:
    """Runs a block over the product grid of its choices, or at given values."""

    def __init__(self, program: Any, *, pathwise: bool = False, nodes: int = NODES):
        self.pathwise = pathwise
        u, w = np.polynomial.legendre.leggauss(nodes)
        self.rule = (u + 1.0) / 2.0, w / 2.0
        self.bends: dict[str, list[Bend]] = {}
        for step in walk(program):
            if isinstance(step, Bend):
                self.bends.setdefault(step.of, []).append(step)
        self.axis, self.weight, self.log_p, self.mask = 0, 1.0, 0.0, True
        self.drawn: list[Any] = []
        self.given: Iterator[Any] | None = None

    def block(self, block: Block, env: Mapping[str, Any]) -> Any:
        env = dict(env)
        for step in block.steps:
            env.update(self.step(step, env))
        return self.value(block.out, env)

    def value(self, source: str, env: Mapping[str, Any]) -> Any:
        return eval(_code(source), {**NUMPY, **env})

    def step(self, step: Any, env: dict[str, Any]) -> dict[str, Any]:
        match step:
            case Draw():
                return {step.name: self.draw(step, env)}
            case Many(name, n, draw):
                drawn = {}
                for k in range(n):
                    one = dataclasses.replace(draw, name=f"{name}_{k}")
                    drawn[one.name] = self.draw(one, {**env, "k": float(k)})
                return drawn
            case Integer(name, dtype, of, source):
                with np.errstate(over="ignore"):
                    small = {z: np.asarray(np.real(env[z])).astype(dtype) for z in of}
                    return {name: self.value(source, small)}
            case Bend(name, kind, of, at):
                return {name: BENT_EXACTLY[kind](env[of], self.value(at, env))}
            case Plate(name, _, n, body, join):
                out = [self.block(body, {**env, "i": float(i)}) for i in range(n)]
                return {name: JOINED_EXACTLY[join](out)}
            case Loop(name, n, start, body):
                carry = self.value(start, env)
                for _ in range(n):
                    carry = self.block(body, {**env, name: carry})
                return {name: carry}
            case Branch(name, on, then, other):
                taken, before = np.real(self.value(on, env)) > 0.5, self.mask
                self.mask = before & taken
                yes = self.block(then, env)
                self.mask = before & np.logical_not(taken)
                no = self.block(other, env)
                self.mask = before
                return {name: np.where(taken, yes, no)}
            case Switch(name, on, branches):
                before, outs = self.mask, []
                taken = [np.real(env[on]) == k for k in range(len(branches))]
                for here, branch in zip(taken, branches, strict=True):
                    self.mask = before & here
                    outs.append(self.block(branch, env))
                self.mask = before
                return {name: sum(np.where(*case, 0.0) for case in zip(taken, outs, strict=True))}
            case Wrap(name, _, body):
                return {name: self.block(body, env)}
            case Guide(name, _, body):
                out, log_p, values = self.scored(body, env)
                there = {**env, "t": _elsewhere(env["t"])}
                return {
                    name: out,
                    f"{name}_ld": log_p,
                    f"{name}_at": self.score(body, there, values),
                }
            case Inner(name, body):
                return {name: self.expected(body, env)}
            case Subsample(name, n, _, body):
                return {name: sum(self.expected(body, {**env, "i": float(i)}) for i in range(n))}
        raise TypeError(step)

    def expected(self, body: Block, env: Mapping[str, Any]) -> Any:
        """The mean over the choices of the block, whose axes are free again."""
        axis, weight, log_p, self.weight = self.axis, self.weight, self.log_p, 1.0
        out = self.block(body, env) * self.weight
        new = tuple(range(axis, self.axis)) if np.ndim(out) else ()
        self.axis, self.weight, self.log_p = axis, weight, log_p
        return np.sum(out, axis=new, keepdims=True) if new else out

    def scored(self, body: Block, env: Mapping[str, Any]) -> tuple[Any, Any, list[Any]]:
        """The block, the log density of its choices, and these."""
        log_p, drawn, self.log_p, self.drawn = self.log_p, self.drawn, 0.0, []
        out = self.block(body, env)
        own, values, self.log_p, self.drawn = self.log_p, self.drawn, log_p + self.log_p, drawn
        return out, own, values

    def score(self, body: Block, env: Mapping[str, Any], values: Sequence[Any]) -> Any:
        """The log density of choices, in the order in which they are made."""
        log_p, drawn, given = self.log_p, self.drawn, self.given
        self.log_p, self.given = 0.0, iter(values)
        self.block(body, env)
        own, self.log_p, self.drawn, self.given = self.log_p, log_p, drawn, given
        return own

    def draw(self, step: Draw, env: Mapping[str, Any]) -> Any:
        params = [self.value(p, env) for p in step.params]
        discrete = step.law not in CONTINUOUS
        if self.given is not None:
            value = next(self.given)
        elif discrete:
            value, p = self.values(params)
            self.weigh(p)
        else:
            value, p = self.nodes(step, params, env)
            self.weigh(p)
        with np.errstate(all="ignore"):  # a branch not taken
            if discrete:
                log_p = np.log(self.mass(params, value))
            else:
                loc, scale = params
                log_p = NOISE[step.law].log_density((value - loc) / scale) - np.log(scale)
        counts = self.mask & np.asarray(self.value(step.mask or "True", env), bool)
        self.log_p = self.log_p + np.where(counts, log_p, 0.0)
        self.drawn.append(value)
        return value

    def mass(self, logits: Sequence[Any], value: Any) -> Any:
        masses = [1.0, *(np.exp(a) for a in logits)]
        chosen = sum(m * (np.real(value) == k) for k, m in enumerate(masses))
        return chosen / sum(masses)

    def values(self, logits: Sequence[Any]) -> tuple[Any, Any]:
        value = self.along(np.arange(len(logits) + 1.0))
        return value, self.mass(logits, value)

    def nodes(self, step: Draw, params: Sequence[Any], env: Mapping[str, Any]) -> tuple[Any, Any]:
        """Nodes and weights; ``along`` a new axis."""
        loc, scale = params
        noise = NOISE[step.law]
        low, high = noise.ends[0], noise.ends[-1]
        ends = list(noise.ends)
        for bend in self.bends.get(step.name, ()):
            for offset in OFFSETS.get(bend.kind, (0.0,)):
                e = (self.value(bend.at, env) + offset - loc) / scale
                e = np.where(np.real(e) < low, low, np.where(np.real(e) > high, high, e))
                ends.append(np.real(e) if self.pathwise else e)
        stacked = np.stack(np.broadcast_arrays(*ends))
        order = np.argsort(np.real(stacked), axis=0)
        stacked = np.take_along_axis(stacked, order, axis=0)
        u, w = (self.along(a) for a in self.rule)
        panels = list(itertools.pairwise(stacked))
        e = np.concatenate([a + (b - a) * u for a, b in panels], axis=self.axis)
        w = np.concatenate([(b - a) * w for a, b in panels], axis=self.axis)
        if self.pathwise and step.estimator != "reparam" and step.law != "uniform":
            x = np.real(loc + scale * e)
            p = np.exp(noise.log_density((x - loc) / scale)) / scale
            return x, w * np.real(scale) * p
        return loc + scale * e, w * np.exp(noise.log_density(e))

    def along(self, a: Any) -> Any:
        shape = [1] * AXES
        shape[self.axis] = -1
        return a.reshape(shape)

    def weigh(self, p: Any) -> None:
        first = self.along(np.arange(p.shape[self.axis])) == 0
        self.weight = self.weight * np.where(self.mask, p, first)  # a branch not taken counts once
        self.axis += 1


def exact(
    program: Program, *, pathwise: bool = False, nodes: int = NODES
) -> tuple[float, np.ndarray]:
    """Value and gradient; with ``pathwise``, the gradient that estimators have on average."""
    outs = []
    for k in range(len(program.theta)):
        t = [a + 1j * STEP * (j == k) for j, a in enumerate(program.theta)]
        oracle = Oracle(program, pathwise=pathwise, nodes=nodes)
        outs.append(np.sum(oracle.expected(program.body, {"t": t})))
    return float(np.real(outs[0])), np.imag(outs) / STEP


def exact_log_density(block: Block, env: Mapping[str, Any], choices: Mapping[str, Any]) -> float:
    """Log density of a trace of :func:`generative`."""
    return float(np.real(Oracle(block).score(block, env, _ordered(block.steps, choices, ()))))


def _ordered(steps: Sequence[Any], choices: Mapping[str, Any], index: tuple[int, ...]) -> list[Any]:
    """The values of a trace in the order in which the oracle asks for them."""
    out = []
    for step in steps:
        match step:
            case Draw(name):
                out.append(np.asarray(choices[name], float)[index])
            case Many(name, n):
                out += [np.asarray(choices[name], float)[(*index, k)] for k in range(n)]
            case Plate(_, _, n, body, _) | Loop(_, n, _, body):
                for i in range(n):
                    out += _ordered(body.steps, choices, (*index, i))
            case Branch(_, _, then, other):
                out += _ordered((*then.steps, *other.steps), choices, index)
            case Switch(_, _, branches):
                for branch in branches:
                    out += _ordered(branch.steps, choices, index)
            case Wrap(_, _, body):
                out += _ordered(body.steps, choices, index)
    return out


def has_density(block: Block) -> bool:
    """Whether the block is a generative function whose choices all stand in it by name."""
    below = [s for s in walk(block) if not isinstance(s, Block)]
    made_of = Draw | Many | Integer | Bend | Plate | Loop | Branch | Switch | Wrap
    plain = all(isinstance(s, made_of) for s in below)
    return plain and any(isinstance(s, Draw) for s in below)


def grid(program: Program) -> int:
    """The largest number of points that :func:`exact` holds."""
    bends: dict[str, int] = {}
    for s in walk(program):
        if isinstance(s, Bend):
            bends[s.of] = bends.get(s.of, 0) + len(OFFSETS.get(s.kind, (0.0,)))
    peak = 1

    def after(steps: Sequence[Any], points: int) -> int:
        nonlocal peak
        for s in steps:
            match s:
                case Draw(name, law, params):
                    panels = len(NOISE[law].ends) - 1 + bends.get(name, 0) if law in NOISE else 0
                    points *= NODES * panels if panels else len(params) + 1
                case Many(name, n, draw):
                    for k in range(n):
                        points = after([dataclasses.replace(draw, name=f"{name}_{k}")], points)
                case Plate(_, _, n, body, _) | Loop(_, n, _, body):
                    for _ in range(n):
                        points = after(body.steps, points)
                case Branch(_, _, then, other):
                    points = after((*then.steps, *other.steps), points)
                case Switch(_, _, branches):
                    for branch in branches:
                        points = after(branch.steps, points)
                case Wrap(_, _, body) | Guide(_, _, body):
                    points = after(body.steps, points)
                case Inner(_, body) | Subsample(_, _, _, body):
                    after(body.steps, points)
            peak = max(peak, points)
        return points

    after(program.body.steps, 1)
    return peak


# --- at random ----------------------------------------------------------------------------------

LARGEST = 300_000
COEFFICIENTS = -1.1, -0.8, -0.5, 0.4, 0.7, 0.9, 1.2
OFFSET = -0.6, -0.2, 0.1, 0.3, 0.5
FAVOURITES = None, "reparam", "reinforce", "loo", "enum", "enum", "mvd", "mvd", "auto"
FOR_DISCRETE = "enum", "enum", "reinforce", "constant", "loo", "mvd", "auto"
FOR_CONTINUOUS = "reparam", "reinforce", "constant", "loo", "mvd", "auto"
SCORES = "reinforce", "constant", "loo"
WRAPPED = (
    ("expand",),
    ("event",),
    ("expand", "event"),
    ("mask", "expand"),
    ("expand", "mask"),
    ("expand", "mask", "event"),
    ("mask", "expand", "event"),
    ("expand", "event", "mask"),
    ("event", "mask"),
)
INTEGERS = {
    "uint8": ("{a}*200 + {b}*200", "{a} - 1", "-{a}", "({a} - {b})*3", "{a}*100 + {b}*77"),
    "int8": ("{a}*100 + {b}*100", "-{a}*{b}*70", "({a} + {b})*60 + 100", "{a} - 2"),
    "int32": ("{a}*2000000000 + {b}*2000000000", "({a} - {b})*1500000000 + 1500000000"),
}
PROBABILITIES = 1e-8, 1e-7, 1e-5, 1e-4, 1e-3
RARE = tuple(f"{math.log(p):.4f} " for p in PROBABILITIES)
SMALL = {"uint8": "0.008*", "int8": "0.01*", "int32": "1e-9*"}
"""What the integers of a type are scaled by."""


def generate(rng: random.Random) -> Program:
    """A random program of moderate size."""
    while True:
        program = _Generator(rng).program()
        if grid(program) <= LARGEST and sum(isinstance(s, Draw) for s in walk(program)):
            return program


@node
class Var:
    """A name in scope, and a bounded smooth expression of it."""

    name: str
    bounded: str
    kind: str
    """One of real, positive, discrete, jump, bounded."""
    held: bool = False
    """Whether it carries no derivative of its own, as data do not."""

    @property
    def flag(self) -> bool:
        """Whether a branch may depend on it."""
        return self.kind in ("discrete", "jump")


class _Generator:
    def __init__(self, rng: random.Random):
        self.rng = rng
        self.count = 0
        self.parameters = rng.choice((2, 3))
        self.favourite = rng.choice(FAVOURITES)
        self.moving = self.bending = True
        self.masking = 0.15

    def program(self) -> Program:
        theta = tuple(self.rng.choice((-0.7, -0.3, 0.2, 0.5, 0.8)) for _ in range(self.parameters))
        steps: list[Any] = []
        scope: list[Var] = []
        linear: list[str] = []
        for _ in range(self.rng.choice((1, 2, 2, 3))):
            new, out, lin = self.unit(scope)
            steps += new
            scope += out
            linear += lin
        body = Block(tuple(steps), self.payoff(scope, linear))
        loo = any(isinstance(s, Draw) and s.estimator == "loo" for s in walk(body))
        return Program(theta, 4 if loo else 1, body)

    # expressions

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def likely(self, p: float) -> bool:
        return self.rng.choice(range(100)) < 100 * p

    def c(self) -> str:
        return repr(self.rng.choice(COEFFICIENTS))

    def theta(self) -> str:
        return f"t[{self.rng.choice(range(self.parameters))}]"

    def smooth(self, scope: Sequence[Var], free: float = 0.1) -> str:
        """A bounded function of parameters (unless free of them) and of what is in scope."""
        terms = [repr(self.rng.choice(OFFSET))]
        if not self.likely(free):
            terms.append(f"{self.c()}*{self.theta()}")
        for v in scope[-2:]:
            if self.likely(0.7):
                factor = f"*{self.theta()}" if self.likely(0.25) else ""
                terms.append(f"{self.c()}*{v.bounded}{factor}")
        return f"{self.rng.choice(('tanh', 'sin', 'tanh', 'sin', 'own'))}({' + '.join(terms)})"

    def payoff(self, scope: Sequence[Var], linear: Sequence[str]) -> str:
        terms = [self.term(v, scope) for v in scope] or [f"{self.c()}*{self.theta()}"]
        if self.likely(0.4):
            terms.append(f"{self.c()}*{self.theta()}*{self.rng.choice((*scope, ONE)).bounded}")
        out = " + ".join(terms)
        if self.likely(0.15):
            out = f"sin({out})"
        for name in linear:
            by = f"*{self.rng.choice(scope).bounded}" if scope and self.likely(0.4) else ""
            out += f" + {self.c()}*{name}{by}"
        return out

    def term(self, v: Var, scope: Sequence[Var]) -> str:
        other = self.rng.choice(scope).bounded
        forms = [v.bounded, f"{v.bounded}*{other}", f"{v.bounded}*{self.theta()}", v.name]
        if v.kind in ("real", "positive"):
            forms += [f"sin({v.name} + {self.theta()})", f"cos({v.name} - {other})"]
        if v.kind == "real":
            forms.append(f"0.3*{v.name}*{v.name}")
        if v.held:
            forms += [self.guarded(v, scope)] * 2
        return f"{self.c()}*{self.rng.choice(forms)}"

    def guarded(self, v: Var, scope: Sequence[Var]) -> str:
        """A division by data, or a logarithm of data, that may be 0, and is then not used."""
        n = self.rng.choice(("i", "i", "i - 1.0") if INDEX in scope else ("0.0", "0.0", "2.0"))
        return f"{self.rng.choice(('ratio', 'ratio', 'entropy'))}({v.bounded}, {n})"

    def mask(self, scope: Sequence[Var]) -> str:
        if not self.likely(self.masking):
            return ""
        masks = ["True", "False", "False", *[f"{v.name} > 0.5" for v in scope[-2:] if v.flag]]
        return self.rng.choice((*masks, "i > 0.5", "i > 0.5") if INDEX in scope else masks)

    # steps; each returns itself, what it adds to the scope, and what may be used linearly

    def unit(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var], list[str]]:
        make = self.rng.choice(
            (
                *[self.site] * 4,
                *[self.plate] * 3,
                *[self.loop] * 2,
                *[self.branch] * 2,
                self.wrap,
                *[self.guide] * 2,
                *[self.inner] * 2,
                self.subsample,
                *[self.many] * 3,
                *[self.switch] * 2,
                *[self.integers] * 2,
                *[self.rare] * 2,
            )
        )
        out = make(scope)
        return out if len(out) == 3 else (*out, [])

    def estimator(self, choices: Sequence[str]) -> str:
        if self.favourite in choices and self.likely(0.8):
            return self.favourite
        return self.rng.choice(choices)

    def site(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var]]:
        if self.likely(0.45):
            return self.discrete(scope)
        law = self.rng.choice(("normal", "normal", *CONTINUOUS))
        if law == "laplace" and not self.moving:  # its density has a kink at loc
            law = "normal"
        name = self.name("x")
        real = law in ("normal", "laplace")
        loc = f"0.9*{self.smooth(scope)}" if real else "0.0"
        scale = f"exp(0.35*{self.smooth(scope)})"
        moves = law == "uniform" and self.moving and self.likely(0.5)
        if law == "uniform":
            loc, scale = (f"0.5*{self.smooth(scope)}", scale) if moves else ("0.0", "1.0")
        estimator = self.estimator(("reparam", "auto") if moves else FOR_CONTINUOUS)
        bounded = self.rng.choice((f"tanh({name})", f"sin({name})")) if real else f"sin({name})"
        var = Var(name, bounded, "real" if real else "positive", estimator in SCORES)
        draw = Draw(name, law, (loc, scale), estimator, self.mask(scope))
        if not (self.bending and self.likely(0.45)):
            return [draw], [var]
        kind = self.rng.choice((*JUMPS, *KINKS))
        if kind in JUMPS and moves:
            draw = dataclasses.replace(draw, estimator="reparam")
        at = repr(self.rng.choice((-0.3, 0.2, 0.6) if real else (0.3, 0.6)))
        if self.moving and self.likely(0.15):
            at = f"{at} + 0.3*{self.rng.choice((self.theta(), *[v.bounded for v in scope[-1:]]))}"
        bend = Bend(self.name("j"), kind, name, at)
        shape = bend.name if kind in JUMPS or kind == "clip" else f"tanh({bend.name})"
        bend_kind = "jump" if kind in JUMPS else "bounded"
        both = [var, Var(bend.name, shape, bend_kind)]
        return [draw, bend], both

    def discrete(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var]]:
        law = self.rng.choice(("bernoulli", "probability", "categorical", "logits"))
        params = [f"{self.c()}*{self.smooth(scope)}"]
        if law in ("categorical", "logits"):
            params.append(f"{self.c()}*{self.smooth(scope)}")
        name = self.name("b")
        estimator = self.estimator(FOR_DISCRETE)
        draw = Draw(name, law, tuple(params), estimator, self.mask(scope))
        return [draw], [Var(name, name, "discrete", True)]

    def many(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var]]:
        wraps, n = self.rng.choice(WRAPPED), self.rng.choice((2, 2, 3))
        apart = "expand" not in wraps
        (draw, *_), (var, *_) = self.site([*scope, STEP_OF_MANY] if apart else scope)
        where = wraps.index("mask") if "mask" in wraps else None
        masks = ["True", "False"]
        if where is not None and "event" not in wraps[:where] and "expand" not in wraps[where:]:
            masks += ["k > 0.5", "k < 0.5"]
        draw = dataclasses.replace(draw, mask=self.rng.choice(masks) if where is not None else "")
        rename = lambda source, k: source.replace(draw.name, f"{draw.name}_{k}")
        own = [
            dataclasses.replace(var, name=rename(var.name, k), bounded=rename(var.bounded, k))
            for k in range(n)
        ]
        return [Many(draw.name, n, draw, wraps)], own

    def integers(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var]]:
        """Arithmetic of one or two choices, or of those of a plate."""
        dtype = self.rng.choice(tuple(INTEGERS))
        source, n = self.rng.choice(INTEGERS[dtype]), self.name("n")
        small = SMALL[dtype]
        if self.likely(0.5):
            (a,), _ = self.discrete([*scope, INDEX])
            whole = Integer(n, dtype, (a.name,), source.format(a=a.name, b=a.name))
            by, join = (
                self.rng.choice(("vmap", "batch", "map")),
                self.rng.choice(("sum", "sum", "squares")),
            )
            plate = Plate(self.name("p"), by, self.rng.choice((2, 3)), Block((a, whole), n), join)
            value = f"{small}{'' if join == 'sum' else small}{plate.name}"
            return [plate], [Var(f"({value})", f"sin({value})", "integer", True)]
        (a,), (one,) = self.discrete(scope)
        (b,), (two,) = self.discrete([*scope, one])
        whole = Integer(n, dtype, (a.name, b.name), source.format(a=a.name, b=b.name))
        total = Var(f"({small}{n})", f"sin({small}{n})", "integer", True)
        return [a, b, whole], [one, two, total]

    def rare(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var], list[str]]:
        """An enumerated choice of small probability whose payoff is large."""
        name, by, out = self.name("b"), self.rng.choice(HOLDERS), self.name("r")
        scope = [*scope, INDEX] if by in ("vmap", "batch", "map") else scope
        p = self.rng.choice(PROBABILITIES)
        logit = f"{math.log(p):.4f} + 0.5*{self.smooth(scope)}"
        law = self.rng.choice(("bernoulli", "probability", "categorical", "logits"))
        few = law in ("bernoulli", "probability")
        params = (logit,) if few else (logit, f"{self.c()}*{self.smooth(scope)}")
        draw = Draw(name, law, params, "enum", self.mask(scope))
        event = name if few else f"{name}*(2.0 - {name})"
        payoff = f"{1 / p:.6g}*{event}*{self.rng.choice((self.theta(), self.c(), self.theta()))}"
        outer = self.rng.choice((*scope, ONE)).bounded
        block = Block((draw,), f"{payoff}*{self.smooth(scope)} + {self.c()}*{outer}")
        if by in ("vmap", "batch", "map"):
            return [Plate(out, by, self.rng.choice((2, 3)), block, "sum")], [], [out]
        if by == "loop":
            block = Block((draw,), f"{out} + {payoff} + 0.1*{out}*{name}")
            return [Loop(out, self.rng.choice((2, 3)), self.smooth(scope), block)], [], [out]
        if by == "branch":
            then = Block((), f"{payoff} + {self.c()}*{self.theta()}")
            return [draw, Branch(out, name, then, self.body(scope))], [], [out]
        if by in WRAPS:
            return [Wrap(out, by, block)], [], [out]
        if by == "inner":
            return [Inner(out, block)], [], [out]
        var = Var(name, name, "discrete", True)
        return [draw], [var], [f"{payoff}"]

    def switch(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var]]:
        (on,), (var,) = self.discrete(scope)
        if len(on.params) == 1:
            on = dataclasses.replace(
                on, law="logits", params=(*on.params, f"{self.c()}*{self.theta()}")
            )
        name = self.name("y")
        branches = [self.body(scope, (1,)), *[self.body(scope, (0, 1), nest=0.0) for _ in range(2)]]
        self.rng.shuffle(branches)
        bounded = Var(name, f"sin({name})", "bounded")
        return [on, Switch(name, on.name, tuple(branches))], [var, bounded]

    def body(self, scope: Sequence[Var], sites: Sequence[int] = (1,), nest: float = 0.2) -> Block:
        """A block that uses everything it draws."""
        steps: list[Any] = []
        own: list[Var] = []
        for _ in range(self.rng.choice(sites)):
            site = self.many if nest and self.likely(0.12) else self.site
            new, out = site([*scope, *own])
            steps += new
            own += out
            if self.likely(nest):
                inside = self.rng.choice((self.branch, self.branch, self.loop))
                new, out = inside([*scope, *own], nest=0.0)
                steps += new
                own += out
        outer = self.rng.choice((*scope, ONE)).bounded
        terms = [
            f"{self.c()}*" + (self.guarded(v, scope) if v.held and self.likely(0.15) else v.bounded)
            for v in own
        ]
        out = " + ".join([*terms, f"{self.c()}*{self.theta()}*{outer}"])
        return Block(tuple(steps), self.rng.choice((out, f"sin({out})")))

    def plate(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var], list[str]]:
        name, by, n = self.name("p"), self.rng.choice(PLATES), self.rng.choice((2, 2, 3))
        index = INDEX
        if by == "vmap" and self.likely(0.2):
            inner = Inner(self.name("e"), self.body([*scope, index]))
            block = Block((inner,), f"{self.c()}*{inner.name}")
            return [Plate(name, by, n, block, "sum")], [], [name]
        block = self.body([*scope, index], nest=0.0 if by == "batch" else 0.25)
        if self.likely(0.25):
            return [Plate(name, by, n, block, "squares")], [], [name]
        if self.rng.choice((True, False)):
            block = Block(block.steps, f"1.0 + 0.4*sin({block.out})")
            return [Plate(name, by, n, block, "prod")], [Var(name, f"sin({name})", "bounded")], []
        return [Plate(name, by, n, block, "sum")], [Var(name, f"sin({name})", "bounded")], []

    def loop(self, scope: Sequence[Var], nest: float = 0.2) -> tuple[list[Any], list[Var]]:
        name = self.name("c")
        carry = Var(name, name, "bounded")
        block = self.body([*scope, carry], nest=nest)
        block = Block(block.steps, f"tanh(0.5*{name} + {block.out})")
        start = self.smooth(scope, 0.5)
        return [Loop(name, self.rng.choice((2, 2, 3)), start, block)], [carry]

    def branch(self, scope: Sequence[Var], nest: float = 0.2) -> tuple[list[Any], list[Var]]:
        steps: list[Any] = []
        flags = [v for v in scope if v.flag]
        if flags and self.likely(0.8):
            on = self.rng.choice(flags).name
        elif nest and self.likely(0.6):
            new, out = self.discrete(scope)
            steps += new
            on = out[0].name
        else:
            on = self.rng.choice(("1.0", "0.6 + t[0]*t[0]"))
        constant = on[0] in "01"
        name = self.name("y")
        then = self.body(scope, nest=nest)
        bending, self.bending = self.bending, self.bending and not constant
        other = self.body(scope, (0, 1), nest=0.0)  # where dead, its bends would bias nothing
        self.bending = bending
        if not constant and self.rng.choice((True, False)):
            then, other = other, then
        return [*steps, Branch(name, on, then, other)], [Var(name, f"sin({name})", "bounded")]

    def wrap(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var]]:
        name, by = self.name("w"), self.rng.choice(tuple(WRAPS))
        return [Wrap(name, by, self.body(scope, (1, 2), nest=0.4))], [
            Var(name, f"sin({name})", "bounded")
        ]

    def guide(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var]]:
        name = self.name("g")
        moving, self.moving = self.moving, False  # its density is taken at other parameters too
        masking, self.masking = self.masking, 0.4
        if self.likely(0.4):
            kinds = self.plate_of_sites, self.loop, self.many, self.many
            steps, out = self.rng.choice(kinds)(scope)
            body = Block(tuple(steps), f"{self.c()}*{out[0].bounded}")
        else:
            body = self.body(scope, (1, 1, 2))
        self.moving, self.masking = moving, masking
        draws = [s for s in body.steps if isinstance(s, Draw)]
        choices = len(draws) == len(body.steps) and self.rng.choice((True, False))
        bounded = [Var(name, f"sin({name})", "bounded")]
        for suffix in ("_ld", "_at"):
            if self.likely(0.6):
                density = f"{name}{suffix}"
                bounded.append(Var(density, f"tanh(0.3*{density})", "bounded"))
        return [Guide(name, choices, body)], bounded

    def plate_of_sites(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var]]:
        name = self.name("p")
        block = self.body([*scope, INDEX], nest=0.0)
        plate = Plate(name, self.rng.choice(PLATES), 2, block, "sum")
        return [plate], [Var(name, f"sin({name})", "bounded")]

    def inner(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var], list[str]]:
        name = self.name("e")
        return [Inner(name, self.body(scope, (1, 2)))], [], [name]

    def subsample(self, scope: Sequence[Var]) -> tuple[list[Any], list[Var], list[str]]:
        name, index = self.name("s"), Var("i", "0.4*i", "bounded")
        drawn = self.rng.choice((1, 2))
        return [Subsample(name, 4, drawn, self.body([*scope, index], (0, 1)))], [], [name]


ONE = Var("1.0", "1.0", "bounded")
INDEX = Var("i", "0.5*i", "bounded")
STEP_OF_MANY = Var("k", "0.4*k", "bounded")
PLATES = "vmap", "batch", "map"
HOLDERS = "", "", *PLATES, "loop", "branch", "jit", "checkpoint", "inner"
