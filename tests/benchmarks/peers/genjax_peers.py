"""Attend, Infer, Repeat in GenJAX 1.0.14 (Python 3.12, JAX 0.11): networks and sizes are ours.

Model and guide are generative functions, the estimator of a choice is the distribution it is drawn
from, and the objective is an ADEV expectation for one image, as in GenJAX's own example of AIR.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import air as ours
import jax
import jax.numpy as jnp
from genjax import flip, flip_enum, flip_mvd, flip_reinforce, gen
from genjax import multivariate_normal_diag_reparam as normal
from genjax.adev import Dual, Expectation, expectation
from genjax.core import distribution
from genjax.pjax import seed

# ADEV has no rule for a custom_jvp function (here relu, in the spatial transformer), except within
# a jit, which is differentiated as a whole.
out_of_canvas = jax.jit(ours.out_of_canvas)
onto_canvas = jax.jit(ours.onto_canvas, static_argnums=2)

# Only REINFORCE comes as a distribution, which is what can have an address.
ENUM, MVD = distribution(flip_enum, flip.logpdf), distribution(flip_mvd, flip.logpdf)
STRATEGIES = {
    "REINFORCE": 3 * (flip_reinforce,),
    "ENUM": 3 * (ENUM,),
    "MVD": 3 * (MVD,),
    "hybrid": (MVD, MVD, ENUM),
}


def air(per_image: bool = False) -> dict[str, Callable[..., tuple[jax.Array, ours.Params]]]:
    """For each strategy, ``f(key, params, images)``: the mean ELBO (to be maximised), its gradient.

    With ``per_image`` as the example does it: the ELBO is drawn apart from its gradient, and the
    gradient is taken image by image, then averaged. Otherwise one pass gives both, and the gradient
    is that of the mean: the least work that GenJAX can be asked for.
    """
    way = image_by_image if per_image else of_the_mean
    return {name: way(elbo(flips)) for name, flips in STRATEGIES.items()}


@gen
def model(params: ours.Params, canvas: jax.Array) -> None:
    """``canvas``: an empty one."""
    size = canvas.shape[0]
    for t in range(ours.STEPS):
        pres = flip(ours.PRES_PRIOR[t]) @ f"pres{t}"
        where = normal(*ours.WHERE_PRIOR) @ f"where{t}"
        what = normal(jnp.zeros(ours.WHAT), jnp.ones(ours.WHAT)) @ f"what{t}"
        canvas += pres * onto_canvas(where, ours.decode(params, what), size)
    normal(canvas, jnp.full_like(canvas, ours.NOISE)) @ "image"


def elbo(flips: Any) -> Expectation:
    """ELBO of ``(image, params)``, for a guide that draws ``pres`` at step t from ``flips[t]``."""

    @gen
    def guide(image: jax.Array, params: ours.Params) -> None:
        last, state = ours.START
        for t in range(ours.STEPS):
            state, p, law = ours.look(params, image, last, state)
            pres = flips[t](p) @ f"pres{t}"
            where = normal(*law) @ f"where{t}"
            what = normal(*ours.encode(params, out_of_canvas(where, image))) @ f"what{t}"
            last = pres, where, what

    @expectation
    def log_weight(image: jax.Array, params: ours.Params) -> jax.Array:
        trace = guide.simulate(image, params)
        choices, _ = model.merge({"image": image}, trace.get_choices())
        log_p, _ = model.assess(choices, params, jnp.zeros_like(image))
        return log_p + trace.get_score()

    return log_weight


def image_by_image(objective: Expectation) -> Callable[..., tuple[jax.Array, ours.Params]]:
    @seed  # GenJAX checks what this returns, and cannot resolve the name ours
    def one(image: jax.Array, params: ours.Params) -> Any:
        return objective.prog.source.value(image, params), objective.grad_estimate(image, params)[1]

    def mean(key: jax.Array, params: ours.Params, images: jax.Array):
        keys = jax.random.split(key, len(images))
        each = jax.vmap(one, in_axes=(0, 0, None))(keys, images, params)
        return jax.tree.map(lambda x: x.mean(0), each)

    return mean


def of_the_mean(objective: Expectation) -> Callable[..., tuple[jax.Array, ours.Params]]:
    """By transposition: the derivative along ``tangent`` is linear in it, its slope the gradient.

    (Not by ``jax.grad`` of a vmapped expectation: ``Expectation.estimate``, which stands in for the
    value there, fails on arguments that are not scalar. Nor by an expectation over all images: a
    choice for a whole batch is estimated image by image, unrolled.)
    """

    @seed
    def one(image: jax.Array, params: ours.Params, tangent: ours.Params) -> Any:
        tangents = jnp.zeros_like(image), tangent
        out = objective.jvp_estimate(*Dual.dual_tree((image, params), tangents))
        return out.tangent, out.primal

    def mean(key: jax.Array, params: ours.Params, images: jax.Array):
        keys = jax.random.split(key, len(images))

        def along(tangent: ours.Params) -> tuple[jax.Array, jax.Array]:
            each = jax.vmap(one, in_axes=(0, 0, None, None))(keys, images, params, tangent)
            return each[0].mean(), each[1].mean()

        zero = jax.tree.map(jnp.zeros_like, params)
        gradient, value = jax.grad(along, has_aux=True)(zero)
        return value, gradient

    return mean
