"""A step of NumPyro's ``SVI`` beside one of ours, for NumPyro's own models by ``from_numpyro``.

The models are those of ``tests/imports/numpyro_models.py``, with the same autoguide, optimizer and
parameters on both sides. The log densities of model and guide, and the means of the estimates, are
compared first. FLOPs and bytes are XLA's, of one step; time is that of a compiled loop of steps.

    python tests/benchmarks/numpyro_steps.py [names]

Discrete choices are summed out by both, which NumPyro does with funsor (``pip install funsor``).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import Contender, Row, cost_of, interleaved, save
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, autoguide
from numpyro.infer.util import log_density
from numpyro.optim import optax_to_numpyro

import ppl

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "imports"))
from numpyro_models import MODELS  # noqa: E402

KEY = jax.random.key(0)
OPTIMIZER = optax.adam(1e-3)
STEPS, DRAWS = 200, 2_000
MORE_GUIDES = ("AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal")
SUMMED = {"gaussian_mixture": "assignment", "lda": "z", "dawid_skene": "c"}
"""Discrete choices."""
WITHOUT_STEP = ("bach_hmm", "capture_recapture", "gaussian_copula")
"""NumPyro's sum over discrete choices in a loop is wrong; JAX has no gradient of betainc."""

funsor: Any = None
if importlib.util.find_spec("funsor"):
    funsor = importlib.import_module("numpyro.contrib.funsor")

Step = Callable[[Any, Any], tuple[Any, Any]]


class Pair:
    """A model and a guide in both libraries, with the parameters where NumPyro begins."""

    def __init__(self, name: str, guide: str):
        self.name, (fn, args) = name, MODELS[name]
        self.whole = lambda arrays: [next(it) if a else v for it in [iter(arrays)] for a, v in own]
        own = [(isinstance(v, jax.Array), v) for v in args]
        self.arrays = [v for v in args if isinstance(v, jax.Array)]
        self.latent = SUMMED.get(name)
        self.fn = self._enumerated(fn) if self.latent else fn
        auto = getattr(autoguide, guide)(self._seen(fn))
        loss = TraceEnum_ELBO() if self.latent else Trace_ELBO()
        self.svi = SVI(self.fn, auto, optax_to_numpyro(OPTIMIZER), loss)
        self.state = self.svi.init(jax.random.PRNGKey(0), *args)
        self.params = self.svi.optim.get_params(self.state.optim_state)
        self.auto, self.model = auto, ppl.from_numpyro(fn, unconstrained=True)
        self.guide = ppl.from_numpyro(auto, unconstrained=True)
        self.elbo = ppl.expectation(self._elbo)

    def _enumerated(self, fn: Any) -> Any:
        config = lambda site: {"enumerate": "parallel"} if site["name"] == self.latent else {}
        return handlers.infer_config(fn, config)

    def _seen(self, fn: Any) -> Any:
        """The model that an autoguide looks at, without its discrete choices."""
        if not self.latent:
            return fn
        return handlers.block(handlers.seed(fn, 0), hide=[self.latent])

    def ours(self, params: Any, arrays: Any) -> tuple[ppl.Generative, ppl.Generative]:
        args = self.whole(arrays)
        model, guide = (g(*args, params=params) for g in (self.model, self.guide))
        if self.latent:
            model = ppl.marginal(model, list(guide.choices_like), by=ppl.enumeration())
        return model, guide

    def _elbo(self, params: Any, arrays: Any) -> jax.Array:
        return ppl.elbo(*self.ours(params, arrays), {})

    # --- a step of each ---

    def their_step(self, state: Any, arrays: Any) -> tuple[Any, Any]:
        return self.svi.update(state, *self.whole(arrays))

    def our_step(self, state: Any, arrays: Any) -> tuple[Any, Any]:
        key, params, optimizer = state
        key, own = jax.random.split(key)
        value, grad = self.elbo.value_and_grad(own, params, arrays)
        updates, optimizer = OPTIMIZER.update(jax.tree.map(jnp.negative, grad), optimizer, params)
        return (key, optax.apply_updates(params, updates), optimizer), value

    @property
    def our_state(self) -> Any:
        return KEY, self.params, OPTIMIZER.init(self.params)


# --- are they the same? ---------------------------------------------------------------------------


def difference(pair: Pair) -> float | None:
    """The relative difference of the model's log densities at a draw of the guide; None for a
    subsample, which NumPyro cannot score."""
    if pair.name == "covtype":
        return None
    model, guide = pair.ours(pair.params, pair.arrays)
    choices = jax.jit(guide.simulate)(KEY).choices
    mine = jax.jit(model.log_density)(choices)
    fn, score = pair.fn, log_density
    if pair.latent:
        fn, score = funsor.enum(fn, first_available_dim=-3), funsor.log_density
    args, values = pair.whole(pair.arrays), pair.params | choices
    theirs = jax.jit(lambda c: score(fn, args, {}, c)[0])(values)
    return abs(float(mine) - float(theirs)) / (1.0 + abs(float(theirs)))


