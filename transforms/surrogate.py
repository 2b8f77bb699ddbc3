"""*surrogate*: an objective becomes a plain differentiable JAX function.

Its value is an unbiased estimate of the objective, its derivative an unbiased estimate of the
objective's derivative. A *scope* is a program whose first output is the payoff f. With the
choices of the scope partitioned by the kind of their estimator:

    surrogate = sum_g w_g [ f_g box(score_g) + baselines_g ] + corrections

- *in place*: pathwise draws differentiate by themselves; scores add up in ``score``, and
  ``box`` is 1 with the derivative of exp (``estimator.magic_box``);
- *enumerated*: g runs over all joint values, as one ``jax.vmap`` of the program for each site
  (and step of a loop, which is unrolled), so that whatever does not depend on a site is not
  repeated for it; w_g is the product of their probabilities;
- *continued* (measure-valued, ...): a term of value 0, differentiated only. Its continuation
  is the program run again with the same key and one draw replaced: everything before the
  choice is the same (outside of loops it is not computed again), everything after is drawn anew
  with common random numbers. It therefore stands in loops and branches like any other choice,
  and costs nothing where only the value is wanted.

An expectation inside is a scope of its own, estimated where it stands.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _jax
from .alarm import sound_the_alarm
from .assignment import Choose, Chosen, assign, support_size
from .errors import UnsupportedError, show
from .estimator import (
    Baseline,
    Continued,
    Enumerated,
    InPlace,
    LocalSite,
    constant,
    magic_box,
)
from .interpret import (
    Path,
    Record,
    Steps,
    abstract_distribution,
    entering,
    interpret,
    states_before,
)
from .seed import sampled, vectorised_draw
from .site import (
    Axis,
    Call,
    Densities,
    Expect,
    Factor,
    Site,
    _factor_outside,
    element_keys,
    per_element,
)
from .soundness import Soundness

SAMPLES = "ppl.samples"
AT_ONCE = 64
"""Most instances of a continued site in a loop that are treated side by side."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What the scopes of one objective share: the number of samples drawn side by side (they
    are a named ``vmap`` axis), the running averages of payoffs that baselines asked for,
    whether the surrogate is ascended (1) or descended (-1), for baselines that learn, and the
    estimators of the scopes, by the identity of their jaxprs."""

    samples: int = 1
    averages: Mapping[float, Any] = dataclasses.field(default_factory=dict)
    direction: int = 1
    plans: Mapping[int, list[Chosen]] = dataclasses.field(default_factory=dict)

    def others(self, payoff: jax.Array) -> jax.Array:
        """The mean payoff of the other samples; 0 where there are none."""
        if self.samples == 1:
            return jnp.zeros_like(payoff)
        return (lax.psum(payoff, SAMPLES) - payoff) / (self.samples - 1)


# --- one scope ----------------------------------------------------------------------------------


def scope(
    closed: _jax.ClosedJaxpr,
    args: Sequence[Any],
    key: jax.Array,
    choose: Choose,
    context: Context,
) -> list[Any]:
    """Surrogate of a program whose first output is the payoff; see the module docstring."""
    sites = context.plans.get(id(closed))
    if sites is None:  # of no consequence for the payoff, or not checked
        sites = assign(closed, choose, context.samples)
    by_path = {s.choice.path: s for s in sites}
    enumerated = [s for s in sites if isinstance(s.estimator, Enumerated) and s.joint > 1]
    grid = [s.values for s in enumerated for _ in range(s.instances)]
    continued = [s for s in sites if isinstance(s.estimator, Continued)]
    baselines = {
        s.estimator.baseline.group: s.estimator.baseline
        for s in sites
        if isinstance(s.estimator, InPlace) and s.estimator.baseline is not None
    }
    scored = any(isinstance(s.estimator, InPlace) and s.estimator.score for s in sites)
    run = functools.partial(_run, closed, by_path, baselines, context)

    def point(*indices: Any) -> Any:
        left = iter(indices)
        given = {s.choice.path: _by_step(s, left, s.choice.lengths) for s in enumerated}
        outs, acc, made = run(args, key, given, resumable=bool(continued))
        f, weight = outs[0], acc["weight"]
        correction = jnp.zeros_like(f)
        for s in continued:
            known = {**given, **states_before(made, s.choice.path)}
            rest = (list(args), key, known, lax.stop_gradient(_times(weight, f)))
            correction += _correction(run, s, made[s.choice.path], rest)
        return outs, acc, correction

    for i in reversed(range(len(grid))):
        in_axes = tuple(0 if j == i else None for j in range(len(grid)))
        point = jax.vmap(point, in_axes=in_axes, axis_size=grid[i])
    outs, acc, correction = point(*map(jnp.arange, grid))
    f, weight = outs[0], acc["weight"]
    payoff = lax.stop_gradient(jnp.sum(_times(weight, f)))
    value = f * magic_box(acc["score"]) if scored else f
    for group, baseline in baselines.items():
        value = value + baseline.finish(acc[group], payoff, context)
    value = jnp.sum(_times(weight, value) + correction)
    if grid:
        outs = [jnp.tensordot(weight, o, axes=len(grid)) for o in outs]
    return [value, *outs[1:]]


def _times(weight: Any, f: jax.Array) -> jax.Array:
    """``weight * f``, where a payoff that is not finite does not count if it has no weight."""
    if weight is None:
        return f
    return weight * jnp.where((weight == 0) & ~jnp.isfinite(f), 0.0, f)


def _run(
    closed: _jax.ClosedJaxpr,
    by_path: Mapping[Path, Chosen],
    baselines: Mapping[str, Baseline],
    context: Context,
    args: Sequence[Any],
    key: jax.Array,
    given: Record,
    resumable: bool = False,
) -> tuple[list[Any], dict[str, Any], Record]:
    """One run of a scope: its outputs, its weight and scores, and what continued sites record."""
    zero = jnp.zeros(())
    acc: dict[str, Any] = {"weight": None, "score": zero}
    for group, baseline in baselines.items():
        acc[group] = dict.fromkeys(baseline.accumulators, zero)
    if any(isinstance(s.estimator, Enumerated) for s in by_path.values()):
        absent = [s.joint for s in by_path.values() if s.choice.conditional]
        acc["weight"] = jnp.ones(()) / math.prod(absent)  # a branch not taken has no other weight

    @entering
    def rule(
        choice: Any, operands: list[Any], *, path: Path, key: Any, given: Record, acc: Any
    ) -> Any:
        if isinstance(choice, Expect):
            return estimate(choice, operands, key, context), acc, {}
        if isinstance(choice, Factor):
            return _factor_outside(choice)
        if isinstance(choice, Call):
            assert isinstance(choice.program, Densities)
            outs, acc, made = interpret(
                choice.program.simulate, operands, rule, key=key, given=given, acc=acc, path=path
            )
            return outs[: choice.program.n_retval], acc, made
        chosen = by_path[path]
        estimator = chosen.estimator
        if isinstance(estimator, Enumerated):
            value, weight = _enumerated(chosen, estimator, operands, given.get(path))
            return [value], {**acc, "weight": acc["weight"] * weight}, {}
        if isinstance(estimator, Continued):
            own, other_draws = jax.random.split(key)  # alternatives are independent of the draw
            fixed = lax.stop_gradient(operands)
            value = lax.stop_gradient(_draw(choice, fixed, own, sampled, context))
            if path in given:
                replace, other = given[path]
                value = jnp.where(replace, other, value)
            made = (jnp.ones((), bool), operands, value, _key_data(_own_key(other_draws, context)))
            return [value], acc, {path: made}
        assert isinstance(estimator, InPlace)
        parameters = lax.stop_gradient(operands) if estimator.score else operands
        value = _draw(choice, parameters, key, estimator.draw, context)
        if estimator.score:
            value = lax.stop_gradient(value)
            acc = _add_score(acc, choice, estimator, operands, value)
        return [value], acc, {}

    return interpret(closed, args, rule, key=key, given=given, acc=acc, resumable=resumable)


# --- draws of all samples from one key ------------------------------------------------------------


def _draw(
    site: Site, operands: Sequence[Any], key: jax.Array, sample: Any, context: Context
) -> jax.Array:
    """A draw, independent for each of the samples.

    They share the key: to the site they are one more ``vmap``, and where its parameters are the
    same in all of them their draws are made by one call.
    """
    if context.samples == 1:
        return vectorised_draw(site, operands, key, sample)
    return _among_samples(site, sample, [])(lax.axis_index(SAMPLES), key, list(operands))


def _own_key(key: jax.Array, context: Context) -> jax.Array:
    """A key of its own for each of the samples."""
    return key if context.samples == 1 else jax.random.fold_in(key, lax.axis_index(SAMPLES))


def _among_samples(site: Site, sample: Any, shared: list[Any]) -> Callable[..., jax.Array]:
    """A draw as a function of the number of the sample, the key and the operands.

    ``shared`` are the ``vmap``\\ s met before that over the samples (of enumerated values and
    alternatives), outermost first, each by what it maps: they do not make draws independent.
    """

    def evaluate(draw: Any, key: Any, operands: list[Any], of_samples: Any = None) -> Any:
        """``of_samples``: which operands have the axis of the samples in front, if there is one."""
        places = [0] * len(operands) if of_samples is None else [int(m) for m in of_samples]
        for mapped_key, mapped in reversed(shared):
            axes = [n if m else None for n, m in zip(places, mapped, strict=True)]
            in_axes = (0 if mapped_key else None, axes)
            draw = jax.vmap(draw, in_axes=in_axes, out_axes=int(of_samples is not None))
        return draw(key, operands)

    def drawing(site: Site, own: Callable[[jax.Array], jax.Array] = lambda key: key) -> Any:
        return lambda key, operands: vectorised_draw(site, operands, own(key), sample)

    @jax.custom_batching.custom_vmap
    def drawn(i: jax.Array, key: jax.Array, operands: list[Any]) -> jax.Array:
        return evaluate(drawing(site), key, operands)

    @drawn.def_vmap
    def _(size: int, batched: Any, i: Any, key: Any, operands: list[Any]) -> Any:
        over_samples, mapped_key, mapped = batched
        if not over_samples:
            more = [(mapped_key, mapped), *shared]
            return _among_samples(site, sample, more)(i, key, operands), True
        if mapped_key:  # to one value, maybe, by a branch with a mapped predicate

            def one(i: jax.Array, key: jax.Array, operands: list[Any]) -> jax.Array:
                own = lambda key: jax.random.fold_in(key, i)
                return evaluate(drawing(site, own), key, operands)

            in_axes = (0, 0, [0 if m else None for m in mapped])
            return jax.vmap(one, in_axes=in_axes)(i, key, operands), True
        wider = dataclasses.replace(site, axes=(Axis(size, tuple(mapped)), *site.axes))
        return evaluate(drawing(wider), key, operands, mapped), True

    return drawn


def _add_score(
    acc: dict[str, Any], site: Site, estimator: InPlace, operands: list[Any], value: Any
) -> dict[str, Any]:
    chosen_outside = site.estimator is not None

    def one(operands: list[Any], value: Any) -> dict[str, Any]:
        log_prob = estimator.log_prob(site.rebuild(site.live(operands)), value)
        if site.masked:
            log_prob = jnp.where(site.mask(operands), log_prob, 0.0)
        own = site.rebuild_estimator(operands) if chosen_outside else estimator
        sums: dict[str, Any] = {"score": jnp.sum(log_prob)}
        if own.baseline is not None:
            sums[own.baseline.group] = own.baseline.accumulate(log_prob)
        return sums

    sums = per_element(site.axes, one, 1)(operands, value)
    sums = jax.tree.map(jnp.sum, sums)
    old = {name: acc[name] for name in sums}
    return {**acc, **jax.tree.map(lambda a, b: a + b.astype(a.dtype), old, sums)}


# --- enumerated sites ---------------------------------------------------------------------------


def _by_step(s: Chosen, indices: Iterator[jax.Array], lengths: Sequence[int]) -> Any:
    """The joint values of a site in every step of the loops around it, from one index each."""
    if lengths:
        return Steps(_by_step(s, indices, lengths[1:]) for _ in range(lengths[0]))
    return _digits(s, next(indices))


def _digits(s: Chosen, index: jax.Array) -> jax.Array:
    """The joint value number ``index`` as one index into the support for each element."""
    site, d = s.choice.site, abstract_distribution(s.choice)
    assert isinstance(s.estimator, Enumerated)
    shape = (*site.sizes, *d.batch_shape)
    n = support_size(s.choice, s.estimator)
    places = np.array([n**i for i in range(math.prod(shape))][::-1], dtype=np.int32)
    return (index // jnp.asarray(places) % n).reshape(shape)


def _enumerated(s: Chosen, estimator: Enumerated, operands: list[Any], digits: Any) -> Any:
    """The value that the digits stand for, and its weight."""
    site, d = s.choice.random, abstract_distribution(s.choice)
    assert isinstance(site, Site)
    if digits is None:  # a support of one value
        digits = jnp.zeros((*site.sizes, *d.batch_shape), int)

    def one(operands: list[Any], digits: jax.Array) -> tuple[jax.Array, jax.Array]:
        d = site.rebuild(site.live(operands))
        values = estimator.support(d)
        value = values[digits].astype(site.dtype)
        mass = jnp.prod(estimator.mass(d, value))
        if site.masked:  # in a branch not taken all values weigh the same
            mass = jnp.where(site.mask(operands), mass, float(len(values)) ** -digits.size)
        return value, mass

    value, mass = per_element(site.axes, one, 1)(operands, digits)
    mass = jnp.prod(mass)
    if s.choice.conditional:
        mass = mass * s.values
    return lax.stop_gradient(value), mass.astype(jnp.zeros(()).dtype)


# --- continued sites ----------------------------------------------------------------------------


def _correction(run: Any, s: Chosen, made: Any, rest: Any) -> jax.Array:
    """The sampling terms of all instances of a continued site: value 0."""
    lengths = s.choice.lengths
    n = math.prod(lengths)
    visited, operands, value, key = jax.tree.map(
        lambda a: a.reshape((n, *a.shape[len(lengths) :])), made
    )

    def harmless(a: jax.Array) -> jax.Array:  # in a branch not taken the operands are zeros
        seen = visited.reshape((n, *[1] * (a.ndim - 1)))
        return jnp.where(seen, a, jnp.asarray(0.5, a.dtype))

    parameters = jax.tree.map(harmless, operands)

    def instance(i: jax.Array, parameters: list[Any], value: Any, key: Any) -> jax.Array:
        return _differentiated_only(
            functools.partial(_sampling_term, run, s), s, parameters, (i, value, key, *rest)
        )

    xs = (jnp.arange(n), parameters, lax.stop_gradient(value), key)
    if n <= AT_ONCE:
        terms = jax.vmap(instance)(*xs)
    else:
        even = [b for b in range(AT_ONCE // 4, AT_ONCE + 1) if n % b == 0]  # no remainder
        terms = lax.map(lambda x: instance(*x), xs, batch_size=max(even, default=AT_ONCE))
    return jnp.sum(jnp.where(visited, terms, 0.0))


def _sampling_term(run: Any, s: Chosen, parameters: list[Any], rest: Any) -> jax.Array:
    i, value, key, args, program_key, given, payoff = rest
    site, estimator = s.choice.random, s.estimator
    assert isinstance(site, Site) and isinstance(estimator, Continued)
    lengths, path = s.choice.lengths, s.choice.path

    def continuation(x: jax.Array, rest: Any) -> jax.Array:
        i, args, program_key, given = rest
        replace = (jnp.arange(math.prod(lengths)) == i).reshape(lengths)
        other = jnp.broadcast_to(x, (*lengths, *x.shape))
        outs, acc, _ = run(args, program_key, {**given, path: (replace, other)})
        return _times(acc["weight"], outs[0])

    def k(x: jax.Array) -> jax.Array:
        x = jnp.asarray(x).astype(value.dtype)
        return _constant(continuation, x, (i, args, program_key, given))

    if site.estimator is not None:
        estimator = site.rebuild_estimator(parameters)
    local = LocalSite(site, parameters, value, payoff)
    return estimator.surrogate(local, _key_of(key, program_key), k)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _differentiated_only(f: Any, s: Chosen, x: Any, rest: Any) -> jax.Array:
    """0, with the derivative of ``f(x, rest)`` in ``x``; not evaluated for the value."""
    return constant(0.0, x, rest)


@_differentiated_only.defjvp
def _(f: Any, s: Chosen, primals: Any, tangents: Any) -> Any:
    x, rest = _first_order(s, primals)
    _, tangent = jax.jvp(lambda x: f(x, rest), (x,), (tangents[0],))
    zero = constant(0.0, x, rest)
    return zero, tangent.astype(zero.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _constant(f: Any, x: Any, rest: Any) -> jax.Array:
    """``f(x, rest)`` as a number without derivative."""
    return f(x, rest)


@_constant.defjvp
def _(f: Any, primals: Any, tangents: Any) -> Any:
    out = f(*primals)
    return out, jnp.zeros_like(out)


def _first_order(s: Chosen, values: Any) -> Any:
    """``values``, which must not be differentiated: the estimate holds to first order."""

    @jax.custom_jvp
    def identity(values: Any) -> Any:
        return values

    @identity.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise UnsupportedError(
            f"a second derivative is taken through {show(s.choice.address)} at "
            f"{s.choice.source}, whose estimator {s.estimator.name} gives first derivatives only. "
            "Use ppl.reparam(), ppl.reinforce() or ppl.enum() for this site."
        )

    return identity(values)


def _key_data(key: jax.Array) -> jax.Array:
    return jax.random.key_data(key)


def _key_of(data: jax.Array, like: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))


# --- expectations inside, and the outermost one ---------------------------------------------------


def estimate(
    expect: Expect, operands: list[Any], key: jax.Array, context: Context | None = None
) -> list[Any]:
    """One unbiased draw of an expectation, differentiable, with all its ``vmap`` axes."""
    if context is None:  # an objective by itself
        check = Soundness(expect.jaxpr, expect.choose, 1, _known(operands))
        outs = estimate(expect, operands, key, Context(plans=check.plans))
        return [outs[0] + _alarm(check, operands, expect.name), *outs[1:]]
    inner = dataclasses.replace(context, averages={})

    def one(operands: list[Any], key: jax.Array) -> list[Any]:
        return scope(expect.jaxpr, operands, key, expect.choose, inner)

    return per_element(expect.axes, one, 1)(list(operands), element_keys(key, expect.axes))


def surrogate(
    closed: _jax.ClosedJaxpr,
    args: Sequence[Any],
    key: jax.Array,
    choose: Choose,
    *,
    samples: int = 1,
    averages: Mapping[float, Any] | None = None,
    direction: int = 1,
    name: str = "the objective",
    strict: bool = False,
    report: Callable[[Soundness, Sequence[int]], None] | None = None,
) -> list[Any]:
    """The mean of ``samples`` surrogates with independent draws.

    When it is first differentiated, what the checker finds is reported: as warnings, or errors
    if ``strict``, or by ``report`` with the numbers of the arguments that are differentiated.
    """
    check = Soundness(closed, choose, samples, _known(args))
    context = Context(samples, averages or {}, direction, check.plans)

    def one(key: jax.Array) -> list[Any]:
        return scope(closed, args, key, choose, context)

    if samples == 1:
        outs = one(key)
    else:
        outs = jax.vmap(lambda _: one(key), axis_name=SAMPLES)(jnp.arange(samples))
        outs = [jnp.mean(o, axis=0) for o in outs]
    return [outs[0] + _alarm(check, args, name, strict, report), *outs[1:]]


def _known(args: Sequence[Any]) -> list[bool]:
    return [not isinstance(a, _jax.Tracer) for a in args]


def _alarm(
    check: Soundness,
    args: Sequence[Any],
    name: str,
    strict: bool = False,
    report: Callable[[Soundness, Sequence[int]], None] | None = None,
) -> jax.Array:
    """0; tells what the checker finds when it is differentiated."""
    smooth = [i for i, a in enumerate(args) if jnp.issubdtype(jnp.result_type(a), jnp.inexact)]

    def tell(differentiated: list[bool]) -> None:
        inputs = [i for i, d in zip(smooth, differentiated, strict=True) if d]
        if report is not None:
            report(check, inputs)
        else:
            sound_the_alarm(name, check.findings(inputs), strict)

    return _jax.perturbed([args[i] for i in smooth], tell)


__all__ = ["Context", "estimate", "surrogate"]
