"""``objective.audit``: is the gradient that is estimated that of the expectation?

Along each direction v in the parameters, the estimate g·v is compared sample by sample with

    D = 1.5 C(h) - 0.6 C(2h) + 0.1 C(3h),    C(h) = (f(θ + h v) - f(θ - h v)) / 2h,

where f is one draw of the objective's value and all draws of a sample use the same key. However
the value of a draw jumps, its expectation is smooth, so E D is the derivative of the
expectation up to O(h⁶); jumps cost variance, which the standard error shows. f is drawn with
estimators of the audit's own, enumeration where the joint support is small and plain draws
elsewhere, so that an error in the value of the objective's estimators shows too.

An objective whose gradient is not meant to be that of its value, like a surrogate with ``detach``,
is held against another one whose is, its *target*.

At the border of the domain of θ there are no differences. There the reference is the gradient
by those same estimators of the audit, enumeration and REINFORCE, which is blind where a support
or a jump of the program moves with the parameters.
"""

from __future__ import annotations

import dataclasses
import html
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from estimators.automatic import SMALL
from estimators.baselines import LeaveOneOut
from estimators.enumeration import Enum
from estimators.pathwise import Reparam
from estimators.reinforce import Reinforce
from transforms.errors import Address, SoundnessWarning, show
from transforms.estimation.chosen import joint_size
from transforms.estimation.estimator import Estimator
from transforms.program.choices import Choice

from .derivatives import TOGETHER, Program, Table, means_and_errors, moved
from .domain import steps_within
from .scopes import Sites, fits

FALSE_ALARMS = 1e-3
"""Probability that an audit of a right objective says otherwise."""
CHUNK, NUMBERS = 500, 2**24
"""Most pairs, and most numbers of their gradients, in memory at a time."""
ROUNDING = 10
"""Multiple of the machine's precision that is no bias."""


@final
@dataclasses.dataclass(frozen=True)
class Row:
    """One derivative: in one coordinate of a parameter or in a random direction of unit length.

    Attributes:
        parameter: what is differentiated, like ``phi['scale'][3]``.
        estimate: mean of the objective's estimates.
        reference: mean of the reference.
        error: standard error of the difference of the two, which are correlated.
        z: the difference, less what rounding and truncation explain, in standard errors.
        method: of the reference.
    """

    parameter: str
    estimate: float
    reference: float
    error: float
    z: float
    method: str


COLUMNS = ("parameter", "estimate", "reference", "standard error", "z", "method")


@final
@dataclasses.dataclass(frozen=True)
class Audit:
    """A table of derivatives, one row for each, and a verdict; prints as text.

    Attributes:
        name: of the objective.
        rows: the derivatives.
        samples: how many samples were drawn.
        bound: |z| up to which a derivative passes: all of them do with a probability of
            ``1 - FALSE_ALARMS`` where the estimator is right (normal approximation).
        suspects: addresses of the choices whose estimators explain the bias.
        notes: sentences on what the suspects do not explain.
        findings: what ``objective.explain`` says is wrong, from reading the program.

    Example:
        >>> elbo.audit(key, phi, samples=500).ok
        True
    """

    name: str
    rows: tuple[Row, ...]
    samples: int
    bound: float
    suspects: tuple[str | Address, ...] = ()
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every derivative passes."""
        return all(abs(row.z) <= self.bound for row in self.rows)

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row.parameter,
                *(f"{v:.5g}" for v in (row.estimate, row.reference, row.error)),
                f"{row.z:.2f}" + " *" * (not abs(row.z) <= self.bound),
                row.method,
            )
            for row in self.rows
        ]

    def _verdict(self) -> list[str]:
        failed = sum(not abs(row.z) <= self.bound for row in self.rows)
        of = f"{failed} of {len(self.rows)} derivatives" if failed else "no derivative"
        lines = [f"{of} beyond |z| = {self.bound:.2f}, at {self.samples} samples"]
        if self.suspects:
            lines.append(f"suspect: {', '.join(map(repr, self.suspects))}")
        return [*lines, *self.notes, *(f"by explain: {f}" for f in self.findings)]

    def __str__(self) -> str:
        table = [COLUMNS, *self._cells()]
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
        rows = [line.rstrip() for line in lines]
        return "\n".join([f"audit of {self.name}", *rows, *self._verdict()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        rows = [line(COLUMNS, "th"), *(line(cells, "td") for cells in self._cells())]
        verdict = "<br>".join(map(html.escape, self._verdict()))
        caption = f"<caption>audit of {html.escape(self.name)}</caption>"
        return f"<table>{caption}{''.join(rows)}</table><p>{verdict}</p>"


def audit(
    objective: Any,
    key: jax.Array,
    args: tuple[Any, ...],
    samples: int,
    wanted: Sequence[int],
    target: Any = None,
) -> Audit:
    """See ``Expectation.audit``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SoundnessWarning)
        findings = objective.explain(*args, argnums=wanted).findings
        program = Program(objective, args, wanted)
        meant = program if target is None else Program(target, args, wanted)
        audited = _audited(program, meant, key, samples)
        return dataclasses.replace(audited, findings=tuple(map(str, findings)))


