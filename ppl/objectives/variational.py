r"""Variational objectives: expressions to use inside ``@ppl.expectation``.

``p`` is the model, ``q`` the guide (both generative functions that were called), ``data`` the
observed choices of ``p``. Each returns one scalar estimate, f32[], signed so that larger is
better; add, weight and mix them. None has a door into the library that your own would not have.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from transforms import _jax
from transforms.errors import UnsupportedError, show
from transforms.runs.parts import check_known, weighted

from ..programs.detached import detach
from ..programs.generative import Generative
from ..programs.given import Choices, as_count, merge
from ..programs.particles import particles
from ..programs.partly import refuse_unmasked
from ..programs.program import check_branches, check_generative
from ..programs.scaled import Weights, table_of
from .closed import closed, drawn, entropies


def elbo(
    p: Generative,
    q: Generative,
    data: Choices,
    *,
    weights: Weights | None = None,
    analytic: bool = False,
) -> jax.Array:
    """E_q[log p(x, z) - log q(z)] (Jordan et al. 1999). With an approximate marginal as ``q`` this
    is hierarchical VI (Ranganath et al. 2016).

    Args:
        p, q, data: model, guide, observed choices.
        weights: what log p and log q at some addresses are multiplied by, those of ``ppl.factor``
            and ``ppl.observe`` included: numbers, or arrays with the axes of the ``vmap``\\s and
            ``scan``\\s around the choice. ``{"z": beta}`` is a β-VAE (Higgins et al. 2017). Nested
            addresses are tuples, or nested dicts; an outer address stands for all that it holds.
        analytic: whether -KL(q || p) stands in the place of log p - log q at addresses where
            numpyro has a divergence of the two laws, and elsewhere the entropy of q in that of
            -log q where it has one. The expectation, and its derivative, are the same. A divergence
            needs a law in ``p`` that does not depend on choices that ``q`` draws after it; and
            choices stay as they are drawn in branches, under masks, and in programs without laws
            (marginals).

    Raises:
        AddressError: a weight is at an address that neither has.
        ShapeError: a weight has other axes. UnsupportedError: choices that have one joint density
            have several weights.

    Example:
        >>> f = ppl.expectation(lambda phi: ppl.elbo(model(), guide(phi), data))
        >>> value, grad = f.value_and_grad(key, phi, samples=10)
    """
    check_generative(p, "the model of an objective")
    check_generative(q, "the guide of an objective")
    check_branches(p, q)
    refuse_unmasked(data, q.name, q.masked)
    if weights is not None or analytic:
        pair = closed(p, q, data) if analytic else drawn(p, q, data)
        table = table_of({} if weights is None else weights)
        check_known(table, pair.addresses, f"neither {p.name} nor {q.name}")
        log_p = weighted(pair.p, pair.factors_p, table)
        return log_p - weighted(pair.q, pair.factors_q, table)
    z = q.simulate()
    return p.log_density(merge(z.choices, data)) - z.log_density


def kl(q: Generative, p: Generative, data: Choices | None = None) -> jax.Array:
    """KL(q || p) = E_q[log q(z) - log p(z)] over the choices of ``q``: to be made small.

    In closed form, address by address, where :func:`elbo` has one with ``analytic``, and drawn
    elsewhere. ``data`` are the choices of ``p`` that ``q`` does not draw: they are held fixed, and
    their own density does not count. So ``ppl.elbo(p, q, data)`` has the mean of the log density of
    the data less ``ppl.kl(q, p, data)``.

    Raises:
        UnsupportedError: one of them has weights (``ppl.factor``, ``ppl.observe``), or a joint
            density of data and choices of ``q``.

    Example:
        >>> prior = ppl.gen(lambda: ppl.sample("x", dist.Normal(0.0, 1.0)))
        >>> divergence = ppl.expectation(lambda phi: ppl.kl(guide(phi), prior()))
        >>> float(divergence.value(key, {"m": 1.0, "s": 0.0}))
        0.5
    """
    check_generative(q, "the first argument of ppl.kl")
    check_generative(p, "the second argument of ppl.kl")
    check_branches(p, q)
    refuse_unmasked(data or {}, q.name, q.masked)
    for g in (p, q):
        if g.weighted:
            raise UnsupportedError(
                f"{g.name} in ppl.kl at {_jax.user_line()} has weights (ppl.factor, ppl.observe), "
                "so that its density is not that of a law. Type the data as choices and give them "
                "as data, ppl.kl(q, p, data); or use -ppl.elbo(p, q, data), which has the weights."
            )
    pair = closed(p, q, data or {})
    latent = {a for group in pair.q for a in group} | pair.closed
    own = {}
    for group, part in pair.p.items():
        inside = [a in latent for a in group]
        if any(inside) and not all(inside):
            raise UnsupportedError(
                f"the choices {', '.join(map(show, group))} of {p.name} have one joint density, "
                f"and some of them are data in ppl.kl at {_jax.user_line()}. Use "
                "-ppl.elbo(p, q, data)."
            )
        if all(inside):
            own[group] = part
    return weighted(pair.q, {}, {}) - weighted(own, {}, {})


def entropy(q: Generative) -> jax.Array:
    """The entropy of a program, E_q[-log q(z)]: f32[].

    In closed form, address by address, where numpyro has the entropy of the law given what is drawn
    before (exact where that is nothing); drawn elsewhere.

    Raises:
        UnsupportedError: the program has weights (``ppl.factor``, ``ppl.observe``).

    Example:
        >>> bonus = ppl.expectation(lambda phi: ppl.entropy(guide(phi)))
        >>> round(float(bonus.value(key, {"m": 1.0, "s": 0.0})), 4)
        1.4189
    """
    check_generative(q, "ppl.entropy")
    refuse_unmasked({}, q.name, q.masked)
    if q.weighted:
        raise UnsupportedError(
            f"{q.name} in ppl.entropy at {_jax.user_line()} has weights (ppl.factor, ppl.observe), "
            "so that its density is not that of a law. Move them out of it."
        )
    return -weighted(entropies(q), {}, {})


def log_weights(
    p: Generative, q: Generative, data: Choices, n: int, chunk: int | None = None
) -> jax.Array:
    """log p(x, z_i) - log q(z_i) for ``n`` independent draws of ``q``: f32[n]."""
    return particles(lambda: elbo(p, q, data), as_count(n, "n"), chunk)


def iwelbo(
    p: Generative, q: Generative, data: Choices, n: int, chunk: int | None = None
) -> jax.Array:
    """E[log 1/n sum_i p(x, z_i) / q(z_i)] (IWAE, Burda et al. 2016).

    With ``chunk``, which divides ``n``, so many particles are in memory at a time; each is computed
    a second time for the derivative.

    Example:
        >>> f = ppl.expectation(lambda phi: ppl.iwelbo(model(), guide(phi), data, n=5))
        >>> value, grad = f.value_and_grad(key, phi, samples=10)
    """
    return logsumexp(log_weights(p, q, data, n, chunk)) - math.log(n)


def renyi(
    p: Generative,
    q: Generative,
    data: Choices,
    alpha: float,
    n: int,
    chunk: int | None = None,
) -> jax.Array:
    """The variational Rényi bound 1/(1-α) log 1/n sum_i w_i^(1-α) (Li & Turner 2016).

    Its expectation depends on ``n``, and tends to the exact bound as n grows; α = 1 is the ELBO.
    ``chunk``: as that of :func:`iwelbo`.

    Example:
        >>> f = ppl.expectation(lambda phi: ppl.renyi(model(), guide(phi), data, 0.5, n=5))
        >>> value, grad = f.value_and_grad(key, phi, samples=10)
    """
    log_w = log_weights(p, q, data, n, chunk)
    if alpha == 1.0:
        return jnp.mean(log_w)
    return (logsumexp((1.0 - alpha) * log_w) - math.log(n)) / (1.0 - alpha)


def chi2(p: Generative, q: Generative, data: Choices, n: int) -> jax.Array:
    """-1/2 log 1/n sum_i w_i^2: minus the χ² upper bound CUBO_2 (Dieng et al. 2017).

    Example:
        >>> f = ppl.expectation(lambda phi: ppl.chi2(model(), guide(phi), data, n=5))
        >>> value, grad = f.value_and_grad(key, phi, samples=10)
    """
    return -renyi(p, q, data, -1.0, n)


def forward_kl(posterior: Generative, q: Generative) -> jax.Array:
    """-KL(posterior || q) = E_posterior[log q(z) - log posterior(z)].

    ``posterior`` is any Generative over the addresses of ``q``: an exact posterior, or
    ``ppl.normalize(model, data, by=...)``.

    Example:
        >>> posterior = ppl.normalize(model(), data, by=ppl.importance(5))
        >>> f = ppl.expectation(lambda phi: ppl.forward_kl(posterior, guide(phi)))
        >>> value, grad = f.value_and_grad(key, phi, samples=10)
    """
    z = posterior.simulate()
    return q.log_density(z.choices) - z.log_density


def wake_theta(p: Generative, q: Generative, data: Choices, n: int) -> jax.Array:
    """E_SIR[log p(x, z)] for the parameters of the model (reweighted wake-sleep, Bornschein &
    Bengio 2015). The particles and their weights are constants; the gradient is that of the
    IWELBO in the parameters of ``p``.

    Example:
        >>> f = ppl.expectation(lambda phi: ppl.wake_theta(model(), guide(phi), data, n=5))
        >>> value, grad = f.value_and_grad(key, phi, samples=10)
    """
    z, weights = _resampled(p, q, data, n)
    return weights @ jax.vmap(lambda z: p.log_density(merge(z, data)))(z)


def wake_phi(p: Generative, q: Generative, data: Choices, n: int) -> jax.Array:
    """E_SIR[log q(z)] for the parameters of the guide (reweighted wake-sleep, Bornschein &
    Bengio 2015). The particles and their weights are constants; biased for -∇KL(posterior||q)
    at finite ``n``.

    Example:
        >>> f = ppl.expectation(lambda phi: ppl.wake_phi(model(), guide(phi), data, n=5))
        >>> value, grad = f.value_and_grad(key, phi, samples=10)
    """
    z, weights = _resampled(p, q, data, n)
    return weights @ jax.vmap(q.log_density)(z)


def _resampled(p: Generative, q: Generative, data: Choices, n: int) -> tuple[dict, jax.Array]:
    refuse_unmasked(data, q.name, q.masked)

    def one() -> tuple[dict, jax.Array]:
        z = detach(q).simulate()
        return z.choices, detach(p).log_density(merge(z.choices, data)) - z.log_density

    z, log_w = jax.vmap(one, axis_size=n)()
    return detach(z), detach(jax.nn.softmax(log_w))


def stl(p: Generative, q: Generative, data: Choices) -> jax.Array:
    """The ELBO without the zero-mean score of ``q``: sticking the landing (Roeder et al. 2017).

    For pathwise guides; the gradient has variance 0 where ``q`` is the posterior. Unbiased for
    one sample inside the logarithm only: for the IWELBO use :func:`dreg`.

    Example:
        >>> f = ppl.expectation(lambda phi: ppl.stl(model(), guide(phi), data))
        >>> value, grad = f.value_and_grad(key, phi, samples=10)
    """
    refuse_unmasked(data, q.name, q.masked)
    z = q.simulate()
    return p.log_density(merge(z.choices, data)) - detach(q).log_density(z.choices)


def dreg(p: Generative, q: Generative, data: Choices, n: int) -> jax.Array:
    """The IWELBO with the doubly reparameterised gradient (DReG, Tucker et al. 2019).

    For pathwise guides: sum_i v_i² d log w_i/dz dz/dφ with v = softmax(log w), and sum_i v_i
    d log p/dθ for the model.

    Example:
        >>> f = ppl.expectation(lambda phi: ppl.dreg(model(), guide(phi), data, n=5))
        >>> value, grad = f.value_and_grad(key, phi, samples=10)
    """

    refuse_unmasked(data, q.name, q.masked)

    def one() -> tuple[dict, jax.Array]:
        z = q.simulate().choices
        through_z = detach(p).log_density(merge(z, data)) - detach(q).log_density(z)
        return z, through_z

    z, log_w = jax.vmap(one, axis_size=n)()
    v = detach(jax.nn.softmax(log_w))
    fixed = detach(z)
    model = v @ jax.vmap(lambda z: p.log_density(merge(z, data)))(fixed)
    terms = jnp.sum(v**2 * log_w) + model
    return detach(logsumexp(log_w) - math.log(n)) + terms - detach(terms)
