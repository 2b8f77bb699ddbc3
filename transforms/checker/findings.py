"""What the soundness checker has to say, and in which words.

Each message names the choice and its line, the operation and its line, why the gradient is
wrong, and what to type instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..analyses.contained import Misfit
from ..errors import Address, show
from ..estimation.chosen import Choose, Chosen
from ..estimation.rounding import cure
from ..estimation.support import support_operands
from ..program.choices import Choice, abstract_distribution
from ..program.flat import Op

BIASED, UNSUPPORTED, ALMOST = "biased", "unsupported", "almost everywhere"
AMBIGUOUS = "ambiguous"
PLUG_IN = "plug-in"
UNVALUED = "without its value"
BY_CHOICE = "biased by choice"
LABELS = (ALMOST, PLUG_IN, UNVALUED, BY_CHOICE)
"""Kinds of findings that are no mistakes."""


NOT_LOOKED_AT = (
    "(So many places jump that this one was not looked at in full: it may be continuous.)"
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that the gradient of an objective must not be trusted with.

    ``kind`` is "biased", "unsupported", "ambiguous", "almost everywhere", "plug-in" (a function of
    ``ppl.mean``) or "without its value" (``ppl.score_only``), of which the last two are asked for;
    ``addresses`` are those of the choices concerned; ``operation`` and ``source`` name the equation
    and its line; ``message`` says it all, and what to type instead.

    Example:
        >>> @ppl.expectation
        ... def jumps(m):
        ...     return jnp.where(ppl.sample("x", dist.Normal(m, 1.0), ppl.reparam()) > 0, 1.0, 0.0)
        >>> jumps.explain(0.5).findings[0].kind
        'biased'
    """

    kind: str
    addresses: tuple[Address, ...]
    operation: str
    source: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


_SIGNS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


def operation(op: Op) -> str:
    """What the user would call an equation."""
    if op.within:
        return op.within[0].lstrip("_")
    if op.name == "convert_element_type":
        return f"the conversion to {op.eqn.outvars[0].aval.dtype}"  # type: ignore[attr-defined]
    if op.custom:
        return f"the function {op.eqn.params.get('name') or 'with a rule of its own'}"
    return _SIGNS.get(op.name, op.name)


def why(kind: str, op: Op) -> str:
    if kind == "seam":
        return "its use is not of period 2π"
    what = {"jump": "its use jumps", "stop": "its derivative is dropped"}
    return (
        f"{what.get(kind, 'its use has a derivative rule of its own')} ({operation(op)}, {op.line})"
    )


def of_fault(
    kind: str, op: Op, sites: Sequence[Chosen], drawn: Sequence[Chosen], choose: Choose
) -> Finding:
    """A place at which the dependence on parameters is lost.

    ``sites`` are the pathwise draws whose dependence it is, ``drawn`` all continuous draws.
    """
    if kind == "nonlinear":
        return Finding(UNSUPPORTED, (), operation(op), op.line, _nonlinear(op))
    if kind == "unknown":
        return Finding(BIASED, (), operation(op), op.line, _unknown(op))
    if kind == "score":
        return Finding(BIASED, (), operation(op), op.line, _score(op))
    if kind == "unvalued":
        return Finding(UNVALUED, (), operation(op), op.line, _unvalued(op))
    if kind == "plug-in":
        return Finding(PLUG_IN, (), operation(op), op.line, _plug_in(op))
    if kind == "jump" and not sites:
        message, concerned = _moving_jump(op, drawn), drawn
    else:
        text = {"jump": _jump, "stop": _stop, "custom": _custom, "seam": _seam}
        text |= {"through": _through}
        message, concerned = text[kind](op, sites, choose), sites
    addresses = tuple(dict.fromkeys(s.choice.address for s in concerned))
    return Finding(BIASED, addresses, operation(op), op.line, message)


def of_support(s: Chosen, choose: Choose) -> Finding:
    """A site whose estimator does not see its support move."""
    d = abstract_distribution(s.choice)
    other = choose.instead(d, smooth=True, fixed_support=False)
    message = (
        f"{s.estimator.name} is used for {show(s.choice.address)} ~ {type(d).__name__} at "
        f"{s.choice.source}, whose support depends on a parameter. The gradient does not see the "
        f"support move. {_type(other, s)}"
    )
    return Finding(UNSUPPORTED, (s.choice.address,), type(d).__name__, s.choice.source, message)


def beyond(m: Misfit) -> str:
    if m.end:
        return f"the support of {m.check.name} ({m.check.source}) ends there, maybe before the data"
    return f"its support reaches beyond that of {m.check.name} ({m.check.source})"


