"""``ppl.tune``: which gradient estimators suit an objective, by measurement.

Compared is variance x seconds, since the mean of faster gradients is of more of them. They are run
in a compiled loop, as in a fit, from the same keys for each combination of estimators. Rounds of
successive halving (Karnin, Koren & Somekh 2013) measure the better half of the last round's, in
turns, so that drift hits all alike.
"""

from __future__ import annotations

import html
import inspect
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from itertools import product
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from estimators.baselines import LeaveOneOut, Within
from estimators.disarm import Disarm
from estimators.enumeration import Enum
from estimators.measure_valued import MVD
from estimators.pathwise import Reparam
from estimators.perturbation import SPA
from estimators.reinforce import Reinforce
from estimators.unordered import Unordered
from transforms import _jax
from transforms.checker.findings import PLUG_IN, UNVALUED
from transforms.errors import AddressError, PPLError, UnsupportedError, describe, nearest, show
from transforms.estimation.chosen import support_size
from transforms.runs.retarget import retarget

from ..programs.given import as_key
from .audit import ROUNDING
from .derivatives import is_floating
from .expectation import Expectation, check_differentiable, counts
from .leaves import split
from .scopes import fits, scopes_of

EXHAUSTIVE, MEMORY = 64, 2**32
"""Most combinations that are all tried; most bytes that one may take."""
LEAST, TURNS, TURN = 8, (4, 64), 5e-3
"""Fewest gradients of a combination; fewest and most turns in a round; seconds of a turn."""
LOO, WITHIN = Reinforce(LeaveOneOut()), Reinforce(Within())
TYPED: dict[Any, str] = {Reparam(): "ppl.reparam()", Enum(): "ppl.enum()", MVD(): "ppl.mvd()"}
TYPED |= {Disarm(): "ppl.disarm()", WITHIN: 'ppl.reinforce("within")'}
TYPED |= {Unordered(): "ppl.unordered()", SPA(): "ppl.spa()"}
TYPED |= {LOO: 'ppl.reinforce("loo")', Reinforce(): "ppl.reinforce()", None: "as it is"}
Address = str | tuple[str, ...]
_rank = lambda t: (t.merit, t.seconds)


@dataclass(eq=False)
class Trial:
    """A combination of estimators (None: the one that is there) and sizes, and what was measured.

    ``variance`` of the gradient, summed over all parameters, with its standard ``error``;
    ``seconds`` of one gradient in a compiled loop, the least of all turns, since whatever else the
    machine does only adds to it. ``why_not`` is empty where it is admissible.
    """

    assignment: Mapping[Address, Any]
    why_not: str = ""
    variance: float = math.nan
    error: float = math.nan
    seconds: float = math.nan
    turns: list[tuple[float, float, float]] = field(default_factory=list, repr=False)
    loop: Any = field(default=None, repr=False)

    @property
    def merit(self) -> float:
        """variance x seconds, less is better; infinite if not admissible."""
        return math.inf if self.why_not else self.variance * self.seconds

    def run(self, key: jax.Array, n: int) -> float:
        """Measure ``n`` gradients; returns the seconds they took."""
        start = time.perf_counter()
        variance, rounding, value = self.loop(np.int32(n), key).tolist()
        seconds = time.perf_counter() - start
        if not math.isfinite(variance + value):
            self.why_not = "its value or gradient is not finite"
        self.turns.append((n - 1, seconds / n, variance if variance > rounding else 0.0))
        weights, times, variances = np.array(self.turns).T
        self.seconds = float(times.min())
        self.variance = float(np.average(variances, weights=weights))
        self.error = math.hypot(*weights * (variances - self.variance)) / float(sum(weights))
        return seconds


