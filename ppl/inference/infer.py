"""``ppl.infer``: a guide, a fit that stops by itself, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import optax

from transforms import _jax
from transforms.errors import UnsupportedError, describe

from ..fitting.fit import maximize
from ..guides.mean_field import mean_field
from ..objectives.expectation import expectation
from ..objectives.variational import elbo
from ..programs.generative import Generative
from ..programs.given import Choices, as_key
from ..programs.program import check_generative
from .posterior import Posterior

RATE = 1e-2


def infer(
    g: Generative,
    data: Choices,
    *,
    key: jax.Array,
    guide: Any = mean_field,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 16_000,
    tolerance: float | None = 0.02,
    samples: int = 10,
    chunk: int | None = None,
    restarts: int | None = None,
    average: float = 0.5,
    progress: bool = False,
    callback: Callable[..., Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Posterior:
    """Fit a guide to the posterior of a program given data.

    Args:
        g: the model, called with its arguments.
        data: its observed choices.
        key: random key.
        guide: makes the family, ``guide(g, data, key=key) -> (guide, params)``: one of
            ``ppl.guides``, mean-field by default, or your own; or such a pair.
        optimizer: any optax optimizer; Adam at a rate of .01 by default.
        steps: the most steps that the fit may take.
        tolerance: the gain of the ELBO at a doubling of the steps, in nats, under which it stops;
            None for all of the steps.
        samples, chunk: draws for each gradient, and how many are in memory at a time.
        restarts: number of starts, side by side; the best is kept.
        average: the last part of the steps whose parameters are averaged.
        progress, callback, checkpoint: as in :func:`ppl.maximize`.

    Returns:
        A :class:`Posterior`. Print it: it says whether the fit converged, and whether the guide
        covers the posterior.

    Example:
        >>> posterior = ppl.infer(model(), data, key=key, steps=500)
        >>> posterior.summary()
    """
    check_generative(g, "the model of ppl.infer")
    fit_key, guide_key, last_key = jax.random.split(as_key(key), 3)
    family, params = _family(guide, g, data, guide_key, restarts)

    @expectation
    def evidence_bound(params: Any, data: Any) -> jax.Array:
        return elbo(g, family(params), data)

    evidence_bound.name = f"the ELBO of {g.name}"
    evidence_bound.title = f"{evidence_bound.name} at {_jax.user_line()}"
    fit = maximize(
        evidence_bound,
        params,
        optax.adam(RATE) if optimizer is None else optimizer,
        key=fit_key,
        steps=steps,
        samples=samples,
        chunk=chunk,
        args=(dict(data),),
        progress=progress,
        callback=callback,
        checkpoint=checkpoint,
        average=average,
        tolerance=tolerance,
        restarts=restarts,
    )
    return Posterior(g, data, family, fit, last_key)


def _family(
    guide: Any, g: Generative, data: Choices, key: jax.Array, restarts: int | None
) -> tuple[Callable[[Any], Generative], Any]:
    """The guide as a function of its parameters, and where these begin."""
    if isinstance(guide, tuple) and len(guide) == 2 and callable(guide[0]):
        own: Any = guide[0]
        return own, guide[1]
    if isinstance(guide, Generative) or not callable(guide):
        raise UnsupportedError(
            f"guide at {_jax.user_line()} is {describe(guide)}. Give a maker of guides, uncalled, "
            "guide=ppl.guides.full_rank, or the pair (guide, params) of your own."
        )
    make: Any = guide
    family, params = make(g, data, key=key)
    if restarts is None:
        return family, params
    return family, lambda key: make(g, data, key=key)[1]