def of_crossing(m: Misfit, s: Chosen, choose: Choose) -> Finding:
    """A pathwise draw that leaves the support in which it counts."""
    d = m.check.name
    where = f"{show(m.check.address)} ~ {d} ({m.check.source})"
    what = (
        f"is an end of the support of {where}, and may be beyond the data"
        if m.end
        else f"is scored at {where}, and its support reaches beyond that of {d}"
    )
    message = (
        f"{_named([s])} {what}, where the density is 0: the objective jumps at the end of the "
        "support. The derivative of a draw does not see how much of it crosses that. "
        f"{_instead([s], choose)}"
    )
    return Finding(BIASED, (s.choice.address,), d, m.drawn.source, message)


def of_misfit(m: Misfit) -> Finding:
    """A choice that is scored where its support reaches too far."""
    drawn, scored = show(m.drawn.address), show(m.check.address)
    d = m.check.name
    message = (
        f"the choice {drawn} ~ {m.drawn_from} at {m.drawn.source} is an end of the support of "
        f"{scored} ~ {d} ({m.check.source}), and its own support reaches beyond the data, whose "
        "density is 0 then and the objective minus infinity. Type a distribution that ends at the "
        "data; a continuous one is dist.TransformedDistribution(dist.Normal(m, s), "
        f"dist.biject_to(dist.constraints.{m.end}))."
        if m.end
        else f"the choice {drawn} ~ {m.drawn_from} at {m.drawn.source} is scored at {scored} ~ {d} "
        f"({m.check.source}), and its support reaches beyond that of {d}, where the density is 0 "
        f"and the objective minus infinity. Type a distribution with the support of {d}: {d} "
        "itself, or, for a continuous one, dist.TransformedDistribution(dist.Normal(m, s), "
        f"dist.biject_to(dist.{d}(...).support))."
    )
    return Finding(UNSUPPORTED, (m.drawn.address,), d, m.drawn.source, message)


def of_lost(c: Choice, concentration: Any, limit: Any) -> Finding:
    """A choice whose draws lose their logarithm, which is used."""
    d = type(abstract_distribution(c)).__name__
    message = (
        f"the draws of {show(c.address)} ~ {d} at {c.source} have a concentration of "
        f"{float(concentration):.2g}, and the objective depends on their logarithm. "
        f"{cure(c.site.dtype, float(limit))}"
    )
    return Finding(UNSUPPORTED, (c.address,), d, c.source, message)


def _named(sites: Sequence[Chosen]) -> str:
    return f"the pathwise draw{'s' if len(sites) > 1 else ''} {_names(sites)}"


def _names(sites: Sequence[Chosen]) -> str:
    return " and ".join(f"{show(s.choice.address)} ({s.choice.source})" for s in sites)


def _type(options: Sequence[str], s: Chosen) -> str:
    address = s.choice.address
    if not options:
        return f"No estimator that fits {show(address)} sees it: write the objective without it."
    site = f'ppl.sample("{address[-1]}", ..., {options[0]})'
    return f"Type {' or '.join(options)} at {show(address)}: {site}."


def _instead(sites: Sequence[Chosen], choose: Choose) -> str:
    def options(s: Chosen) -> list[str]:
        fixed = not support_operands(s)
        return choose.instead(abstract_distribution(s.choice), smooth=False, fixed_support=fixed)

    return " ".join(_type(options(s), s) for s in sites)


def _moving_jump(op: Op, drawn: Sequence[Chosen]) -> str:
    what = f"the draw{'s' if len(drawn) > 1 else ''} {_names(drawn)}" if drawn else "a draw"
    return (
        f"a parameter and {what} meet in {operation(op)} at {op.line}, where the objective jumps "
        "at a place that moves with the parameter. No estimator of the draw sees that. Let the "
        "distribution depend on the parameter and compare its draw with a constant: for x < t, "
        'ppl.sample("x", dist.Normal(-t, 1.0), ppl.reinforce()) < 0. If the objective is '
        "continuous there all the same, state it: ppl.continuous(f, reason)."
    )


def _jump(op: Op, sites: Sequence[Chosen], choose: Choose) -> str:
    return (
        f"{_named(sites)} reach{'' if len(sites) > 1 else 'es'} {operation(op)} at {op.line}, "
        "where the objective jumps. The derivative of a draw does not see a jump. "
        f"{_instead(sites, choose)} If the objective is continuous there all the same, state it: "
        "ppl.continuous(f, reason)."
    )


def _stop(op: Op, sites: Sequence[Chosen], choose: Choose) -> str:
    what = _named(sites) if sites else "a parameter"
    return (
        f"the derivative through {what} is dropped by stop_gradient at {op.line}, and what "
        "follows feeds the objective. To hold it constant on purpose, type ppl.detach(x) in the "
        f"place of jax.lax.stop_gradient(x). {_instead(sites, choose)}".rstrip()
    )


