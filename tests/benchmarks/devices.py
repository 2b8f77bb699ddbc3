"""``python tests/benchmarks/devices.py``: objectives divided over 1, 2, 4 and 8 devices.

Virtual devices of one processor: what is counted is exact (the FLOPs of each device, the
collectives of the compiled program), times would say nothing. Ours beside the same program by hand,
with the same draws, checked equal to 1e-5. ``axes`` is what is divided: rows of the data, particles
(an array of keys), or both.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from typing import Any

DEVICES = 8
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
)

import jax  # noqa: E402  after the number of devices
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from measure import cost_of, table  # noqa: E402

import ppl  # noqa: E402
from ppl import dist  # noqa: E402

ROWS, COLUMNS, LATENT, KEYS = 2048, 16, 4, 16
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
Keys = Any


@ppl.gen
def model(w: Any, x: Any) -> None:
    z = ppl.sample("z", dist.Normal(jnp.zeros((len(x), LATENT)), 1.0).to_event(2))
    ppl.sample("x", dist.Normal(z @ w.T, 1.0).to_event(2))


@ppl.gen
def guide(w: Any, x: Any) -> None:
    ppl.sample("z", dist.Normal(jnp.tanh(x @ w), 1.0).to_event(2))


@ppl.expectation
def ours(w: Any, x: Any) -> Any:
    return ppl.elbo(model(w, x), guide(w, x), {"x": x})


def by_hand(key: Any, w: Any, x: Any) -> Any:
    normal = lambda x, m: -0.5 * (x - m) ** 2 - 0.5 * jnp.log(2 * jnp.pi)
    m = jnp.tanh(x @ w)
    z = m + jax.random.normal(key, m.shape)
    log_p = normal(z, 0.0).sum() + normal(x, z @ w.T).sum()
    return log_p - normal(z, m).sum()


def gradient(f: Any) -> Any:
    """The mean over keys of value and gradient."""
    if f is ours:
        each = lambda keys, w, x: jax.vmap(lambda k: ours.surrogate(k, w, x))(keys).mean()
    else:
        each = lambda keys, w, x: jax.vmap(lambda k: f(k, w, x))(keys).mean()
    return jax.value_and_grad(each, argnums=1)


def given() -> tuple[Any, Any, Any]:
    keys = jax.random.split(jax.random.key(0), KEYS)
    w = 0.3 * jax.random.normal(jax.random.key(1), (COLUMNS, LATENT))
    return keys, w, jax.random.normal(jax.random.key(2), (ROWS, COLUMNS))


def divided(axes: str, devices: int, kind: Any) -> tuple[Any, Any, Any]:
    """A mesh, and how keys and rows are divided."""
    data = {"data": devices, "particles": 1, "both": max(devices // 2, 1)}[axes]
    shape = (data, devices // data)
    places = np.array(jax.devices()[:devices]).reshape(shape)
    mesh = Mesh(places, ("data", "particles"), axis_types=(kind, kind))
    return mesh, P("particles"), P("data")


def in_shard_map(f: Any, mesh: Any, keys: Any, rows: Any) -> Any:
    """Each device by itself, with keys of its own; JAX adds up the derivative of what is shared."""

    def body(keys: Any, w: Any, x: Any) -> Any:
        own = jax.vmap(lambda k: jax.random.fold_in(k, jax.lax.axis_index("data")))(keys)
        n = mesh.shape["particles"]
        value, slope = gradient(f)(own, w, x)
        return jax.lax.psum(value, ("data", "particles")) / n, slope / n

    specs = (keys, P(), rows)
    return jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=(P(), P()))


def compiled(f: Any, how: str, axes: str, devices: int) -> tuple[Any, Any]:
    """The compiled program, and what it returns."""
    kind = AxisType.Explicit if how == "explicit" else AxisType.Auto
    mesh, keys, rows = divided(axes, devices, kind)
    program = in_shard_map(f, mesh, keys, rows) if how == "shard_map" else gradient(f)
    with jax.set_mesh(mesh):
        places = [NamedSharding(mesh, spec) for spec in (keys, P(), rows)]
        args = [*map(jax.device_put, given(), places)]
        code = jax.jit(program).lower(*args).compile()
        return code, jax.tree.map(np.asarray, code(*args))


def collectives(code: Any) -> dict[str, int]:
    """How often each collective is in a compiled program."""
    text = code.as_text()
    found = {
        c: len(re.findall(rf"= \S+ {c}(-start)?\(|\) {c}(-start)?\(", text)) for c in COLLECTIVES
    }
    return {c: n for c, n in found.items() if n}


@functools.cache
def alone(f: Any) -> float:
    return cost_of(compiled(f, "jit", "data", 1)[0])["flops"]


def rows(
    hows: tuple[str, ...] = ("jit", "shard_map", "explicit"),
    axes: tuple[str, ...] = ("data", "particles", "both"),
    numbers: tuple[int, ...] = (1, 2, 4, 8),
) -> list[dict[str, Any]]:
    found = []
    for how in hows:
        for axis in axes:
            for n in numbers:
                pair = {f: compiled(f, how, axis, n) for f in (ours, by_hand)}
                (own, values), (hand, wanted) = pair[ours], pair[by_hand]
                for a, b in zip(values, wanted, strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
                flops = cost_of(own)["flops"]
                found.append(
                    {
                        "how": how,
                        "axes": axis,
                        "devices": n,
                        "MFLOP a device": flops / 1e6,
                        "× one device / n": flops * n / alone(ours),
                        "by hand": cost_of(hand)["flops"] * n / alone(by_hand),
                        "collectives": str(collectives(own)),
                        "collectives by hand": str(collectives(hand)),
                    }
                )
    return found


def fits() -> dict[str, Any]:
    """A fit whose rows and keys are divided: how far from one that is not, and what is compiled."""
    count = [0]
    ends = "/jax/core/compile/backend_compile_duration"

    def listen(name: str, *args: Any, **kwargs: Any) -> None:
        count[0] += name == ends

    def fit(keys: Any, w: Any, x: Any) -> Any:
        how = {"key": keys, "steps": 10, "args": (x,), "progress": False}
        return ppl.maximize(ours, w, optax.sgd(1e-6), **how)

    some = (*given()[:2], given()[2][:256])
    alone = fit(*some)
    mesh, keys, rows = divided("both", DEVICES, AxisType.Auto)
    specs = keys, P(), rows
    args = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(some, specs, strict=True)]
    fit(*args)
    jax.monitoring.register_event_duration_secs_listener(listen)
    again = fit(*args)
    far = np.abs(np.asarray(again.history) / np.asarray(alone.history) - 1).max()
    return {"far": float(far), "compiled again": count[0], "sharding": str(again.params.sharding)}


def sums_inside() -> dict[str, list[float]]:
    """An objective with a term that is the same on all devices, and a sum over them."""
    mesh, _, rows = divided("data", DEVICES, AxisType.Auto)
    term = lambda m, z, x: -(m**2) + jax.lax.psum(-((z - x) ** 2).sum(), "data")
    own = ppl.expectation(lambda m, x: term(m, ppl.sample("z", dist.Normal(m, 1.0)), x))
    hand = lambda key, m, x: term(m, m + jax.random.normal(key), x)
    found = {}
    for name, f in (("ours", own.surrogate), ("by hand", hand)):
        body = jax.value_and_grad(lambda m, key, x, f=f: f(key, m, x))
        specs = {"mesh": mesh, "in_specs": (P(), P(), rows), "out_specs": P()}
        run = jax.jit(jax.shard_map(body, **specs))
        found[name] = [float(a) for a in run(0.3, jax.random.key(0), jnp.arange(16.0))]
    return found


def brief() -> dict[str, Any]:
    """What the tests look at, compiled quickly."""
    jax.config.update("jax_disable_most_optimizations", True)
    return {"rows": rows(axes=("both",), numbers=(DEVICES,)), "fit": fits(), "sums": sums_inside()}


if __name__ == "__main__":
    out = json.dumps(brief()) if sys.argv[1:] == ["--brief"] else table(rows())
    sys.stdout.write(out + "\n")
