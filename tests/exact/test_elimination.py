"""Exact marginals over discrete choices, by variable elimination.

Each program is held against the sum over all joint values of its free choices, of a log density
that is written here a second time, by hand: value and gradient at a relative 1e-9.
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
from jax.scipy.special import logsumexp

import ppl
from ppl import dist
from transforms import _jax
from transforms.checker import cures
from transforms.errors import UnsupportedError
from transforms.exact import contraction, side_by_side

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(1)
PARAMS = {
    "A": RNG.normal(size=(2, 2)),
    "B": RNG.normal(size=(2, 2)),
    "pi": RNG.normal(size=2),
    "m": np.array([-0.8, 1.1]),
    "s": np.array(0.7),
    "w": np.array(0.6),
}


class Model(NamedTuple):
    """A program, its log density as a function of parameters, data and free choices, the shapes
    of those (each has two values), and the data."""

    program: Callable[[Any], Any]
    density: Callable[..., Any]
    free: dict[str, tuple[int, ...]]
    data: dict[str, Any]


def normal(x: Any, m: Any, s: Any) -> Any:
    """The log density of a normal distribution."""
    return -(((x - m) / s) ** 2) / 2 - jnp.log(s) - jnp.log(2 * jnp.pi) / 2


soft = lambda l: jax.nn.log_softmax(l, -1)
rows = lambda *shape: RNG.normal(size=shape)


def pick(name: str, logits: Any) -> Any:
    return ppl.sample(name, dist.Categorical(logits=logits))


def see(m: Any, p: Any) -> Any:
    return ppl.sample("x", dist.Normal(m, p["s"]))


# --- plates ---------------------------------------------------------------------------------------


def mixture(p: Any) -> Any:
    @ppl.gen
    def g() -> None:
        jax.vmap(lambda: see(p["m"][pick("z", p["pi"])], p), axis_size=5)()

    return g()


def mixture_density(p: Any, d: Any, z: Any) -> Any:
    return jnp.sum(soft(p["pi"])[z] + normal(d["x"], p["m"][z], p["s"]))


def batched(p: Any) -> Any:
    """A plate that is the batch of a distribution."""

    @ppl.gen
    def g() -> None:
        z = ppl.sample("z", dist.Categorical(logits=jnp.broadcast_to(p["pi"], (5, 2))))
        see(p["m"][z], p)

    return g()


def mapped(p: Any) -> Any:
    @ppl.gen
    def g() -> None:
        def one(_: Any) -> Any:
            see(p["m"][pick("z", p["pi"])], p)
            return 0.0

        lax.map(one, jnp.arange(5))

    return g()


def nested(p: Any) -> Any:
    """A choice of the group and one of each member."""

    @ppl.gen
    def g() -> None:
        def group() -> None:
            c = pick("c", p["pi"])
            jax.vmap(lambda: see(p["m"][pick("z", p["A"][c])] + p["w"] * c, p), axis_size=3)()

        jax.vmap(group, axis_size=2)()

    return g()


def nested_density(p: Any, d: Any, c: Any, z: Any) -> Any:
    of_z = jnp.take_along_axis(soft(p["A"])[c], z, 1)
    mean = p["m"][z] + p["w"] * c[:, None]
    return jnp.sum(soft(p["pi"])[c]) + jnp.sum(of_z + normal(d["x"], mean, p["s"]))


def regimes(p: Any) -> Any:
    """A global choice above a plate."""

    @ppl.gen
    def g() -> None:
        c = pick("c", p["pi"])
        jax.vmap(lambda: see(p["m"][pick("z", p["A"][c])], p), axis_size=4)()

    return g()


def regimes_density(p: Any, d: Any, c: Any, z: Any) -> Any:
    return soft(p["pi"])[c] + jnp.sum(soft(p["A"])[c][z] + normal(d["x"], p["m"][z], p["s"]))


def boltzmann(p: Any) -> Any:
    """Two plates, each element of one with each of the other."""

    @ppl.gen
    def g() -> None:
        a = jax.vmap(lambda: pick("a", p["pi"]), axis_size=3)()
        b = jax.vmap(lambda: pick("b", -p["pi"]), axis_size=2)()
        ppl.factor("energy", p["w"] * jnp.sum(COUPLING * a[:, None] * b))
        see(p["m"][a].sum(), p)

    return g()


COUPLING = rows(3, 2)


def boltzmann_density(p: Any, d: Any, a: Any, b: Any) -> Any:
    prior = jnp.sum(soft(p["pi"])[a]) + jnp.sum(soft(-p["pi"])[b])
    return prior + p["w"] * (a @ COUPLING @ b) + normal(d["x"], p["m"][a].sum(), p["s"])


# --- chains ---------------------------------------------------------------------------------------


def hmm(p: Any, length: int = 5) -> Any:
    @ppl.gen
    def g() -> None:
        def step(z: Any, _: Any) -> Any:
            z = pick("z", p["A"][z])
            see(p["m"][z], p)
            return z, None

        lax.scan(step, 0, length=length)

    return g()


def path(log_a: Any, z: Any, start: Any = 0) -> Any:
    """The log probability of a path."""
    before = jnp.concatenate([jnp.asarray(start)[None], z[:-1]])
    return jnp.sum(log_a[before, z])


def hmm_density(p: Any, d: Any, z: Any) -> Any:
    return path(soft(p["A"]), z) + jnp.sum(normal(d["x"], p["m"][z], p["s"]))


def backwards(p: Any) -> Any:
    @ppl.gen
    def g() -> None:
        def step(z: Any, _: Any) -> Any:
            z = pick("z", p["A"][z])
            see(p["m"][z], p)
            return z, None

        lax.scan(step, 1, length=5, reverse=True)

    return g()


def backwards_density(p: Any, d: Any, z: Any) -> Any:
    return path(soft(p["A"]), z[::-1], 1) + jnp.sum(normal(d["x"], p["m"][z], p["s"]))


def sequence(p: Any, m: Any) -> Any:
    """The last state of a hidden Markov model of three steps, with means ``m``."""

    def step(z: Any, _: Any) -> Any:
        z = pick("z", p["A"][z])
        see(m[z], p)
        return z, None

    return lax.scan(step, 0, length=3)[0]


def vmapped(p: Any) -> Any:
    """Sequences with parameters of their own."""

    @ppl.gen
    def g() -> None:
        jax.vmap(lambda m: sequence(p, m))(jnp.stack([p["m"], p["m"] * p["w"]]))

    return g()


def vmapped_density(p: Any, d: Any, z: Any) -> Any:
    means = jnp.stack([p["m"], p["m"] * p["w"]])
    one = lambda m, x, z: path(soft(p["A"]), z) + jnp.sum(normal(x, m[z], p["s"]))
    return jnp.sum(jax.vmap(one)(means, d["x"], z))


def mapped_chains(p: Any) -> Any:
    @ppl.gen
    def g() -> None:
        lax.map(lambda m: 1.0 * sequence(p, m), jnp.stack([p["m"], p["m"] * p["w"]]))

    return g()


def chain_of_plates(p: Any) -> Any:
    """A loop whose carry is a plate."""

    @ppl.gen
    def g() -> None:
        def step(z: Any, _: Any) -> Any:
            def one(z: Any) -> Any:
                z = pick("z", p["A"][z])
                see(p["m"][z], p)
                return z

            return jax.vmap(one)(z), None

        lax.scan(step, jnp.zeros(2, int), length=3)

    return g()


def chain_of_plates_density(p: Any, d: Any, z: Any) -> Any:
    one = lambda x, z: path(soft(p["A"]), z) + jnp.sum(normal(x, p["m"][z], p["s"]))
    return jnp.sum(jax.vmap(one, (1, 1))(d["x"], z))


def factorial(p: Any) -> Any:
    @ppl.gen
    def g() -> None:
        def step(c: Any, _: Any) -> Any:
            a, b = pick("a", p["A"][c[0]]), pick("b", p["B"][c[1]])
            see(p["m"][a] + p["w"] * b * a - b, p)
            return (a, b), None

        lax.scan(step, (0, 1), length=4)

    return g()


def factorial_density(p: Any, d: Any, a: Any, b: Any) -> Any:
    mean = p["m"][a] + p["w"] * b * a - b
    paths = path(soft(p["A"]), a) + path(soft(p["B"]), b, 1)
    return paths + jnp.sum(normal(d["x"], mean, p["s"]))


def coupled(p: Any) -> Any:
    """The second chain follows the first."""

    @ppl.gen
    def g() -> None:
        def step(c: Any, _: Any) -> Any:
            a = pick("a", p["A"][c[0]])
            b = pick("b", p["B"][a] + p["w"] * c[1])
            see(p["m"][b], p)
            return (a, b * 1.0), None

        lax.scan(step, (0, 0.0), length=4)

    return g()


def coupled_density(p: Any, d: Any, a: Any, b: Any) -> Any:
    before = jnp.concatenate([jnp.zeros(1), b[:-1]])
    law = soft(p["B"][a] + p["w"] * before[:, None] * jnp.ones(2))
    of_b = jnp.take_along_axis(law, b[:, None], 1)
    return path(soft(p["A"]), a) + of_b.sum() + jnp.sum(normal(d["x"], p["m"][b], p["s"]))


def recurrent(p: Any) -> Any:
    """A deterministic state beside the chain, from inputs and from what is observed."""

    @ppl.gen
    def g() -> None:
        def step(c: Any, u: Any) -> Any:
            z, h = c
            z = pick("z", p["A"][z] * h)
            x = see(p["m"][z] + h, p)
            return (z, jnp.tanh(p["w"] * h + x + u)), None

        lax.scan(step, (0, 0.3), INPUTS)

    return g()


INPUTS = rows(5)


def recurrent_density(p: Any, d: Any, z: Any) -> Any:
    total, before, h = 0.0, 0, 0.3
    for t in range(5):
        total += soft(p["A"][before] * h)[z[t]] + normal(d["x"][t], p["m"][z[t]] + h, p["s"])
        before, h = z[t], jnp.tanh(p["w"] * h + d["x"][t] + INPUTS[t])
    return total


def driven(p: Any) -> Any:
    """The transition depends on an input."""

    @ppl.gen
    def g() -> None:
        def step(z: Any, u: Any) -> Any:
            z = pick("z", p["A"][z] * u)
            see(p["m"][z] * u, p)
            return z, None

        lax.scan(step, 1, INPUTS)

    return g()


def driven_density(p: Any, d: Any, z: Any) -> Any:
    before = jnp.concatenate([jnp.ones(1, int), z[:-1]])
    law = soft(p["A"][before] * INPUTS[:, None])
    mean = p["m"][z] * INPUTS
    return jnp.take_along_axis(law, z[:, None], 1).sum() + normal(d["x"], mean, p["s"]).sum()


def selected(p: Any) -> Any:
    """A global choice selects the transition."""

    @ppl.gen
    def g() -> None:
        c = pick("c", p["pi"])
        law = jnp.stack([p["A"], p["B"]])[c]

        def step(z: Any, _: Any) -> Any:
            z = pick("z", law[z])
            see(p["m"][z], p)
            return z, None

        lax.scan(step, 0, length=4)

    return g()


def selected_density(p: Any, d: Any, c: Any, z: Any) -> Any:
    law = soft(jnp.stack([p["A"], p["B"]])[c])
    return soft(p["pi"])[c] + path(law, z) + jnp.sum(normal(d["x"], p["m"][z], p["s"]))


def started(p: Any) -> Any:
    """The first state is drawn before the loop."""

    @ppl.gen
    def g() -> None:
        first = pick("first", p["pi"])

        def step(z: Any, _: Any) -> Any:
            z = pick("z", p["A"][z])
            see(p["m"][z], p)
            return z, None

        lax.scan(step, first, length=4)

    return g()


def started_density(p: Any, d: Any, first: Any, z: Any) -> Any:
    emitted = jnp.sum(normal(d["x"], p["m"][z], p["s"]))
    return soft(p["pi"])[first] + path(soft(p["A"]), z, first) + emitted


def read_after(p: Any) -> Any:
    @ppl.gen
    def g() -> None:
        def step(z: Any, _: Any) -> Any:
            z = pick("z", p["A"][z])
            return z, z

        _, z = lax.scan(step, 0, length=5)
        jax.vmap(lambda z: see(p["m"][z], p))(z)

    return g()


def read_twice(p: Any) -> Any:
    """A second loop over the states, with one of them and the one before."""

    @ppl.gen
    def g() -> None:
        def step(z: Any, _: Any) -> Any:
            z = pick("z", p["A"][z])
            return z, z

        def emit(before: Any, z: Any) -> Any:
            see(p["m"][z] + p["w"] * before, p)
            return z, None

        _, z = lax.scan(step, 0, length=5)
        lax.scan(emit, 1, z)

    return g()


def read_twice_density(p: Any, d: Any, z: Any) -> Any:
    mean = p["m"][z] + p["w"] * jnp.concatenate([jnp.ones(1), z[:-1]])
    return path(soft(p["A"]), z) + jnp.sum(normal(d["x"], mean, p["s"]))


def second_order(p: Any) -> Any:
    @ppl.gen
    def g() -> None:
        def step(c: Any, _: Any) -> Any:
            z = pick("z", p["A"][c[0]] + p["B"][c[1]])
            see(p["m"][z], p)
            return (c[1], z), None

        lax.scan(step, (0, 1), length=5)

    return g()


def second_order_density(p: Any, d: Any, z: Any) -> Any:
    one, two = (jnp.concatenate([jnp.array(s), z])[: len(z)] for s in ([1], [0, 1]))
    law = soft(p["A"][two] + p["B"][one])
    emitted = jnp.sum(normal(d["x"], p["m"][z], p["s"]))
    return jnp.take_along_axis(law, z[:, None], 1).sum() + emitted


def counted(p: Any) -> Any:
    """What is seen depends on all states so far."""

    @ppl.gen
    def g() -> None:
        def step(c: Any, _: Any) -> Any:
            z = pick("z", p["A"][c[0]])
            see(p["w"] * (c[1] + z), p)
            return (z, c[1] + z), None

        lax.scan(step, (0, 0), length=5)

    return g()


def counted_density(p: Any, d: Any, z: Any) -> Any:
    return path(soft(p["A"]), z) + jnp.sum(normal(d["x"], p["w"] * jnp.cumsum(z), p["s"]))


def third_order(p: Any) -> Any:
    @ppl.gen
    def g() -> None:
        def step(c: Any, _: Any) -> Any:
            z = pick("z", p["A"][c[0]] * c[1] + p["B"][c[2]])
            see(p["m"][z] + p["w"] * c[1], p)
            return (c[1], c[2], z), None

        lax.scan(step, (0, 1, 1), length=6)

    return g()


def third_order_density(p: Any, d: Any, z: Any) -> Any:
    late = lambda *start: jnp.concatenate([jnp.array(start), z])[: len(z)]
    law = soft(p["A"][late(0, 1, 1)] * late(1, 1)[:, None] + p["B"][late(1)])
    emitted = jnp.sum(normal(d["x"], p["m"][z] + p["w"] * late(1, 1), p["s"]))
    return jnp.take_along_axis(law, z[:, None], 1).sum() + emitted


def two_orders(p: Any) -> Any:
    """Two chains that follow each other, one of the second order."""

    @ppl.gen
    def g() -> None:
        def step(c: Any, _: Any) -> Any:
            a = pick("a", p["A"][c[0]] * (1.0 + c[1]))
            b = pick("b", p["B"][c[2]] + p["w"] * c[1])
            see(p["m"][a] + p["w"] * b * a - b, p)
            return (c[1], a, b), None

        lax.scan(step, (0, 1, 1), length=4)

    return g()


def two_orders_density(p: Any, d: Any, a: Any, b: Any) -> Any:
    late = lambda z, *start: jnp.concatenate([jnp.array(start), z])[: len(z)]
    of_a = soft(p["A"][late(a, 0, 1)] * (1.0 + late(a, 1)[:, None]))
    of_b = soft(p["B"][late(b, 1)] + p["w"] * late(a, 1)[:, None])
    laws = [jnp.take_along_axis(l, z[:, None], 1).sum() for l, z in ((of_a, a), (of_b, b))]
    return sum(laws) + jnp.sum(normal(d["x"], p["m"][a] + p["w"] * b * a - b, p["s"]))


def plates_inside(p: Any) -> Any:
    """In each step a plate of choices, that also depends on the step before."""

    @ppl.gen
    def g() -> None:
        def step(before: Any, _: Any) -> Any:
            z = pick("z", p["A"][before])
            law = p["B"][z] + p["w"] * before
            jax.vmap(lambda: see(p["m"][pick("w", law)], p), axis_size=2)()
            return z, None

        lax.scan(step, 0, length=3)

    return g()


def plates_inside_density(p: Any, d: Any, z: Any, w: Any) -> Any:
    before = jnp.concatenate([jnp.zeros(1, int), z[:-1]])
    law = soft(p["B"][z] + p["w"] * before[:, None])
    of_w = jnp.take_along_axis(law, w, 1).sum()
    return path(soft(p["A"]), z) + of_w + jnp.sum(normal(d["x"], p["m"][w], p["s"]))


def after(p: Any) -> Any:
    """What follows the loop depends on its last carry."""

    @ppl.gen
    def g() -> None:
        def step(c: Any, _: Any) -> Any:
            z = pick("z", p["A"][c[1]])
            see(p["m"][z], p)
            return (c[1], z), None

        one, two = lax.scan(step, (0, 1), length=4)[0]
        w = pick("w", p["B"][two] * (1.0 + one))
        ppl.sample("y", dist.Normal(p["m"][w] + p["w"] * two, 1.0))

    return g()


def after_density(p: Any, d: Any, z: Any, w: Any) -> Any:
    of_w = soft(p["B"][z[-1]] * (1.0 + z[-2]))[w]
    seen = jnp.sum(normal(d["x"], p["m"][z], p["s"]))
    end = normal(d["y"], p["m"][w] + p["w"] * z[-1], 1.0)
    return path(soft(p["A"]), z, 1) + seen + of_w + end


def two_loops(p: Any) -> Any:
    """The second begins where the first ends."""

    @ppl.gen
    def g() -> None:
        def warm(z: Any, _: Any) -> Any:
            return pick("a", p["B"][z]), None

        def step(z: Any, _: Any) -> Any:
            z = pick("z", p["A"][z])
            see(p["m"][z], p)
            return z, None

        lax.scan(step, lax.scan(warm, 1, length=3)[0], length=3)

    return g()


def two_loops_density(p: Any, d: Any, a: Any, z: Any) -> Any:
    seen = jnp.sum(normal(d["x"], p["m"][z], p["s"]))
    return path(soft(p["B"]), a, 1) + path(soft(p["A"]), z, a[-1]) + seen


def remembered(p: Any) -> Any:
    """The second loop carries the end of the first along, in a state that never forgets it."""

    @ppl.gen
    def g() -> None:
        def warm(c: Any, _: Any) -> Any:
            z = pick("a", p["B"][c[1]])
            return (c[1], z), None

        def step(c: Any, u: Any) -> Any:
            y, h, late = c
            y = pick("z", p["A"][y] + h)
            see(p["m"][y] * h + late, p)
            return (y, jnp.tanh(h + p["w"] * end + u), h), None

        before, end = lax.scan(warm, (0, 1), length=3)[0]
        lax.scan(step, (before, 0.3, 0.0), INPUTS[:4])

    return g()


def remembered_density(p: Any, d: Any, a: Any, z: Any) -> Any:
    total, before, h, late = path(soft(p["B"]), a, 1), a[1], 0.3, 0.0
    for t in range(4):
        law = soft(p["A"][before] + h)[z[t]]
        total += law + normal(d["x"][t], p["m"][z[t]] * h + late, p["s"])
        before, h, late = z[t], jnp.tanh(h + p["w"] * a[2] + INPUTS[t]), h
    return total


def grid(p: Any) -> Any:
    """Each choice depends on the one above and the one to the left."""

    @ppl.gen
    def g() -> None:
        z: dict[Any, Any] = {}
        for i, j in itertools.product(range(2), range(3)):
            logits = p["A"][z.get((i - 1, j), 0)] + p["B"][z.get((i, j - 1), 1)]
            z[i, j] = pick(f"z{i}{j}", logits)
            ppl.sample(f"x{i}{j}", dist.Normal(p["m"][z[i, j]], p["s"]))

    return g()


def grid_density(p: Any, d: Any, *z: Any) -> Any:
    at = dict(zip(itertools.product(range(2), range(3)), z, strict=True))
    total = 0.0
    for (i, j), here in at.items():
        law = soft(p["A"][at.get((i - 1, j), 0)] + p["B"][at.get((i, j - 1), 1)])
        total += law[here] + normal(d[f"x{i}{j}"], p["m"][here], p["s"])
    return total


GRID = [f"{i}{j}" for i in range(2) for j in range(3)]

MODELS = {
    "mixture": Model(mixture, mixture_density, {"z": (5,)}, {"x": rows(5)}),
    "batch": Model(batched, mixture_density, {"z": (5,)}, {"x": rows(5)}),
    "lax.map": Model(mapped, mixture_density, {"z": (5,)}, {"x": rows(5)}),
    "nested plates": Model(nested, nested_density, {"c": (2,), "z": (2, 3)}, {"x": rows(2, 3)}),
    "global choice": Model(regimes, regimes_density, {"c": (), "z": (4,)}, {"x": rows(4)}),
    "Boltzmann machine": Model(
        boltzmann, boltzmann_density, {"a": (3,), "b": (2,)}, {"x": np.array(0.4)}
    ),
    "hmm": Model(hmm, hmm_density, {"z": (5,)}, {"x": rows(5)}),
    "hmm of one step": Model(lambda p: hmm(p, 1), hmm_density, {"z": (1,)}, {"x": rows(1)}),
    "hmm of two steps": Model(lambda p: hmm(p, 2), hmm_density, {"z": (2,)}, {"x": rows(2)}),
    "from the end": Model(backwards, backwards_density, {"z": (5,)}, {"x": rows(5)}),
    "several sequences": Model(vmapped, vmapped_density, {"z": (2, 3)}, {"x": rows(2, 3)}),
    "sequences by lax.map": Model(mapped_chains, vmapped_density, {"z": (2, 3)}, {"x": rows(2, 3)}),
    "chain of plates": Model(
        chain_of_plates, chain_of_plates_density, {"z": (3, 2)}, {"x": rows(3, 2)}
    ),
    "factorial": Model(factorial, factorial_density, {"a": (4,), "b": (4,)}, {"x": rows(4)}),
    "coupled": Model(coupled, coupled_density, {"a": (4,), "b": (4,)}, {"x": rows(4)}),
    "recurrent": Model(recurrent, recurrent_density, {"z": (5,)}, {"x": rows(5)}),
    "driven": Model(driven, driven_density, {"z": (5,)}, {"x": rows(5)}),
    "selected": Model(selected, selected_density, {"c": (), "z": (4,)}, {"x": rows(4)}),
    "first state outside": Model(
        started, started_density, {"first": (), "z": (4,)}, {"x": rows(4)}
    ),
    "read after": Model(read_after, hmm_density, {"z": (5,)}, {"x": rows(5)}),
    "read twice": Model(read_twice, read_twice_density, {"z": (5,)}, {"x": rows(5)}),
    "second order": Model(second_order, second_order_density, {"z": (5,)}, {"x": rows(5)}),
    "third order": Model(third_order, third_order_density, {"z": (6,)}, {"x": rows(6)}),
    "two orders": Model(two_orders, two_orders_density, {"a": (4,), "b": (4,)}, {"x": rows(4)}),
    "plates inside": Model(
        plates_inside, plates_inside_density, {"z": (3,), "w": (3, 2)}, {"x": rows(3, 2)}
    ),
    "after the loop": Model(
        after, after_density, {"z": (4,), "w": ()}, {"x": rows(4), "y": np.array(0.3)}
    ),
    "two loops": Model(two_loops, two_loops_density, {"a": (3,), "z": (3,)}, {"x": rows(3)}),
    "remembered": Model(remembered, remembered_density, {"a": (3,), "z": (4,)}, {"x": rows(4)}),
    "grid": Model(
        grid, grid_density, {f"z{at}": () for at in GRID}, {f"x{at}": rows() for at in GRID}
    ),
    "all so far": Model(counted, counted_density, {"z": (5,)}, {"x": rows(5)}),
}


def joint(model: Model, p: Any) -> Any:
    """The log density of all joint values."""
    return jax.vmap(lambda *z: model.density(p, model.data, *z))(*joint_values(model))


def marginal(model: Model, p: Any, key: Any = None) -> Any:
    g = ppl.marginal(model.program(p), keep=list(model.data), by=ppl.enumeration())
    return g.log_density(model.data, key)


@functools.cache
def exact(name: str) -> Any:
    """By brute force: value, gradient, and the log density of all joint values given the data."""

    def f(p: Any) -> Any:
        log_p = joint(MODELS[name], p)
        value = logsumexp(log_p)
        return value, log_p - value

    f = jax.value_and_grad(f, has_aux=True)
    (value, log_p), grad = jax.device_get(ztest.compiled(f)(jax.tree.map(jnp.asarray, PARAMS)))
    return value, grad, log_p


def compare(name: str, found: Callable[[Any], Any]) -> None:
    run = ztest.compiled(jax.value_and_grad(found))
    params = jax.tree.map(jnp.asarray, PARAMS)

    def test() -> None:
        (value, grad), right = run(params), exact(name)
        np.testing.assert_allclose(value, right[0], rtol=1e-9)
        for k, g in grad.items():
            np.testing.assert_allclose(g, right[1][k], rtol=1e-9, atol=1e-11, err_msg=k)

    kept.passed(run, [params], [MODELS[name], PARAMS], test)


OUTSIDE = (
    "mixture",
    "lax.map",
    "nested plates",
    "Boltzmann machine",
    "hmm",
    "sequences by lax.map",
    "selected",
    "read twice",
)
"""Whose gradients are taken outside of an objective too; the values are, of all, with the draws."""


@pytest.mark.parametrize("name", OUTSIDE)
def test_marginals_are_exact(name: str) -> None:
    compare(name, lambda p: marginal(MODELS[name], p, jax.random.key(0)))


@pytest.mark.parametrize("name", MODELS)
def test_marginals_are_exact_in_an_objective(name: str) -> None:
    objective = ppl.expectation(lambda p: marginal(MODELS[name], p))
    compare(name, lambda p: objective.surrogate(jax.random.key(0), p))


# --- draws ----------------------------------------------------------------------------------------


def joint_values(model: Model) -> list[np.ndarray]:
    """All joint values, for each choice of the model."""
    sizes = [int(np.prod(s)) for s in model.free.values()]
    every = np.array(list(itertools.product(range(2), repeat=sum(sizes))))
    parts = np.split(every, np.cumsum(sizes)[:-1], axis=1)
    return [a.reshape(-1, *s) for a, s in zip(parts, model.free.values(), strict=True)]


def posterior(model: Model, p: Any) -> Any:
    """The log density of all joint values given the data, by brute force."""
    log_p = joint(model, p)
    return log_p - logsumexp(log_p)


def number(model: Model, choices: Any) -> Any:
    """Which of the joint values it is."""
    bits = jnp.concatenate([jnp.ravel(choices[name]) for name in model.free])
    return bits @ (2 ** jnp.arange(len(bits))[::-1])


@pytest.mark.parametrize("name", MODELS)
def test_draws_are_from_the_posterior(name: str) -> None:
    """Their density is exact, and every joint value comes as often as it should.

    Values of a probability under .005 (100 of 20,000 draws) count together.
    """
    model, params = MODELS[name], jax.tree.map(jnp.asarray, PARAMS)
    q = ppl.normalize(model.program(params), model.data, by=ppl.enumeration())

    def drawn(key: Any) -> Any:
        trace = q.simulate(key)
        return number(model, trace.choices), trace.log_density

    def test() -> None:
        log_p = exact(name)[2]
        p = np.exp(log_p)
        often = p >= 0.005
        assert often.sum() > 1

        def one(key: Any) -> dict[str, Any]:
            which, log_density = drawn(key)
            off = jnp.abs(log_density - jnp.asarray(log_p)[which])
            return {"which": jax.nn.one_hot(which, len(p))[often], "off": jnp.maximum(off, 1e-9)}

        ztest.check(one, {"which": p[often], "off": 1e-9})

    kept.passed(ztest.compiled(drawn), [jax.random.key(0)], [model, PARAMS], test)


@pytest.mark.parametrize("name", ["nested plates", "hmm", "coupled"])
def test_gradients_of_posterior_means_are_unbiased(name: str) -> None:
    """Of how often the choices are 1, squared: by whatever estimators are chosen."""
    model, params = MODELS[name], jax.tree.map(jnp.asarray, PARAMS)
    count = lambda zs: sum(jnp.sum(z) for z in zs) ** 2.0

    @ppl.expectation
    def mean(p: Any) -> Any:
        q = ppl.normalize(model.program(p), model.data, by=ppl.enumeration()).simulate()
        return count([q.choices[name] for name in model.free])

    def exact(p: Any) -> Any:
        return jnp.exp(posterior(model, p)) @ jax.vmap(lambda *z: count(z))(*joint_values(model))

    right = ztest.compiled(jax.value_and_grad(exact))(params)
    ztest.check(lambda key: mean.value_and_grad(key, params), right)


# --- sizes that need the elimination --------------------------------------------------------------


def by_recursion(p: Any, x: Any) -> Any:
    """The hidden Markov model by the forward recursion."""
    law, seen = soft(p["A"]), normal(x[:, None], p["m"], p["s"])
    alpha, _ = lax.scan(
        lambda alpha, e: (logsumexp(alpha[:, None] + law, 0) + e, None),
        jnp.array([0.0, -jnp.inf]),
        seen,
    )
    return logsumexp(alpha)


def test_a_long_chain_is_the_forward_recursion() -> None:
    x = np.random.default_rng(5).normal(size=300)
    params = jax.tree.map(jnp.asarray, PARAMS)
    model = Model(lambda p: hmm(p, 300), hmm_density, {}, {"x": x})
    mine = jax.value_and_grad(lambda p: marginal(model, p, jax.random.key(0)))
    right = jax.value_and_grad(lambda p: by_recursion(p, jnp.asarray(x)))
    (value, grad), right = ztest.compiled(lambda p: (mine(p), right(p)))(params)
    np.testing.assert_allclose(value, right[0], rtol=1e-9)
    for k in ("A", "m", "s"):
        np.testing.assert_allclose(grad[k], right[1][k], rtol=1e-9)


def test_a_large_plate_is_a_product() -> None:
    x = np.random.default_rng(5).normal(size=1000)
    params = jax.tree.map(jnp.asarray, PARAMS)

    @ppl.gen
    def g(p: Any) -> None:
        jax.vmap(lambda: see(p["m"][pick("z", p["pi"])], p), axis_size=1000)()

    mine = lambda p: marginal(Model(g, mixture_density, {}, {"x": x}), p, jax.random.key(0))
    right = lambda p: logsumexp(soft(p["pi"]) + normal(x[:, None], p["m"], p["s"]), 1).sum()
    both = ztest.compiled(lambda p: [jax.value_and_grad(f)(p) for f in (mine, right)])
    (value, grad), (wanted, slopes) = both(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-9)
    for k, g_ in slopes.items():
        np.testing.assert_allclose(grad[k], g_, rtol=1e-9, atol=1e-11)


def largest(length: int) -> int:
    """The elements of the largest array that the marginal of a chain computes with."""
    model = Model(lambda p: hmm(p, length), hmm_density, {}, {"x": np.zeros(length)})
    params = jax.tree.map(jnp.asarray, PARAMS)

    def of(jaxpr: Any) -> int:
        mine = [int(np.prod(v.aval.shape)) for eqn in jaxpr.eqns for v in eqn.outvars]
        subs = [of(s.jaxpr) for eqn in jaxpr.eqns for s in _jax.sub_jaxprs(eqn)]
        return max([0, *mine, *subs])

    f = jax.grad(lambda p: marginal(model, p, jax.random.key(0)))
    return of(jax.make_jaxpr(f)(params).jaxpr)


def test_arrays_grow_linearly_with_a_chain() -> None:
    assert largest(1000) <= 10.5 * largest(100)


# --- what is refused ------------------------------------------------------------------------------


@ppl.gen
def long_count(p: Any) -> None:
    def step(c: Any, _: Any) -> Any:
        z = pick("z", p["A"][c[0]])
        see(p["w"] * (c[1] + z), p)
        return (z, c[1] + z), None

    lax.scan(step, (0, 0), length=30)


@ppl.gen
def long_sum(p: Any) -> None:
    z = jax.vmap(lambda: pick("z", p["pi"]), axis_size=30)()
    ppl.sample("x", dist.Normal(jnp.sum(z) * jnp.ones(30), 1.0))


@ppl.gen
def long_boltzmann(p: Any) -> None:
    a = jax.vmap(lambda: pick("z", p["pi"]), axis_size=30)()
    b = jax.vmap(lambda: pick("b", p["pi"]), axis_size=30)()
    ppl.factor("energy", p["w"] * jnp.sum(a[:, None] * b))
    ppl.sample("x", dist.Normal(jnp.zeros(30), 1.0))


LONG = {"chain": long_count, "sum": long_sum, "Boltzmann machine": long_boltzmann}


@pytest.mark.parametrize("name", LONG)
def test_what_would_take_too_many_values_is_refused(name: str) -> None:
    params = jax.tree.map(jnp.asarray, PARAMS)
    model = Model(LONG[name], hmm_density, {}, {"x": np.zeros(30)})
    with pytest.raises(UnsupportedError) as error:
        marginal(model, params, jax.random.key(0))
    message = str(error.value)
    for part in ("'z' at ", "test_elimination.py:", "2**30 values", "ppl.importance(n, proposal)"):
        assert part in message, message


def test_a_large_grid_is_refused_with_the_order() -> None:
    """A front of 5 variables of 32 values each, though each term has three."""

    @ppl.gen
    def g() -> None:
        z: dict[Any, Any] = {}
        for i, j in itertools.product(range(5), range(5)):
            logits = z.get((i - 1, j), 0) - z.get((i, j - 1), 0) * jnp.arange(32.0)
            z[i, j] = pick(f"z{i}_{j}", logits)
        ppl.sample("x", dist.Normal(1.0 * z[4, 4], 1.0))

    with pytest.raises(UnsupportedError) as error:
        jax.make_jaxpr(ppl.marginal(g(), ["x"], ppl.enumeration()).log_density)({"x": 0.0})
    message = str(error.value)
    for part in ("too many joint values", "at most 1,048,576", "best order found", "'z"):
        assert part in message, message


# --- mutants --------------------------------------------------------------------------------------


def differs(name: str) -> None:
    """Assert that the marginal is off by more than rounding."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    found = ztest.compiled(lambda p: marginal(MODELS[name], p, jax.random.key(0)))(params)
    assert abs(found - exact(name)[0]) > 1e-3