def _through(op: Op, sites: Sequence[Chosen], choose: Choose) -> str:
    biased = [s for s in sites if s.estimator.biased]
    name = biased[0].estimator.name
    return (
        f"the estimator {name} of {_names(biased)} carries a derivative through floats, and it is "
        f"dropped by {operation(op)} at {op.line}. A program that scores the draw needs the same "
        f"estimator at its choice, ppl.sample(..., ppl.{name}()); what follows must not compare "
        "the draw, or index with it."
    )


def _seam(op: Op, sites: Sequence[Chosen], choose: Choose) -> str:
    return (
        f"{_named(sites)} is an angle, and the objective is not of period 2π in it: it jumps where "
        "the circle is cut open, between π and -π. Use the angle through jnp.cos(x) and "
        f"jnp.sin(x), or else: {_instead(sites, choose)}"
    )


def _custom(op: Op, sites: Sequence[Chosen], choose: Choose) -> str:
    what = _named(sites) if sites else "a parameter"
    return (
        f"{what} passes through {operation(op)} at {op.line}, whose derivative rule is not the "
        "derivative of what it computes. Correct the rule, or state that the derivative is what "
        f"you mean: ppl.continuous(f, reason). {_instead(sites, choose)}".rstrip()
    )


def _nonlinear(op: Op) -> str:
    return (
        f"a draw of an inner expectation is used in {operation(op)} at {op.line}, which is not "
        "linear in it. The draw is unbiased for the expectation, but a function of it is biased "
        "for the function of the expectation. Use it linearly (+, -, times something "
        "independent); or make it exact with ppl.enum() at each of its choices; or type "
        "ppl.mean(inner(args), n), a plug-in with a bias of O(1/n), or ppl.debias(f, lambda: "
        "inner(args)), which has none."
    )


def _unknown(op: Op) -> str:
    return (
        f"a log density that is known by its score alone (ppl.score_only) is used in "
        f"{operation(op)} at {op.line}, which is not linear in it, so that the gradient needs its "
        "value. Use it linearly (ppl.elbo); or give a distribution with a density."
    )


def _score(op: Op) -> str:
    return (
        f"the score of a log density (ppl.score_only) at {op.line} depends on a parameter. The "
        "derivative of the density in that is not known, and is dropped. Hold it constant on "
        "purpose, ppl.detach(params); or give a distribution with a density."
    )


def _unvalued(op: Op) -> str:
    return (
        f"the log density at {op.line} is known by its score alone (ppl.score_only): the gradient "
        "has it, and the value of the objective lacks it."
    )


def _plug_in(op: Op) -> str:
    return (
        f"a mean of draws (ppl.mean) is used in {operation(op)} at {op.line}, which is not linear "
        "in it: a plug-in, whose value and gradient have a bias of O(1/n) in the number n of "
        "draws. ppl.debias(f, lambda: inner(args)) has none."
    )


def of_contradiction(op: Op, s: Chosen) -> Finding:
    """An estimator that was chosen since a derivative rule is not that of its value."""
    address, estimator = show(s.choice.address), s.estimator.name
    site = f'ppl.sample("{s.choice.address[-1]}", ..., ppl.{estimator}())'
    message = (
        f"the automatic choice for {address} ({s.choice.source}) is {estimator}, which does not "
        f"use the derivative rule of {operation(op)} at {op.line}: the rule is not the derivative "
        "of what the function computes, and the gradient is that of the value. If you mean the "
        "rule, type ppl.continuous(f, reason) around the function; if you mean the value, type "
        f"the estimator: {site}."
    )
    return Finding(AMBIGUOUS, (s.choice.address,), operation(op), op.line, message)


def of_biased(s: Chosen) -> Finding:
    """A choice whose estimator is known to be biased, and was typed all the same."""
    c, name = s.choice, s.estimator.name
    message = (
        f"the estimator {name} of {show(c.address)} at {c.source} is biased, whatever the number "
        "of samples, unless what follows is linear in the draw. Unbiased ones are ppl.enum(), "
        'ppl.reinforce("loo"), ppl.disarm() and others: see docs/estimators.md.'
    )
    return Finding(BY_CHOICE, (c.address,), name, c.source, message)


def of_baseline(s: Chosen) -> Finding:
    baseline: Any = getattr(s.estimator, "baseline", None)
    name = type(baseline).__name__
    message = (
        f"the baseline {name} of {show(s.choice.address)} at {s.choice.source} depends on the "
        "payoff of the draw that it is for, so that the gradient is biased. Use the others "
        'only, context.others(payoff), or type ppl.reinforce("loo").'
    )
    return Finding(UNSUPPORTED, (s.choice.address,), name, s.choice.source, message)


def of_kink(op: Op, jumps: bool) -> Finding:
    what = "jumps" if jumps else "has a kink"
    message = (
        f"{operation(op)} at {op.line} {what}: the derivative exists almost everywhere, which "
        "is enough for the gradient, but not for a second derivative."
    )
    return Finding(ALMOST, (), operation(op), op.line, message)