def z_score(pair: Pair) -> float:
    """The largest of the differences between means of estimates of the ELBO and its gradient."""
    keys = jax.random.split(KEY, DRAWS)

    def theirs(key: jax.Array, params: Any) -> jax.Array:
        fns = pair.svi.model, pair.svi.guide
        values = pair.svi.constrain_fn(params)
        return -pair.svi.loss.loss(key, values, *fns, *pair.whole(pair.arrays))

    ours = lambda key, params: pair.elbo.surrogate(key, params, pair.arrays)
    worst = 0.0
    drawn = [
        jax.jit(lambda p, f=f: jax.lax.map(lambda k: jax.value_and_grad(f, 1)(k, p), keys))
        for f in (ours, theirs)
    ]
    for a, b in zip(*(jax.tree.leaves(f(pair.params)) for f in drawn), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.sqrt((a.var(0) + b.var(0)) / DRAWS) + 1e-6 * (1e-3 + abs(b.mean(0)))
        worst = max(worst, float(np.max(abs(a.mean(0) - b.mean(0)) / error, initial=0.0)))
    return worst


# --- what they cost -------------------------------------------------------------------------------


def contender(name: str, step: Step, state: Any, arrays: Any) -> Contender:
    start = time.perf_counter()
    lowered = jax.jit(step).lower(state, arrays)
    middle = time.perf_counter()
    one = lowered.compile()
    seconds = middle - start, time.perf_counter() - middle
    cost = cost_of(one)
    many = jax.jit(lambda s, a: jax.lax.scan(lambda s, _: step(s, a), s, None, length=STEPS))
    run = lambda: jax.block_until_ready(many(state, arrays))
    return Contender(name, run, *seconds, cost["flops"], cost["bytes accessed"])


def row(name: str, guide: str, blocks: int, seconds: float) -> Row:
    """With no blocks, exact costs alone."""
    pair = Pair(name, guide)
    found = difference(pair)
    both = [
        contender("NumPyro", pair.their_step, pair.state, pair.arrays),
        contender("ours", pair.our_step, pair.our_state, pair.arrays),
    ]
    theirs, ours = both
    timed = {}
    if blocks:
        times = interleaved(both, blocks, seconds)
        timed = {
            "z": z_score(pair),
            "NumPyro µs": 1e6 * times["NumPyro"][0] / STEPS,
            "µs": 1e6 * times["ours"][0] / STEPS,
            "× time": times["ours"][1],
        }
    return {
        "model": name,
        "guide": guide,
        "density": "subsample" if found is None else f"{found:.0e}",
        **timed,
        "NumPyro FLOPs": int(theirs.flops or 0),
        "FLOPs": int(ours.flops or 0),
        "× FLOPs": (ours.flops or 0) / (theirs.flops or 1),
        "× bytes": (ours.bytes or 0) / (theirs.bytes or 1),
        "× trace": (ours.trace or 0) / (theirs.trace or 1),
    }


def rows(names: list[str], blocks: int, seconds: float) -> Iterator[Row]:
    for name in names:
        for guide in ("AutoNormal", *(MORE_GUIDES if name == "eight_schools_noncentered" else ())):
            yield row(name, guide, blocks, seconds)


def main() -> None:
    measured = [n for n in MODELS if n not in WITHOUT_STEP and (funsor or n not in SUMMED)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", default=measured)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.2)
    options = parser.parse_args()
    found: list[Row] = []
    for r in rows(options.names, options.blocks, options.seconds):
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in r.items()}, flush=True)
        found.append(r)
        if options.blocks and options.names == measured:
            keep(found)


def keep(found: list[Row]) -> None:
    """Write what is measured so far."""
    lines = []
    for word, of in (("median", statistics.median), ("worst", max)):
        values = (f"{k} {of([r[k] for r in found]):.3f}" for k in RATIOS)
        lines.append(f"{word}: {', '.join(values)}")
    title = "A step of SVI: NumPyro's models, and the same by ppl.from_numpyro"
    save(HERE / "results", "numpyro_models", title, found, "\n".join([*lines, NOTES]))
    (HERE / "results" / "numpyro_models.json").unlink()


RATIOS = "× time", "× FLOPs", "× bytes"
NOTES = """density: the relative difference of the log densities of the two.
z: of the means of 2,000 estimates of the ELBO and its gradient, the largest over all numbers.
Ratios are ours by NumPyro's."""


if __name__ == "__main__":
    main()
