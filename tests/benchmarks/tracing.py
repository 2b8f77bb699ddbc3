"""The time to trace and lower a gradient of a Python loop over sites, beside NumPyro.

Model and guide are the same in both: sites that are independent, or a chain in which each depends
on the one before. Functions are made anew for each measurement, as in a first run; a measurement is
the processor time of ``jax.jit(gradient).trace(...).lower()``, the two libraries in turn.

    python tests/benchmarks/tracing.py [--sites 100 300] [--repeats 3]

NumPyro has the pathwise gradient (``Trace_ELBO``), the score (``TraceGraph_ELBO``) and, with funsor
(``pip install funsor``), enumeration (``TraceEnum_ELBO``), of 25 sites at most: each takes an axis.
The other rows are measured beside its score or pathwise gradient of the same model and guide.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import importlib.util
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from measure import Row, gradient, save, table
from numpyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from scan_compile import equations

import ppl

funsor: Any = None
if importlib.util.find_spec("funsor"):
    funsor = importlib.import_module("numpyro.contrib.funsor")

KEY = jax.random.key(0)
Draw = Callable[[str, Any], Any]


@dataclasses.dataclass(frozen=True)
class Sites:
    """Sites that are latent with an observation each, in both libraries."""

    normal: bool
    chain: bool
    estimator: Callable[[], ppl.Estimator]
    summed: bool = False
    """Whether NumPyro enumerates too."""

    def model(self, n: int, latent: Draw, seen: Callable[[int, Any], Any]) -> None:
        z: Any = 0.0
        for i in range(n):
            at = 0.5 * z if self.chain else 0.0
            z = latent(f"z{i}", dist.Normal(at, 1.0) if self.normal else dist.Bernoulli(logits=at))
            seen(i, dist.Normal(z * 1.0, 1.0))

    def guide(self, phi: Any, latent: Draw) -> None:
        z: Any = 0.0
        for i in range(len(phi["m"])):
            at = phi["m"][i] + phi["w"][i] * z if self.chain else phi["m"][i]
            scale = jnp.exp(phi["s"][i])
            law = dist.Normal(at, scale) if self.normal else dist.Bernoulli(logits=at)
            z = latent(f"z{i}", law)

    def ours(self) -> Callable[..., Any]:
        @ppl.gen
        def model(n: int) -> None:
            self.model(n, ppl.sample, lambda i, d: ppl.sample(f"y{i}", d))

        @ppl.gen
        def guide(phi: Any) -> None:
            self.guide(phi, lambda name, d: ppl.sample(name, d, self.estimator()))

        @ppl.expectation
        def elbo(phi: Any, y: jax.Array) -> jax.Array:
            return ppl.elbo(model(len(y)), guide(phi), {f"y{i}": v for i, v in enumerate(y)})

        return elbo.surrogate

    def theirs(self) -> Callable[..., Any]:
        def model(phi: Any, y: jax.Array) -> None:
            seen = lambda i, d: numpyro.sample(f"y{i}", d, obs=y[i])
            self.model(len(y), numpyro.sample, seen)

        def guide(phi: Any, y: jax.Array) -> None:
            self.guide(phi, numpyro.sample)

        loss: Any = (Trace_ELBO if self.normal else TraceGraph_ELBO)()
        guided: Any = guide
        if self.summed:
            loss = TraceEnum_ELBO(max_plate_nesting=0)
            guided = funsor.config_enumerate(guide, default="parallel")
        return lambda key, phi, y: -loss.loss(key, {}, model, guided, phi, y)


PROGRAMS = {
    "normal, pathwise": Sites(True, False, ppl.reparam),
    "chain of normals, pathwise": Sites(True, True, ppl.reparam),
    "flips, REINFORCE": Sites(False, False, ppl.reinforce),
    "chain of flips, REINFORCE": Sites(False, True, ppl.reinforce),
    "flips, enumeration": Sites(False, False, ppl.enum),
    "normal, MVD": Sites(True, False, ppl.mvd),
    "chain of normals, MVD": Sites(True, True, ppl.mvd),
    "flips, enumeration by both": Sites(False, False, ppl.enum, summed=True),
}
"""Enumeration beside REINFORCE, but the last row, and MVD beside the pathwise gradient."""
MOST_SUMMED = 20
"""Sites that NumPyro enumerates: it has no axes for more than 25."""


def traced(f: Callable[..., Any], n: int) -> tuple[float, int]:
    """Seconds to trace and lower the gradient for ``n`` sites, and its equations."""
    phi, y = {name: jnp.full(n, 0.1) for name in "msw"}, jnp.linspace(-1.0, 1.0, n)
    slope = gradient(f)
    gc.collect()
    start = time.process_time()
    trace = jax.jit(lambda *args: slope(*args)).trace(KEY, phi, y)
    trace.lower()
    return time.process_time() - start, equations(trace.jaxpr.jaxpr)


def rows(sites: Sequence[int], repeats: int) -> Iterator[Row]:
    for name, program in PROGRAMS.items():
        if program.summed and not funsor:
            print(f"{name}: not measured, funsor is not installed")
            continue
        for make in (program.ours, program.theirs):
            traced(make(), 2)
        for n in [MOST_SUMMED] if program.summed else sites:
            pairs = [
                (traced(program.ours(), n), traced(program.theirs(), n)) for _ in range(repeats)
            ]
            middle = lambda f, pairs=pairs: statistics.median(map(f, pairs))
            yield {
                "program": name,
                "sites": n,
                "s": middle(lambda p: p[0][0]),
                "NumPyro s": middle(lambda p: p[1][0]),
                "× NumPyro": middle(lambda p: p[0][0] / p[1][0]),
                "equations": pairs[0][0][1],
                "NumPyro equations": pairs[0][1][1],
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    found: list[Row] = []
    for row in rows(options.sites, options.repeats):
        print(table([row]), flush=True)
        found.append(row)
    title = "Processor time to trace and lower a gradient of a Python loop over sites"
    notes = f"Measurements: {options.repeats}, their median. " + NOTES
    out = pathlib.Path(__file__).parent / "results"
    save(out, "tracing", title, found, notes)
    (out / "tracing.json").unlink()


NOTES = """NumPyro: Trace_ELBO of normals, TraceGraph_ELBO of flips; TraceEnum_ELBO where both
enumerate, which it cannot for more than 25 sites. It has no measure-valued derivatives. What it has
not, or not for as many sites, stands beside its gradient of the same program."""


if __name__ == "__main__":
    main()
