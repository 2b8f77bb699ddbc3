"""*surrogate*: an objective becomes a plain differentiable JAX function.

Its value is an unbiased estimate of the objective, its derivative an unbiased estimate of the
objective's derivative. A *scope* is a program whose first output is the payoff f, which is a sum of
terms (``terms.py``). With what each element of each term depends on (``layout.py``), and the
choices of the scope partitioned by the kind of their estimator,

    surrogate = sum_t sum_g w_g [ t_g box(score_t) ] + baselines + corrections

- *in place*: pathwise draws differentiate by themselves; the score of a term is the sum of the log
  densities of the draws that it depends on, and ``box`` is 1 with the derivative of exp
  (``estimator.magic_box``): the Rao-Blackwellised score of Schulman et al. 2015;
- *enumerated*: g runs over the joint values of those choices that the term depends on, as one
  ``jax.vmap`` of the program for each of them, so that whatever does not depend on a choice is not
  repeated for it; w_g is the product of their probabilities. Elements that meet in no term take
  their values in step: N of them cost K runs, not K^N;
- *continued* (measure-valued, ...): a term of value 0, differentiated only (``continued.py``).

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

from .. import _jax
from ..analyses.alike import NO, compress
from ..analyses.contained import resolve
from ..analyses.dependence import Dependence
from ..checker.alarm import is_strict, sound_the_alarm
from ..checker.soundness import Soundness
from ..estimation.chosen import Choose
from ..estimation.draws import SAMPLES, Context, Watch, draw, own_key, sampled
from ..estimation.elements import apart, element_shape, value_and_mass
from ..estimation.estimator import Continued, Enumerated, InPlace, magic_box, refuse_rounding
from ..estimation.rounding import as_finite, rounding_parts
from ..estimation.unknown import known, refuse_unknown
from ..estimation.weighted import times
from ..plan.layout import Elements, Layout, Mass, Scores, laws, onto
from ..plan.within import within
from ..program import marks
from ..program.choices import Path
from ..program.interpret import Kept, Record, Rule, Steps, differentiated, entering, interpret
from ..program.messages import silent
from ..program.segments import Segments
from ..program.site import (
    Call,
    Densities,
    Expect,
    Factor,
    FreshKey,
    Site,
    element_keys,
    expect_p,
    per_element,
    refuse_factor,
    same_names,
    sample,
)
from ..program.sums import added, sum_over
from .payoffs import Payoffs
from .reach import Reach
from .repeated import counted_mean, mean_in_turn
from .replay import First, Replays

# --- one scope ----------------------------------------------------------------------------------


def scope(
    closed: _jax.ClosedJaxpr,
    args: Sequence[Any],
    key: jax.Array,
    choose: Choose,
    context: Context,
) -> list[Any]:
    """Surrogate of a program whose first output is the payoff; see the module docstring."""
    assert context.layout is not None
    layout = context.layout(closed, choose)
    refuse_unknown(layout.program, layout.terms, layout.sites)
    zero = jnp.zeros((), closed.out_avals[0].dtype)
    parts = _Parts(layout, context, args, key, zero)
    values, payoffs, baselines, means, extra = layout.over_grid(parts.point, parts.spec)
    flat = [v if v.ndim < 2 else v.reshape(-1) for v in values]  # one sum is pairwise, nested not
    summands = [*map(sum_over, flat), *(map(sum_over, extra) if parts.continued else [])]
    summands += parts.of_baselines(payoffs, baselines, summands)
    return [added(summands, zero).astype(zero.dtype), *parts.outputs(means)]


class _Parts:
    """What the surrogate of a scope is made of: at a point of the grid, and then all together."""

    def __init__(
        self, layout: Layout, context: Context, args: Sequence[Any], key: jax.Array, zero: jax.Array
    ) -> None:
        self._layout, self._context, self._zero = layout, context, zero
        self._args, self._key = args, key
        self.continued = sorted(layout.of(Continued), key=lambda s: s.path)
        quiet = known(silent(layout.program))
        self._quiet = functools.partial(_run, layout, context, Segments(quiet))
        self._averaged = {
            i: layout.on_grid(d) for i, d in enumerate(layout.others) if layout.is_apart(d)
        }
        self._entropic = [s for s in layout.of(InPlace) if s.own]
        self._grids = layout.grids([*layout.terms, *(s.parameters for s in self._entropic)])
        self._baselines = [s for s in layout.of(InPlace) if _baseline(s) is not None]
        self._reach = {
            s.path: layout.grids([d for d in layout.terms if s.path in d]) for s in self._baselines
        }
        self._inside = [s for s in self._baselines if _baseline(s).within]
        self._within = within(layout, self._inside) if self._inside else None
        program = same_names(known(self._within.program if self._within else layout.program))
        reach = Reach(quiet, {s.path: 1 << i for i, s in enumerate(self.continued)})
        alone = not layout.grid  # of a grid the expressions of all points are found together
        self._program = Segments(program, alone, reach.of, reach.met)
        self._kept = reach.kept if self.continued else None
        rule = lambda context: _rule(layout, context, scored=False)
        payoffs = Payoffs(layout, self.continued)
        self._replays = Replays(reach, self.continued, payoffs, rule, context)

    @property
    def spec(self) -> Any:
        """On which axes of the grid the parts of a point depend."""
        layout = self._layout
        return (
            self._grids,
            self._reach,
            {s.path: layout.on_grid(s.parameters) for s in self._baselines},
            list(self._averaged.values()),
            [layout.everywhere if self.continued else frozenset()],
        )

    def point(self, *indices: Any) -> Any:
        """Sums of terms with their scores; payoffs for baselines, and what these recorded; the mean
        of other outputs; the sampling terms of continued choices."""
        layout = self._layout
        given = _given(layout, indices)
        args, context = list(self._args), self._context
        outs, made = _run(layout, context, self._program, args, self._key, given, self._kept)
        outs, read = outs[: len(layout.outputs)], outs[len(layout.outputs) :]
        terms, others = outs[: len(layout.terms)], outs[len(layout.terms) :]
        weights = laws(layout, made)
        recorded = {
            s.path: (made[s.path], self._law(s.parameters, len(s.shape), weights))
            for s in self._baselines
        }
        means = [
            times(self._law(layout.others[i], others[i].ndim, weights), others[i])
            for i in self._averaged
        ]
        extra = []
        if self.continued:
            extra = self._replays.corrections(First(self._key, given, made, terms, context.number))
        values, payoffs = self._sums(terms, weights, made, read)
        return values, payoffs, recorded, means, [added(extra, self._zero)]

    def _law(self, dependence: Dependence, ndim: int, weights: Any) -> Any:
        return self._layout.law(dependence, ndim, weights)

    def _sums(self, terms: Any, weights: Any, made: Record, read: Any) -> tuple[Any, Any]:
        """The terms with their scores by grid, and by choice those that a baseline is compared
        with."""
        layout = self._layout
        scores = Scores({s.path: made[s.path]["score"] for s in layout.of(InPlace)})
        values: list[list[Any]] = [[] for _ in self._grids]
        payoffs: dict[Path, list[list[Any]]] = {p: [[] for _ in g] for p, g in self._reach.items()}

        def pay(s: Elements, grid: Any, part: jax.Array) -> None:
            payoffs[s.path][self._reach[s.path].index(grid)].append(part)

        for t, d, grid in layout.grouped(terms):
            weighted = times(self._law(d, t.ndim, weights), t)
            score = scores.sum(d, t.ndim)
            value = weighted if score is None else weighted * magic_box(score)
            values[self._grids.index(grid)].append(sum_over(value))
            for s in self._baselines:
                if s.path in d and s not in self._inside:
                    pay(
                        s, grid, onto(lax.stop_gradient(weighted), d[s.path], [True] * len(s.shape))
                    )
        for s in self._inside:
            assert self._within is not None
            for d, part in self._within.parts(layout, s, read, weights):
                pay(s, layout.on_grid(d), part)
        for s in self._entropic:  # a baseline that cancels the derivative of its own log density
            law = self._law(s.parameters, len(s.shape), weights)
            cancelled = times(law, 1.0 - magic_box(scores.of[s.path]))
            grid = self._grids.index(layout.on_grid(s.parameters))
            values[grid].append(s.own * sum_over(cancelled))
        sums = lambda parts: [added(p, self._zero) for p in parts]
        return sums(values), {p: sums(v) for p, v in payoffs.items()}

    def of_baselines(self, payoffs: Any, recorded: Any, summands: Any) -> list[jax.Array]:
        """The terms that baselines add, from the payoffs of elements and all their summands."""
        terms, whole = [], self._zero
        if any(_baseline(s).whole for s in self._baselines):
            whole = lax.stop_gradient(added(summands, self._zero))
        for s in self._baselines:
            pairs = zip(self._reach[s.path], payoffs[s.path], strict=True)
            met = [sum_over(part, range(len(grid))) for grid, part in pairs]
            payoff = jnp.broadcast_to(added(met, self._zero), s.shape)
            finish = functools.partial(self._finished, _baseline(s), payoff, whole)
            made, law = recorded[s.path]
            for _ in self._layout.on_grid(s.parameters):
                finish = jax.vmap(finish)
            terms.append(sum_over(finish(made) if law is None else law * finish(made)))
        return terms

    def _finished(self, baseline: Any, payoff: jax.Array, whole: jax.Array, made: Any) -> jax.Array:
        """The term of a baseline; of one that is compared with the whole payoff, with the scores
        for what the choice does not reach, of mean 0."""
        if not baseline.whole:
            return baseline.finish(made["baseline"], payoff, self._context)
        rest = times(magic_box(made["score"]) - 1.0, whole - payoff)
        total = jnp.broadcast_to(whole, payoff.shape)
        return rest + baseline.finish(made["baseline"], total, self._context)

    def outputs(self, means: Sequence[Any]) -> list[Any]:
        """The other outputs: their mean, or that of a run where elements meet that meet in no
        term."""
        outs: list[Any] = [None] * len(self._layout.others)
        for i, mean in zip(self._averaged, means, strict=True):
            outs[i] = sum_over(mean, range(len(self._averaged[i])))
        if len(self._averaged) < len(outs):
            drawn = self._quiet(self._args, self._key, {}, enumerate=False)[0]
            drawn = drawn[len(self._layout.terms) :]
            outs = [d if o is None else o for d, o in zip(drawn, outs, strict=True)]
        return outs


def _baseline(s: Elements) -> Any:
    estimator = s.chosen.estimator
    return estimator.baseline if isinstance(estimator, InPlace) else None


def _beginning(
    choice: Site, operands: list[Any], key: jax.Array, given: Any, context: Context
) -> tuple[jax.Array, jax.Array]:
    """A draw that alternatives stand in for, or one of them, and the key for theirs."""
    own, others = jax.random.split(key)  # alternatives are independent of the draw
    fixed = lax.stop_gradient(operands)
    value = lax.stop_gradient(draw(choice, fixed, own, sampled, context))
    if given is not None:
        replace, other = given
        value = jnp.where(replace, other, value)
    return value, jax.random.key_data(own_key(others, context))


def _run(
    layout: Layout,
    context: Context,
    program: Segments,
    args: Sequence[Any],
    key: jax.Array,
    given: Record,
    keep: Kept | None = None,
    enumerate: bool = True,
) -> tuple[list[Any], Record]:
    """One run of a scope: its outputs, and what its choices record of each of their elements."""
    rule = _rule(layout, context, enumerate)
    outs, _, made = interpret(program, args, rule, key=key, given=given, keep=keep)
    return outs, made


def _rule(layout: Layout, context: Context, enumerate: bool = True, scored: bool = True) -> Rule:
    """What a run does at a choice.

    Enumerated choices record how probable a value is, in branches with whether they were made at
    all: what a branch that is not taken records is 0. In a replay, which is not ``scored``, others
    record nothing.
    """

    @differentiated
    @entering
    @context.watching
    def rule(
        choice: Any, operands: list[Any], *, path: Path, key: Any, given: Record, acc: Any
    ) -> Any:
        if isinstance(choice, Expect):
            return estimate(choice, operands, key, context), acc, {}
        if isinstance(choice, Factor):
            return refuse_factor(choice)
        if isinstance(choice, Call):
            assert isinstance(choice.program, Densities)
            outs, acc, made = interpret(
                choice.program.simulate, operands, rule, key=key, given=given, acc=acc, path=path
            )
            return outs[: choice.program.n_retval], acc, made
        estimator = layout.chosen[path].estimator
        if isinstance(estimator, Enumerated) and enumerate:
            value, mass = _enumerated(layout, path, operands, given.get(path))
            if path not in layout.sites:  # a support of one value
                return [value], acc, {}
            conditional = layout.sites[path].chosen.choice.conditional
            return [value], acc, {path: Mass(mass, jnp.ones((), bool) if conditional else None)}
        if isinstance(estimator, Enumerated):
            return [draw(choice, operands, key, sampled, context)], acc, {}
        if isinstance(estimator, Continued):
            value, data = _beginning(choice, operands, key, given.get(path), context)
            begun = {path: (jnp.ones((), bool), operands, value, data)}
            return [value], acc, begun if scored else {}
        assert isinstance(estimator, InPlace)
        parameters = lax.stop_gradient(operands) if estimator.score else operands
        value = draw(choice, parameters, key, estimator.draw, context)
        refuse_rounding(choice, estimator.name, "draws", value.dtype)
        if estimator.score and scored:
            value = lax.stop_gradient(value)
            return [value], acc, {path: _score(choice, estimator, operands, value)}
        return [value], acc, {}

    return rule


def _score(site: Site, estimator: InPlace, operands: list[Any], value: Any) -> dict[str, Any]:
    """The log density of each element, and what its baseline makes of it."""
    chosen_outside = site.estimator is not None

    def one(operands: list[Any], value: Any) -> dict[str, Any]:
        d = apart(site.rebuild(site.live(operands)))
        log_prob = estimator.log_prob(d, value)
        log_prob = as_finite(log_prob, operands) if rounding_parts(d) else log_prob
        if site.masked:
            log_prob = jnp.where(site.mask(operands), log_prob, 0.0)
        own = site.rebuild_estimator(operands) if chosen_outside else estimator
        parts = {} if own.baseline is None else own.baseline.accumulate(log_prob)
        return {"score": log_prob, "baseline": parts}

    return per_element(site.axes, one, 1)(operands, value)


# --- enumerated sites ---------------------------------------------------------------------------


def _given(layout: Layout, indices: Sequence[jax.Array]) -> Record:
    """The values that enumerated choices take, from their indices on the grid."""
    given: Record = {}
    for s in layout.of(Enumerated):
        own = [indices[axis] for axis in layout.axes_of(s.path)]
        if s.stepwise:
            given[s.path] = _by_step(s, iter(own), s.shape[: s.loops])
        else:
            digits = jnp.broadcast_to(_digits(s, own[0]), s.shape[s.loops :])
            given[s.path] = jnp.broadcast_to(digits, s.shape)
    return given


def _by_step(s: Elements, indices: Iterator[jax.Array], lengths: Sequence[int]) -> Any:
    """The joint values of a choice in every step of the loops around it, from one index each."""
    if lengths:
        return Steps(_by_step(s, indices, lengths[1:]) for _ in range(lengths[0]))
    return jnp.broadcast_to(_digits(s, next(indices)), s.shape[s.loops :])


def _digits(s: Elements, index: jax.Array) -> jax.Array:
    """The joint value number ``index`` as one index into the support for each element, the same
    for elements that are apart."""
    axes = zip(s.shape[s.loops :], s.apart[s.loops :], strict=True)
    shape = [1 if apart else n for n, apart in axes]
    places = np.array([s.support**i for i in range(math.prod(shape))][::-1], dtype=np.int32)
    return (index // jnp.asarray(places) % s.support).reshape(shape)


def _enumerated(layout: Layout, path: Path, operands: list[Any], digits: Any) -> Any:
    """The value that the digits stand for, and its probability."""
    chosen = layout.chosen[path]
    site, estimator = chosen.choice.site, chosen.estimator
    assert isinstance(estimator, Enumerated)
    if digits is None:  # a support of one value
        shape = element_shape(site, operands)
        digits = jnp.zeros((*site.sizes, *shape), int)
        return value_and_mass(site, estimator, operands, digits)
    s = layout.sites[path]
    same = frozenset(i for i, apart in enumerate(s.apart[s.loops :]) if apart)
    each = functools.partial(value_and_mass, site, estimator)
    if not same:
        return each(operands, digits)
    closed, consts, _ = _jax.trace(each, operands, digits)
    once = compress(closed, [*[NO] * (len(consts) + len(operands)), same])
    return _jax.evaluate(once, *consts, *operands, digits)


# --- expectations inside, and the outermost one ---------------------------------------------------


def estimate(
    expect: Expect, operands: list[Any], key: jax.Array, context: Context | None = None
) -> list[Any]:
    """One unbiased draw of an expectation, differentiable, with all its ``vmap`` axes."""
    if context is None:  # an objective by itself
        resolved, misfits = resolve(expect.jaxpr, operands)
        expect = dataclasses.replace(expect, jaxpr=resolved)
        check = Soundness(expect.jaxpr, expect.choose, 1, _known(operands), misfits)
        outs = estimate(expect, operands, key, Context(layout=check.layout))
        value = _checked(check, operands, outs[0])
        return [value + _alarm(check, operands, expect.name), *outs[1:]]
    inner = dataclasses.replace(context, averages={})

    def one(operands: list[Any], key: jax.Array) -> list[Any]:
        if expect.counted:
            alone = dataclasses.replace(inner, samples=1, watch=None)
            run = lambda ops, key: scope(expect.jaxpr, ops, key, expect.choose, alone)
            return counted_mean(run, operands, own_key(key, context))
        run = lambda key: scope(expect.jaxpr, operands, key, expect.choose, inner)
        if expect.draws == 1:
            return run(key)
        outs = jax.vmap(run)(jax.random.split(key, expect.draws))
        return [jnp.mean(o, axis=0) for o in outs]

    return per_element(expect.axes, one, 1)(list(operands), element_keys(key, expect.axes))


def surrogate(
    closed: _jax.ClosedJaxpr,
    args: Sequence[Any],
    key: jax.Array,
    choose: Choose,
    *,
    samples: int = 1,
    chunk: int | None = None,
    averages: Mapping[float, Any] | None = None,
    direction: int = 1,
    name: str = "the objective",
    strict: bool = False,
    report: Callable[[Soundness, Sequence[int]], None] | None = None,
    watch: Watch | None = None,
) -> list[Any]:
    """The mean of ``samples`` surrogates with independent draws, ``chunk`` of them at a time.

    When it is first differentiated, what the checker finds is reported: as warnings, or errors
    if ``strict``, or by ``report`` with the numbers of the arguments that are differentiated.
    ``watch`` is told of every choice.
    """
    closed, misfits = resolve(closed, args)
    together = chunk or samples
    check = Soundness(closed, choose, together, _known(args), misfits)
    context = Context(together, averages or {}, direction, check.layout, watch)

    def side_by_side(key: jax.Array) -> list[Any]:
        if together == 1:
            return scope(closed, args, key, choose, context)
        one = lambda i: scope(closed, args, key, choose, context.numbered(i))
        outs = jax.vmap(one, axis_name=SAMPLES)(jnp.arange(together))
        return [jnp.mean(o, axis=0) for o in outs]

    groups = samples // together
    outs = side_by_side(key) if groups == 1 else mean_in_turn(side_by_side, key, groups)
    alarm = _alarm(check, args, name, strict, report)
    return [_checked(check, args, outs[0]) + alarm, *outs[1:]]


def _checked(check: Soundness, args: Sequence[Any], value: jax.Array) -> jax.Array:
    """``value``, in whose derivative it shows that draws are lost."""
    return as_finite(value, args) if check.rounds else value


def _known(args: Sequence[Any]) -> list[Any]:
    return [None if isinstance(a, _jax.Tracer) else a for a in args]


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
            chosen = check.by_choice if strict or is_strict() else ()
            sound_the_alarm(name, (*check.findings(inputs), *chosen), strict)

    return _jax.perturbed([args[i] for i in smooth], tell)


def _expectation_jvp(primals: Any, tangents: Any, *, expect: Expect) -> Any:
    """The value of a scope, differentiated in place."""
    zeros = [_jax.ad.instantiate_zeros(t) for t in tangents]
    key = sample((expect.name,), FreshKey(), source=expect.source)
    with marks.mark(marks.ESTIMATE):
        return jax.jvp(lambda *ops: estimate(expect, list(ops), key), tuple(primals), tuple(zeros))


_jax.differentiate(expect_p, _expectation_jvp)

__all__ = ["Context", "estimate", "surrogate"]