# --- the reference ------------------------------------------------------------------------------


def _reference(scopes: Sequence[Sites]) -> dict[Address, Estimator]:
    """The audit's own estimators: enumeration where it is small, else REINFORCE."""
    table: dict[Address, Estimator] = {}
    score = Reinforce(LeaveOneOut())
    for sites in scopes:
        joint = 1
        for address, here in sites.items():
            if fits(Enum(), here):
                size = math.prod(joint_size(c, Enum()) ** math.prod(c.lengths) for c in here)
                if joint * size <= SMALL:
                    joint *= size
                    table[address] = Enum()
                    continue
            if fits(score, here):
                table[address] = score
    return table


# --- the audit ----------------------------------------------------------------------------------


def _audited(program: Program, meant: Program, key: jax.Array, samples: int) -> Audit:
    """The gradient of ``program``, held against the value of what is ``meant``, mostly itself."""
    probe, key = jax.random.split(key)
    n = max(1, -(-samples // TOGETHER))
    chunk = max(1, min(n, CHUNK, NUMBERS // sum(p.size for p in program.params)))
    trusted = _reference(meant.scopes)
    steps = steps_within(meant, probe)
    count = len(program.directions)

    def draw(f: Callable[..., Any]) -> np.ndarray:
        return means_and_errors(f, program.params, key, n, chunk)

    def differences(params: Any, key: jax.Array) -> Any:
        def row(v: Any, h: jax.Array) -> Any:
            at = lambda by: meant.value(moved(params, v(params), by), key, trusted)
            multiple = jnp.arange(1, 4, dtype=h.dtype)
            ahead, behind = lax.map(at, h * jnp.concatenate([multiple, -multiple])).reshape(2, 3)
            c = (ahead - behind) / (2 * multiple * h)
            best = 1.5 * c[0] - 0.6 * c[1] + 0.1 * c[2]
            return best, best - (4 * c[0] - c[1]) / 3, jnp.mean(jnp.abs(ahead))

        estimate = program.derivatives(params, key)
        reference, truncation, size = program.each(row, jnp.asarray(steps))
        return estimate, reference, estimate - reference, truncation, size

    def scores(params: Any, key: jax.Array) -> Any:
        estimate = program.derivatives(params, key)
        reference = meant.derivatives(params, key, trusted)
        size = jnp.full(count, jnp.abs(meant.value(params, key, trusted)))
        return estimate, reference, estimate - reference, jnp.zeros(count), size

    moments = np.full((5, 2, count), np.nan)
    if np.any(steps > 0):
        moments = draw(differences)
    lacking = (steps == 0) | ~np.isfinite(moments[1, 0])
    if np.any(lacking):
        moments = np.where(lacking, draw(scores), moments)
    sums = "enumeration" if all(isinstance(e, Enum) for e in trusted.values()) else "REINFORCE"
    (estimate, _), (reference, _), (bias, error), truncation, (size, _) = moments
    tolerance = np.abs(reference) + size / np.where(lacking, 1.0, steps)
    tolerance = ROUNDING * program.eps * tolerance + np.maximum(
        np.abs(truncation[0]) - 2 * truncation[1], 0.0
    )
    z, bound = _z(bias, error, tolerance), _bound(count)
    rows = [
        Row(
            parameter=program.directions[i].label,
            estimate=float(estimate[i]),
            reference=float(reference[i]),
            error=float(error[i]),
            z=float(z[i]),
            method=sums if lacking[i] else "finite differences",
        )
        for i in range(count)
    ]
    suspects, notes = (), (f"held against the derivative of {meant.name}",)
    if meant is program:
        suspects, notes = _suspects(program, draw, trusted, reference, bias, error, tolerance)
    return Audit(program.name, tuple(rows), n * TOGETHER, bound, suspects, notes)


def _bound(tests: int) -> float:
    """|z| that the largest of so many exceeds by chance with probability FALSE_ALARMS (Šidák)."""
    each = 1 - (1 - FALSE_ALARMS) ** (1 / tests)
    return statistics.NormalDist().inv_cdf(1 - each / 2)


def _z(bias: np.ndarray, error: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
    excess = np.maximum(np.abs(bias) - tolerance, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(excess == 0.0, 0.0, np.sign(bias) * excess / error)


# --- suspects -----------------------------------------------------------------------------------


def _suspects(
    program: Program,
    draw: Callable[..., np.ndarray],
    trusted: Table,
    reference: np.ndarray,
    bias: np.ndarray,
    error: np.ndarray,
    tolerance: np.ndarray,
) -> tuple[tuple[str | Address, ...], tuple[str, ...]]:
    """The choices whose estimators explain the bias, and sentences on what they do not explain.

    From the last choice to the first, the estimator of each is replaced by a trusted one, which
    stays if it brings the gradient significantly nearer to the reference. In this order a choice
    is not accused of a jump in what a later choice, drawn from it, is used for.
    """
    sites = {a: here for scope in program.scopes for a, here in scope.items()}
    bound, clear = _bound(len(bias)), _bound(len(bias) * max(1, len(sites)))
    table: dict[Address, Estimator] = {}
    undecided: list[Address] = []
    for address in reversed(sites):
        failed = ~(np.abs(_z(bias, error, tolerance)) <= bound)
        if not np.any(failed):
            break
        for other in _others(sites[address], trusted.get(address)):

            def swapped(params: Any, key: jax.Array) -> Any:
                before = program.derivatives(params, key, table)
                after = program.derivatives(params, key, {**table, address: other})
                return after, before - after

            (after, _), (change, noise) = draw(swapped)
            left = np.where(np.isfinite(change), bias - change, after - reference)
            gain = np.where(np.isfinite(bias), np.abs(bias) - np.abs(left), np.inf)
            if np.any(failed & np.isfinite(left) & (gain > clear * noise + tolerance)):
                table[address] = other
                bias, error = left, np.hypot(error, np.where(np.isfinite(change), noise, 0.0))
                break
            if np.any(failed & ~(clear * noise < np.abs(bias))):
                undecided.append(address)
    failed = ~(np.abs(_z(bias, error, tolerance)) <= bound)
    notes = []
    if np.any(failed):
        names = ", ".join(d.label for d, bad in zip(program.directions, failed, strict=True) if bad)
        notes.append(_unexplained(names, [a for a in dict.fromkeys(undecided) if a not in table]))
    return tuple(a[0] if len(a) == 1 else a for a in table), tuple(notes)


def _others(here: Sequence[Choice], trusted: Estimator | None) -> Iterator[Estimator]:
    """What to compare the estimator of a choice with."""
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in here[0].avals]
    own = here[0].site.rebuild_estimator(shapes)
    if trusted is not None and not (isinstance(trusted, Enum) and isinstance(own, Enum | None)):
        yield trusted
    # a score is wrong where the support moves
    if not isinstance(own, Reparam) and fits(Reparam(), here):
        yield Reparam()


def _unexplained(names: str, undecided: Sequence[Address]) -> str:
    if undecided:
        return (
            f"too few samples to tell whether {', '.join(map(show, undecided))} explain the bias "
            f"of {names}"
        )
    return (
        f"no choice explains the bias of {names}: a parameter reaches a comparison, a rounding or "
        "a stop_gradient of the objective without a choice between"
    )
