"""The soundness checker: which gradients would be biased, before the first step.

An abstract interpretation of the objective, flat (``flat.py``), with the estimators of its sites
assigned. Of every value it knows

- *sources*: the inputs of the objective and the pathwise draws that it depends on smoothly;
- *faults*: the places at which this dependence was lost on the way: an equation that jumps
  (a comparison, floor, argmax, ...), a ``stop_gradient``, a derivative rule of the user's;
- on which continuous random draws it depends, and linearly on which draws of expectations.

A draw of any other estimator than the pathwise one has no sources. A fault that reaches the
payoff or the parameters of a site biases the gradient, unless it is gone where its paths meet
again, as in relu, logsumexp or bilinear interpolation: ``continuity.py`` decides that by
evaluating the few equations in between. Loops are iterated to a fixed point. Densities, and
what the user states to be continuous, are marked (``marks.py``) and have no faults.

Source: the typing of ADEV (Lew et al., POPL 2023) and of Becker et al. (PLDI 2024), smooth reals
R against reals R* without derivative, as rules on jaxprs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from .. import _jax
from ..analyses import primitives
from ..analyses.contained import Misfit
from ..analyses.tail import is_float
from ..estimation.baselines import sees_own_draw
from ..estimation.chosen import Choose, Chosen, Rough
from ..estimation.estimator import Enumerated, InPlace
from ..estimation.inside import support_of
from ..estimation.rounding import rounding_parts
from ..estimation.support import support_operands
from ..estimation.unknown import unknown_p
from ..plan.assignment import assign
from ..plan.layout import Layout
from ..plan.layouts import Layouts
from ..program import marks
from ..program.choices import abstract_distribution, random_of
from ..program.control import Branches, Loop, Until
from ..program.flat import Flat, Op, flatten
from ..program.messages import transformable
from ..program.site import Expect, Site
from ..smoothness import verdicts
from .cures import Cures, Known
from .draws import Draws
from .findings import (
    NOT_LOOKED_AT,
    Finding,
    beyond,
    of_baseline,
    of_biased,
    of_contradiction,
    of_crossing,
    of_fault,
    of_kink,
    of_misfit,
    of_support,
    why,
)
from .outside import NOWHERE, TEST, Outside, is_infinite, passed_on
from .scopes import Scope
from .traits import (
    CONSTANT,
    UNSMOOTH,
    Estimate,
    Fault,
    Source,
    Value,
    Values,
    drawn_by,
    is_circular,
    is_linear,
    is_lookup,
    is_smooth,
    join,
    jumps_of,
    nonlinear,
    of_last_step,
)


class Soundness:
    """The analysis of one objective; choosing its automatic estimators is a part of it."""

    def __init__(
        self,
        closed: _jax.ClosedJaxpr,
        choose: Choose,
        samples: int,
        known: Sequence[Any] = (),
        misfits: Sequence[Misfit] = (),
    ):
        """``known`` are the inputs that are constants, and None for the others."""
        self.samples = samples
        self.layouts = Layouts(dict(zip(closed.jaxpr.invars, known, strict=False)))
        self._misfits = {id(m.outcome): (i, m) for i, m in enumerate(misfits)}
        self._scopes: dict[int, Scope] = {}
        self._cures = Cures()
        self._draws = Draws()
        self._contradicted: dict[Source, Fault] = {}
        self._root = self._scope(closed, choose, slice(1))
        known = list(known) or [None] * len(closed.in_avals)
        self._cures.give(self._root.flat, known)
        self._inputs = [
            Value(frozenset({("input", i)}))
            if jnp.issubdtype(a.dtype, jnp.inexact) and c is None
            else CONSTANT
            for i, (a, c) in enumerate(zip(closed.in_avals, known, strict=True))
        ]
        self._choose_estimators()

    def layout(self, closed: _jax.ClosedJaxpr, choose: Choose) -> Layout:
        """How a scope is laid out, with the estimators that were assigned."""
        scope = self._scopes.get(id(closed))  # None: of no consequence for the payoff
        chosen = scope.chosen if scope else assign(closed, choose, self.samples)
        return self.layouts.of(transformable(closed), chosen)

    @property
    def scopes(self) -> Iterator[tuple[str, _jax.ClosedJaxpr, list[Chosen]]]:
        """The name, the program, and the sites with their estimators, of each scope."""
        for scope in self._scopes.values():
            yield scope.name, scope.closed, scope.chosen

    def findings(
        self, perturbed: Iterable[int] | None = None, *, kinks: bool = False, labels: bool = False
    ) -> Any:
        """What is wrong with the gradient in the inputs ``perturbed`` (default: in all).

        With ``kinks`` also where the derivative exists almost everywhere only; with ``labels`` also
        what is no mistake.
        """
        inputs = range(len(self._inputs)) if perturbed is None else perturbed
        wanted: frozenset[Source] = frozenset(("input", i) for i in inputs)
        matters = lambda f: f.matters(wanted, labels)
        self._settle(matters)
        found = [self._finding(f) for f in self._reached if matters(f)]
        found += self._misfitting(wanted)
        found += [
            of_support(s, self._root.choose) for s, x in self._moving if not wanted.isdisjoint(x)
        ]
        found += [
            self._as_looked_at(f, of_contradiction(f.op, self._sites([source])[0]))
            for source, f in self._contradicted.items()
            if not wanted.isdisjoint(f.sources)
        ]
        for _, s in self.sites:
            baseline = getattr(s.estimator, "baseline", None)
            if baseline is not None and sees_own_draw(baseline, self.samples):
                found.append(of_baseline(s))
        if labels:
            found += self.by_choice
        if kinks:
            found += [
                of_kink(f.op, False)
                for f in self._kinks.values()
                if not wanted.isdisjoint(f.sources)
            ]
            found += [
                of_kink(f.op, True)
                for f in self._reached
                if f.kind == "jump"
                and not (f.drawn or f.suspect)
                and not wanted.isdisjoint(f.sources)
            ]
        return tuple(dict.fromkeys(found))

    def _misfitting(self, wanted: frozenset[Source]) -> Iterator[Finding]:
        """Choices that reach beyond a support, where that matters."""
        yield from (
            of_misfit(m) for i, m in self._misfits.values() if is_infinite(self._outside, i)
        )
        for m, _, s, moving in self._crossing():
            if not wanted.isdisjoint(moving):
                yield of_crossing(m, s, self._root.choose)

    def _crossing(self) -> Iterator[tuple[Misfit, Source, Chosen, frozenset[Source]]]:
        """Pathwise draws that weigh nothing outside of a support, the end of which they cross."""
        for i, m in self._misfits.values():
            for source, s, moving in self._pathwise:
                site = s.choice.site
                same = (site.address, site.source) == (m.drawn.address, m.drawn.source)
                if same and not is_infinite(self._outside, i):
                    yield m, source, s, moving

    def _finding(self, f: Fault) -> Finding:
        sites, drawn = self._sites(f.sources), self._sites(f.drawn)
        return self._as_looked_at(f, of_fault(f.kind, f.op, sites, drawn, self._root.choose))

    def _as_looked_at(self, f: Fault, found: Finding) -> Finding:
        if not self._cures.is_undecided(f):
            return found
        return dataclasses.replace(found, message=f"{found.message} {NOT_LOOKED_AT}")

    @property
    def sites(self) -> Iterator[tuple[str, Chosen]]:
        """The sites of all scopes; those of an expectation inside with its name in front."""
        for scope in self._scopes.values():
            for s in scope.chosen:
                yield scope.name, s

    @property
    def by_choice(self) -> tuple[Finding, ...]:
        """What is biased as its estimator is known to be: told where one asks, or is strict."""
        return tuple(of_biased(s) for _, s in self.sites if s.estimator.biased)

    @property
    def stated(self) -> tuple[tuple[str, str], ...]:
        """What the user stated to be continuous: reasons, and lines."""
        return tuple(self._stated.items())

    @property
    def rounds(self) -> bool:
        """Whether draws of a choice may round to the end of their support."""
        return any(rounding_parts(abstract_distribution(s.choice)) for _, s in self.sites)

    # --- the sweep --------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Interpret the whole objective, with the cures that are known."""
        self._faults: dict[tuple[Flat, int, str], Fault] = {}
        self._reached: dict[Fault, None] = {}
        self._sunk: dict[Flat, set[int]] = {}
        self._values: dict[Flat, dict[int, Value]] = {}
        self._kinks: dict[tuple[Flat, int], Fault] = {}
        self._moving: list[tuple[Chosen, frozenset[Source]]] = []
        self._stated: dict[str, str] = {}
        self._pathwise: list[tuple[Source, Chosen, frozenset[Source]]] = []
        self._outside: Outside = NOWHERE
        for out in self._run(self._root.flat, self._inputs, self._root):
            self._reached.update(dict.fromkeys(out.faults))
            self._outside |= out.outside

    def _settle(self, matters: Callable[[Fault], bool]) -> None:
        """Sweep until no fault that matters turns out to be gone where its paths meet."""
        while True:
            self._sweep()
            cured = False
            for f in sorted(self._reached, key=lambda f: (f.suspect, f.index)):
                if f.kind in UNSMOOTH or self._cures.is_tried(f) or not matters(f):
                    continue
                cured |= self._cures.cure(f, Known(self._values, self._sunk, self._draws.domains))
            if not cured:
                return

    def _choose_estimators(self) -> None:
        """Assign estimators; no automatic site stays pathwise whose use is not smooth."""
        self._settle(lambda f: any(s in self._automatic() for s in f.sources))
        while True:
            automatic = self._automatic()
            jumps = [f for f in self._reached if f.kind not in UNSMOOTH]
            rough = {source: f for f in jumps for source in f.sources & set(automatic)}
            reasons = {source: why(f.kind, f.op) for source, f in rough.items()}
            reasons |= {s: beyond(m) for m, s, _, _ in self._crossing() if s in automatic}
            if not reasons:
                return
            for source, reason in reasons.items():
                scope, chosen = automatic[source]
                fixed = not support_operands(chosen)
                scope.rough[chosen.choice.path] = Rough(reason, fixed)
            for scope in {id(automatic[s][0]): automatic[s][0] for s in reasons}.values():
                scope.assign(self.samples, self.layouts)
            self._contradicted |= {
                source: f
                for f in self._reached
                for source in f.sources & set(rough)
                if f.kind == "custom"
            }
            self._settle(lambda f: any(s in self._automatic() for s in f.sources))

    def _automatic(self) -> dict[Source, tuple[Scope, Chosen]]:
        """The pathwise sites that nobody chose, and that could be otherwise."""
        return {
            ("site", (i, s.choice.path)): (scope, s)
            for i, scope in self._scopes.items()
            for s in scope.chosen
            if s.choice.site.estimator is None
            and s.choice.path not in scope.rough
            and isinstance(s.estimator, InPlace)
            and not s.estimator.score
        }

    def _scope(
        self, closed: _jax.ClosedJaxpr, choose: Choose, outputs: slice, name: str = ""
    ) -> Scope:
        if id(closed) not in self._scopes:
            scope = Scope(closed, choose, flatten(closed, outputs), name)
            scope.assign(self.samples, self.layouts)
            self._scopes[id(closed)] = scope
        return self._scopes[id(closed)]

    # --- the rules --------------------------------------------------------------------------------

    def _run(self, flat: Flat, inputs: Sequence[Value], scope: Scope) -> list[Value]:
        env: dict[int, Value] = dict(zip(flat.inputs, inputs, strict=True))
        self._values[flat] = env

        def read(v: Any) -> Value:
            return env[v] if isinstance(v, int) else CONSTANT

        for i, op in enumerate(flat.ops):
            args = [read(v) for v in op.ins]
            for v, value in zip(op.outs, self._op(flat, i, args, scope), strict=True):
                env[v] = self._cures.healed(flat, v, value)
        return [read(v) for v in flat.outputs]

    def _op(self, flat: Flat, i: int, args: list[Value], scope: Scope) -> Sequence[Value]:
        op = flat.ops[i]
        random = random_of(op.eqn)
        if isinstance(random, Site):
            return [self._site(flat, i, random, args, scope)]
        if isinstance(random, Expect):
            return self._expect(flat, i, random, args, scope)
        if op.bodies and not is_lookup(flat, op):
            self._cures.enclose(op.bodies, flat, i)
            return _CONTROL[type(op.control)](self, flat, i, op.control, args, scope)
        return self._plain(flat, i, args)

    def _plain(self, flat: Flat, i: int, args: list[Value]) -> Sequence[Value]:
        if not self._misfits:
            return self._traced(flat, i, args)
        op = flat.ops[i]
        outs = self._traced(flat, i, [a._replace(outside=NOWHERE) for a in args])
        outside = passed_on(op, [a.outside for a in args])
        if id(op.eqn) in self._misfits:
            outside |= {(self._misfits[id(op.eqn)][0], TEST)}
        return [o._replace(outside=outside) for o in outs]

    def _traced(self, flat: Flat, i: int, args: list[Value]) -> list[Value]:
        op, all_ = flat.ops[i], join(args)
        if op.eqn.primitive is unknown_p:
            return [self._unknown(flat, i, args[1])]
        if all_ is CONSTANT:
            return [Value(drawn=drawn_by(op))] * len(op.outs)
        if op.name == "stop_gradient" and marks.is_held(op.stack):
            return [Value(drawn=all_.drawn)]
        faults, estimates = all_.faults, all_.estimates
        if estimates and not is_linear(op, args) and not marks.is_debiased(op.stack):
            faults |= {self._fault(nonlinear(estimates), flat, i, all_)}
            estimates = frozenset()
        out = Value(all_.sources, faults, all_.drawn | drawn_by(op), estimates)
        jumps = jumps_of(flat, op)
        suspect = primitives.of(op.eqn).signs or op.name == "is_finite"
        if not any(jumps) and (self._draws.reach_pole(flat, op, args) or verdicts.is_cut(op)):
            jumps, suspect = [True] * len(jumps), True
        stops = op.name in ("stop_gradient", "bitcast_convert_type")
        if out.sources and primitives.named(op.name).kinks:
            self._kinks[flat, i] = Fault("kink", flat, i, set(out.sources))
        custom = op.custom or primitives.is_foreign(op.name)
        if not out.sources or not (any(jumps) or stops or custom):
            return [out] * len(op.outs)
        verdict = self._verdict(op)
        if verdict == verdicts.SMOOTH or (verdict == verdicts.SUSPECT and not any(jumps)):
            return [out] * len(op.outs)
        through = any(s.estimator.biased for s in self._sites(out.sources))
        if through and not is_float(op.eqn.outvars[0]):
            return [self._broken("through", flat, i, out)] * len(op.outs)
        if custom:
            broken = self._broken("custom", flat, i, out)
            return [broken._replace(sources=out.sources)] * len(op.outs)
        if (suspect or verdict == verdicts.SUSPECT) and not stops:
            pairs = zip(op.ins, args, strict=True)
            known = any(
                a.sources and isinstance(v, int) and not is_smooth(flat, v) for v, a in pairs
            )
            if known or not out.drawn:  # what is whole was tried where it became so
                return [out] * len(op.outs)
            broken = self._broken("jump", flat, i, out, suspect=True)
            return [broken._replace(sources=out.sources) if j else out for j in jumps]
        broken = self._broken("stop" if stops else "jump", flat, i, out)
        return [broken if j or stops else out for j in jumps]

    def _unknown(self, flat: Flat, i: int, score: Value) -> Value:
        """A density whose value is not known, nor the derivative in parameters of its score."""
        kinds = ["unvalued", "score"] if score.sources else ["unvalued"]
        faults = score.faults | {self._fault(kind, flat, i, score) for kind in kinds}
        return Value(faults=faults, estimates=frozenset({Estimate(0, 0)}))

    def _verdict(self, op: Op) -> str:
        if (reason := marks.reason_of(op.stack)) is not None:
            self._stated.setdefault(reason, op.line)
        return verdicts.of(op)

    def _fault(self, kind: str, flat: Flat, i: int, value: Value, suspect: bool = False) -> Fault:
        fault = self._faults.setdefault((flat, i, kind), Fault(kind, flat, i, suspect=suspect))
        fault.sources |= value.sources
        fault.drawn |= value.drawn
        return fault

    def _broken(self, kind: str, flat: Flat, i: int, value: Value, suspect: bool = False) -> Value:
        fault = self._fault(kind, flat, i, value, suspect=suspect)
        return value._replace(sources=frozenset(), faults=value.faults | {fault})

    def _site(self, flat: Flat, i: int, site: Site, args: list[Value], scope: Scope) -> Value:
        chosen = scope.by_path[flat.ops[i].path]
        end = len(args) - site.n_estimator - site.masked
        parameters = join([*args[:end], *args[len(args) - site.masked :]])
        d = abstract_distribution(chosen.choice)
        circular = is_circular(d)
        self._draws.note(flat, i, site, d)
        turns = {f for f in parameters.faults if circular and f.op.name == "atan2"}
        self._reached.update(dict.fromkeys(parameters.faults - turns))
        self._sunk.setdefault(flat, set()).update(flat.ops[i].values)
        self._outside |= parameters.outside
        if parameters.estimates:
            self._reached[self._fault(nonlinear(parameters.estimates), flat, i, parameters)] = None
        source: Source = ("site", (id(scope.closed), chosen.choice.path))
        own = frozenset({source})
        discrete = getattr(support_of(d), "is_discrete", False)  # draws of floats too
        floating = jnp.issubdtype(site.dtype, jnp.floating) and not discrete
        drawn = own if floating else frozenset()
        estimator = chosen.estimator
        if isinstance(estimator, InPlace) and not estimator.score:
            sources = parameters.sources | own if parameters.sources else parameters.sources
            if sources and self._misfits:
                self._pathwise.append((source, chosen, sources))
            out = Value(sources, drawn=drawn)
            if sources and circular:  # continuous on the circle, which is cut open at pi
                return self._broken("seam", flat, i, out)._replace(sources=sources)
            return out
        if parameters.sources and isinstance(estimator, InPlace | Enumerated):
            moving = join([args[j] for j in support_operands(chosen)]).sources
            if moving:
                self._moving.append((chosen, moving))
        return Value(drawn=drawn)

    def _expect(self, flat: Flat, i: int, expect: Expect, args: Values, scope: Scope) -> Values:
        name = f"{scope.name}{expect.name}/"
        inner = self._scope(expect.jaxpr, expect.choose, slice(None), name)
        self._cures.pass_on(flat, flat.ops[i].ins, inner.flat)
        outs = self._run(inner.flat, args, inner)
        exact = all(isinstance(s.estimator, Enumerated) for s in inner.chosen)
        own = frozenset() if exact else frozenset({Estimate(id(expect.jaxpr), expect.draws)})
        return [
            o._replace(
                drawn=o.drawn | {("expectation", id(expect.jaxpr))}, estimates=o.estimates | own
            )
            for o in outs
        ]

    def _scan(self, flat: Flat, i: int, loop: Loop, args: list[Value], scope: Scope) -> list[Value]:
        (body,) = flat.ops[i].bodies
        consts, carry, xs = loop.operands(args)
        self._cures.pass_on(flat, loop.operands(flat.ops[i].ins)[0], body)
        while True:
            late, ys = loop.results(self._run(body, [*consts, *carry, *xs], scope))
            new = [join([c, of_last_step(o)]) for c, o in zip(carry, late, strict=True)]
            if new == carry:
                return self._kept_for_later(flat, i, [*carry, *ys])
            carry = new

    def _kept_for_later(self, flat: Flat, i: int, outs: list[Value]) -> list[Value]:
        """The results of a loop, those with a fault that are whole: tried where they are used."""
        smooth = lambda v: jnp.issubdtype(flat.avals[v].dtype, jnp.inexact)
        return [
            self._broken("jump", flat, i, o, suspect=True)._replace(sources=o.sources)
            if o.sources and o.drawn and not smooth(v)
            else o
            for v, o in zip(flat.ops[i].outs, outs, strict=True)
        ]

    def _cond(self, flat: Flat, i: int, _: Branches, args: Values, scope: Scope) -> Values:
        index, *operands = args
        for body in flat.ops[i].bodies:
            self._cures.pass_on(flat, flat.ops[i].ins[1:], body)
        outs = [self._run(body, operands, scope) for body in flat.ops[i].bodies]
        if index.estimates:
            fault = self._fault(nonlinear(index.estimates), flat, i, index)
            index = index._replace(faults=index.faults | {fault}, estimates=frozenset())
        return [join([index, *cases]) for cases in zip(*outs, strict=True)]

    def _while(self, flat: Flat, i: int, until: Until, args: Values, scope: Scope) -> Values:
        test, step = flat.ops[i].bodies
        of_test, of_step, _ = until.operands(flat.ops[i].ins)
        self._cures.pass_on(flat, of_test, test)
        self._cures.pass_on(flat, of_step, step)
        of_test, of_step, carry = until.operands(args)
        while True:
            stop = self._run(test, [*of_test, *carry], scope)[0]
            outs = self._run(step, [*of_step, *carry], scope)
            new = [join([c, o, stop]) for c, o in zip(carry, map(of_last_step, outs), strict=True)]
            if new == carry:
                return carry
            carry = new

    def _sites(self, sources: Iterable[Source]) -> list[Chosen]:
        where = [key for kind, key in sources if kind == "site"]
        return [self._scopes[i].by_path[path] for i, path in sorted(where)]


_CONTROL: dict[type, Callable[..., Sequence[Value]]] = {
    Loop: Soundness._scan,
    Branches: Soundness._cond,
    Until: Soundness._while,
}