@final
@dataclass(frozen=True)
class Tuned:
    """What ``ppl.tune`` returns: text in a terminal, a table in a notebook.

    Attributes:
        assignment: the best estimator for each address, but for those that stay as they are.
        objective: with these estimators.
        tried: a :class:`Trial` for each combination: the best, the others, the inadmissible ones.
        before: that of the objective as it was.
        exhaustive: whether all combinations were tried.
        sizes: the best of the ``sizes`` to try.

    Example:
        >>> tuned = ppl.tune(elbo, key, phi, budget=0.2)
        >>> list(tuned.assignment)
        ['x']
    """

    assignment: Mapping[Address, Any]
    objective: Expectation
    tried: tuple[Trial, ...]
    before: Trial
    exhaustive: bool
    sizes: Mapping[str, int] = field(default_factory=dict)

    def _table(self) -> list[list[str]]:
        measured = ["variance", "standard error", "seconds", "variance x seconds", ""]
        rows = [[*map(str, self.before.assignment), *measured]]
        for t in self.tried:
            numbers = (t.variance, t.error, t.seconds, t.merit)
            texts = ["" if t.why_not else f"{v:.3g}" for v in numbers]
            note = t.why_not or "as it was" * (t is self.before)
            rows.append([*map(_typed, t.assignment.values()), *texts, note])
        return rows

    def _verdict(self) -> str:
        best = {**self.assignment, **self.sizes}
        text = ", ".join(f"{a!r}: {_typed(e)}" for a, e in best.items())
        how = "all combinations" if self.exhaustive else "one address at a time, from as it was"
        return f"Best for {self.objective.name}: {{{text}}}. Tried: {how}."

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self._table(), strict=True)]
        pad = lambda row: "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        return "\n".join([*map(pad, self._table()), self._verdict()])

    def _repr_html_(self) -> str:
        line = lambda row: "".join(f"<td>{html.escape(c)}</td>" for c in row)
        rows = "".join(f"<tr>{line(row)}</tr>" for row in self._table())
        return f"<table>{rows}</table><p>{html.escape(self._verdict())}</p>"


def tune(
    objective: Expectation,
    key: jax.Array,
    *args: Any,
    budget: float = 10.0,
    samples: int = 1,
    chunk: int | None = None,
    argnums: int | Sequence[int] = 0,
    addresses: Iterable[Address] = (),
    sizes: Mapping[str, Sequence[int]] | None = None,
    **kwargs: Any,
) -> Tuned:
    """Measure which gradient estimators suit an objective: the least variance x seconds.

    Tried are the estimators that fit each address, in all combinations, or, beyond 64 of them, one
    address at a time from what is there. Those whose gradient the soundness checker finds biased
    or unsupported are not admissible.

    Args:
        objective: an ``@ppl.expectation``.
        key: random key.
        *args, **kwargs: the arguments of the objective, any pytrees; what is best depends on them.
        budget: seconds of measuring. Compiling, once for each combination, comes on top.
        samples: how many estimates a gradient averages; ``ppl.reinforce("loo")`` needs several.
        chunk: how many of them are in memory at a time.
        argnums: which argument(s) to differentiate.
        addresses: choices to tune, like ``["x", ("inner", "k")]`` (the name of an expectation
            inside comes first); by default all whose estimator was not chosen.
        sizes: keyword arguments of the objective that say how many draws something takes, and what
            to try for each: ``{"n": [1, 4, 16]}``, of ``ppl.debias(f, inner, n=n)``. Of a plug-in,
            whose bias depends on them, none is admissible.

    Raises:
        UnsupportedError: nothing to tune, no floating-point argument, or nothing is admissible.
        AddressError: an address is unknown. ValueError: the budget is too small.

    Example:
        >>> tuned = ppl.tune(elbo, key, phi, samples=8, budget=0.5)
        >>> fit = ppl.maximize(tuned.objective, phi, optax.adam(0.1), key=key, steps=100)
    """
    if not isinstance(objective, Expectation):
        raise UnsupportedError(
            f"{describe(objective)} cannot be tuned ({_jax.user_line()}). Add @ppl.expectation."
        )
    where = f"{objective.name}, tuned at {_jax.user_line()},"
    nums = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    given, typed, named = objective, args, {Size(n): [*v] for n, v in (sizes or {}).items()}
    bound = lambda at: _sized(given, _of(at, Size)).bound(typed, kwargs)
    objective, args = bound({name: values[0] for name, values in named.items()})
    check_differentiable(args, nums)
    if not any(map(is_floating, jax.tree.leaves([args[i] for i in nums]))):
        raise UnsupportedError(f"{where} gets no float in argument {nums}. Type 1.0 or argnums=1.")
    key = jax.random.key(jax.random.bits(as_key(key)))  # of the kind that explain traces
    how = {**counts(samples, chunk), "argnums": nums}
    options = _options(objective, args, how, list(addresses), where, bool(named)) | named
    tried: dict[Any, Trial] = {}

    def trial(*estimators: Any) -> Trial:
        if estimators not in tried:
            new = tried[estimators] = Trial(dict(zip(options, estimators, strict=True)))
            try:
                here = _retargeted(bound(new.assignment)[0], _of(new.assignment))
                new.why_not = _prepare(new, here.explain(*args, **how), split(args)[0], not named)
            except (PPLError, jax.errors.JaxRuntimeError) as error:
                new.why_not = str(error).split(". ")[0]
        return tried[estimators]

    best = before = trial(*(fit[0] for fit in options.values()))
    exhaustive = math.prod(map(len, options.values())) <= EXHAUSTIVE
    if exhaustive:
        best = _best([trial(*t) for t in product(*options.values())], key, budget, where, 1)
    for i, a in enumerate([] if exhaustive else [*options] * 2):
        rivals = [trial(*{**best.assignment, a: e}.values()) for e in options[a]]
        best = _best(rivals, jax.random.fold_in(key, i), budget, where, 2 * len(options))
    if best.why_not:
        raise UnsupportedError(
            f"{where} has no admissible estimators. As it is: {before.why_not}. See .explain(...)."
        )
    for t in tried.values():
        t.loop = None
    chosen = {a: e for a, e in _of(best.assignment).items() if e}
    rows = tuple(sorted(tried.values(), key=lambda t: (t is not best, *_rank(t))))
    drawn = _of(best.assignment, Size)
    found = _retargeted(_sized(given, drawn), chosen)
    return Tuned(chosen, found, rows, before, exhaustive, {str(k): n for k, n in drawn.items()})