def test_draws_that_ignore_what_was_drawn_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = contraction.Summed.draw

    def mutant(self: Any, plan: Any, classes: Any, look: Any, pick: Any) -> Any:
        return draw(self, plan, classes, lambda d: jnp.zeros_like(look(d)), pick)

    monkeypatch.setattr(contraction.Summed, "draw", mutant)
    with pytest.raises(AssertionError):
        test_draws_are_from_the_posterior("global choice")


def test_a_chain_without_lag_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The carry comes from the same step."""
    scan = side_by_side.Worlds._scan
    monkeypatch.setattr(
        side_by_side.Worlds, "_scan", lambda self, eqn, ins: scan(self, eqn, ins[:1] * len(ins))
    )
    differs("hmm")


@pytest.mark.parametrize("name", ["mixture", "nested plates", "several sequences"])
def test_a_dropped_product_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One element of a plate stands for all."""
    reduced = contraction.reduced

    def mutant(plan: Any, t: Any, algebra: Any) -> Any:
        out = reduced(plan, t, algebra)
        if t.value is None or t.classes == out.classes:
            return out
        n = len(t.digits)
        sizes = [t.value.shape[n + k] for k, c in enumerate(t.classes) if c not in out.classes]
        return dataclasses.replace(out, value=out.value / np.prod(sizes))

    monkeypatch.setattr(contraction, "reduced", mutant)
    differs(name)


@pytest.mark.parametrize("shapes", [((30, 1), (30, 50)), ((30, 1), (1, 50)), ((30, 50),) * 2])
def test_large_tables_are_differentiated_as_their_sum_is(shapes: Any) -> None:
    """In one of them, in both, forwards, backwards and twice, alone and side by side."""
    tables = [RNG.normal(size=shape) for shape in shapes]
    ours = lambda x, y: jnp.sum(contraction.log_sum_exp(contraction.log_product(x, y), 0) ** 2)
    by_hand = lambda x, y: jnp.sum(logsumexp(x + y, 0) ** 2)

    def all_of(f: Any) -> Any:
        twice = jax.hessian(lambda s, t: f(s * tables[0], t * tables[1]), (0, 1))
        each = jax.vmap(jax.grad(f, (0, 1)), (0, None))(jnp.stack(tables[:1] * 2), tables[1])
        alone = [jax.grad(f, i)(*tables) for i in (0, 1)]
        return f(*tables), each, alone, jax.jvp(f, tables, tables), twice(1.0, 1.0)

    same = functools.partial(np.testing.assert_allclose, rtol=1e-9)
    jax.tree.map(same, jax.jit(lambda: all_of(ours))(), jax.jit(lambda: all_of(by_hand))())


# --- the choices that an exact sum is given -------------------------------------------------------