def _best(trials: list[Trial], key: jax.Array, budget: float, where: str, parts: int) -> Trial:
    """The best of some combinations, by one of so many parts of the budget."""
    ready = [t for t in trials if not t.why_not]
    new = [t for t in ready if len(t.turns) == 1]
    limit = max(10 * min((t.seconds for t in ready), default=0.0), budget / (2 * LEAST))
    for t in [t for t in new if t.seconds > limit]:
        t.why_not = f"slow: {t.seconds:.2g} s for one gradient"
        ready.remove(t)
    needed = 2 * LEAST * parts * sum(t.seconds for t in ready)
    if needed > budget and set(ready) <= set(new):
        raise ValueError(
            f"budget={budget:g} is too few seconds for the {len(ready)} combinations that {where} "
            f"has. Type budget={2 * needed:.1g}, or tune fewer choices: addresses=[...]."
        )
    left = budget / parts
    for r in range(len(ready).bit_length(), 0, -1):
        turns = int(np.clip(left / (r * TURN * len(ready)), *TURNS))
        pace = sum(t.seconds for t in ready)
        n = int(np.clip(left / (r * turns * pace), LEAST // TURNS[0], 2**20))
        for i in range(turns):
            own = jax.random.fold_in(key, 1000 * r + i)
            left -= sum(t.run(own, n) for t in ready[:: 1 - 2 * (i % 2)])
        ready = sorted(ready, key=_rank)[: max(2, -(-len(ready) // 2))]
    return min(ready or trials, key=_rank)


def _prepare(trial: Trial, explained: Any, arrays: Any, plug_in: bool) -> str:
    """Compile a combination; returns why it is not admissible."""
    fine = (PLUG_IN, UNVALUED) if plug_in else (UNVALUED,)
    told = [f for f in explained.findings if f.kind not in fine]
    if told:
        return ", ".join(dict.fromkeys(f"{f.kind}: {f.operation} ({f.source})" for f in told))
    key, arrays = jax.random.key(0), [jnp.asarray(a) for a in arrays]
    loop = jax.jit(partial(_loop, explained.traced)).lower(np.int32(2), key, arrays).compile()
    if (memory := getattr(loop.memory_analysis(), "temp_size_in_bytes", 0)) > MEMORY:
        return f"one gradient takes {memory / 2**30:.2g} GiB of memory"
    trial.loop = lambda n, key: loop(n, key, arrays)
    trial.run(key, 2)  # the first run of a program is slow
    for n in (2, 8, 32, 128, 512):
        trial.turns.clear()
        if trial.run(key, n) > TURN / 4:
            break
    return trial.why_not


def _loop(traced: Any, n: jax.Array, key: jax.Array, arrays: Any) -> jax.Array:
    """From n gradients: their variance, how much of it is rounding, the mean value: f[3]."""
    first = len(jax.tree.leaves(traced.out_info[0]))  # gradients come after value and aux
    avals = dict(enumerate(traced.jaxpr.out_avals))
    grads = [i for i, a in avals.items() if i >= first and a.dtype != jax.dtypes.float0]
    dtype = jnp.promote_types(avals[0].dtype, jnp.float32)

    def step(i: jax.Array, state: Any) -> Any:
        previous, squares, value = state
        # as in a fit, where no step has the parameters of another
        here, _ = lax.optimization_barrier((arrays, value))
        outs = _jax.evaluate(traced.jaxpr, jax.random.fold_in(key, i), *here)
        new = [outs[j] for j in grads]
        apart = [jnp.abs(a - b).astype(dtype) ** 2 for a, b in zip(new, previous, strict=True)]
        squares = [s + jnp.where(i > 0, d, 0.0) for s, d in zip(squares, apart, strict=True)]
        return new, squares, value + outs[0].astype(dtype)

    zeros = [jnp.zeros(avals[j].shape, avals[j].dtype) for j in grads]
    start = zeros, [jnp.zeros(z.shape, dtype) for z in zeros], jnp.zeros((), dtype)
    last, squares, value = lax.fori_loop(0, n, step, start)
    # the mean square of successive differences is twice the variance (von Neumann 1941)
    total = sum(jnp.sum(s) for s in squares) / 2
    size = sum(jnp.sum(jnp.abs(g) ** 2) for g in last)
    rounding = (ROUNDING * jnp.finfo(avals[0].dtype).eps) ** 2 * size
    return jnp.stack([total / (n - 1), rounding, value / n])


def _options(
    objective: Expectation, args: Any, how: Any, names: Any, where: str, sized: bool
) -> dict[Any, Any]:
    """The estimators that fit, by address, first the one that is there."""
    rows = objective.explain(*args, **how).sites
    sites = {a: here for s in scopes_of(objective.trace(*args)[0]) for a, here in s.items()}
    known = ", ".join(map(show, sites))
    free = [a for a, here in sites.items() if not any(c.site.estimator for c in here)]
    wanted = [(a,) if isinstance(a, str) else tuple(a) for a in names] or free
    if not wanted and not sized:
        cure = f"has chosen estimators only. Name some: addresses=[{known}]." if sites else ""
        cure = cure or "makes no random choice, so its gradient is exact: objective.grad(...)."
        raise UnsupportedError(f"{where} {cure}")
    out: dict[Address, list[Any]] = {}
    for a in wanted:
        if a not in sites:
            raise AddressError(f"{where} has no {show(a)}.{nearest(a, sites)} It has: {known}.")
        worth: dict[Any, bool] = {
            LOO: (how["chunk"] or how["samples"]) > 1,
            WITHIN: any(c.site.sizes for c in sites[a]),
        }
        worth[SPA()] = any(c.lengths for c in sites[a])  # elsewhere ppl.mvd() is as cheap
        fit = [e for e in TYPED if e and worth.get(e, True) and fits(e, sites[a])]
        if Unordered() in fit and all(support_size(c, Enum()) < 3 for c in sites[a]):
            fit.remove(Unordered())  # of two values they are ppl.mvd()
        here = {r.estimator for r in rows if r.address == "/".join(a)} if a in free else set()
        now = next((e for e in fit if {e.name} == here), None)
        out[a[0] if len(a) == 1 else a] = [now, *(e for e in fit if e != now)]
    return out


class Size(str):
    """The name of a keyword argument that says how many draws something takes."""

    __slots__ = ()


def _of(assignment: Mapping[Any, Any], kind: type = object) -> dict[Any, Any]:
    """The sizes of an assignment; else its estimators."""
    return {a: e for a, e in assignment.items() if isinstance(a, Size) == (kind is Size)}


def _typed(choice: Any) -> str:
    return str(choice) if isinstance(choice, int) else TYPED[choice]


def _sized(objective: Expectation, sizes: Mapping[Any, int]) -> Expectation:
    """The objective with some of its keyword arguments."""
    if not sizes:
        return objective
    given, own = {str(name): n for name, n in sizes.items()}, vars(objective)["__wrapped__"]

    @wraps(objective, updated=())
    def f(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs, **given)

    whole = inspect.signature(objective)
    left = [p for name, p in whole.parameters.items() if name not in given]
    f.__signature__ = whole.replace(parameters=left)  # type: ignore[attr-defined]
    return Expectation(f, objective.has_aux, objective.strict, objective.target)


def _retargeted(objective: Expectation, assignment: Mapping[Address, Any]) -> Expectation:
    table = {(a,) if isinstance(a, str) else a: e for a, e in assignment.items() if e}

    @wraps(objective, updated=())
    def f(*args: Any, **kwargs: Any) -> Any:
        closed, consts, out = objective.trace(*args, **kwargs)
        return jax.tree.unflatten(jax.tree.structure(out), retarget(closed, consts, table))

    return Expectation(f, objective.has_aux, objective.strict, objective.target)