@ppl.gen
def mixed(n: int) -> None:
    w = ppl.sample("w", dist.Dirichlet(jnp.ones(3)))
    mu = jax.vmap(lambda: ppl.sample("mu", dist.Normal(0.0, 3.0)), axis_size=3)()

    def point() -> None:
        z = ppl.sample("z", dist.Categorical(w))
        ppl.sample("x", dist.Normal(mu[z], 1.0))

    jax.vmap(point, axis_size=n)()


@ppl.gen
def chained(n: int) -> None:
    rows = jax.vmap(lambda: ppl.sample("w", dist.Dirichlet(jnp.ones(3))), axis_size=3)()
    mu = jax.vmap(lambda: ppl.sample("mu", dist.Normal(0.0, 3.0)), axis_size=3)()

    def step(z: Any, _: None) -> Any:
        z = ppl.sample("z", dist.Categorical(rows[z]))
        return z, ppl.sample("x", dist.Normal(mu[z], 1.0))

    jax.lax.scan(step, 0, length=n)


@pytest.mark.parametrize("model", [mixed, chained], ids=["mixed", "chained"])
@pytest.mark.parametrize("n", [4, 1000])
def test_they_stay_pathwise(model: Any, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum is known to be smooth, so that the checker evaluates nothing of it, whatever its
    size, and a draw of a Dirichlet is inside of the support."""
    monkeypatch.setattr(cures, "gone", lambda *args: pytest.fail("an equation is looked at"))

    @ppl.gen
    def guide(p: Any) -> None:
        shape = (3, 3) if model is chained else (3,)
        ppl.sample("w", dist.Dirichlet(jnp.exp(p) * jnp.ones(shape)).to_event(len(shape) - 1))
        jax.vmap(lambda: ppl.sample("mu", dist.Normal(p, 1.0)), axis_size=3)()

    @ppl.expectation
    def elbo(p: Any) -> jax.Array:
        summed = ppl.marginal(model(n), keep=["w", "mu", "x"], by=ppl.enumeration())
        return ppl.elbo(summed, guide(p), {"x": jnp.linspace(-2.0, 2.0, n)})

    told = elbo.explain(0.3)
    assert str(told).count("reparam ") == 2 and "reinforce" not in str(told), str(told)
    assert not told.findings
