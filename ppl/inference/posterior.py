"""What inference returns: draws, predictions, and whether to trust them."""

from __future__ import annotations

import functools
import math
from typing import Any, final

import jax
import numpy as np

from transforms import _jax
from transforms.errors import AddressError, ShapeError, SoundnessWarning
from transforms.program.warned import warn
from transforms.runs.addresses import flatten
from transforms.runs.execute import Execution

from ..fitting.fit import Fit
from ..programs.generative import Generative, Select
from ..programs.given import Choices, as_count, as_key
from ..programs.lawful import Lawful
from ..programs.shown import Shown
from .draws import drawing, forecasting, in_turn, predicting, resample, together
from .optional import optional
from .psis import BAD, Smoothed, smoothed
from .summary import Summary, named, summarize

DIAGNOSED = 4_000
"""Draws for the ELBO, the Pareto shape and the summary."""
RICHER = "structured", "full_rank", "flow"
"""Each of more laws than those before it."""
POOL = 4
"""Draws of the guide for each corrected one."""


@final
class FittedGuide(Generative):
    """A guide at its fitted parameters; called, it is the guide at other ones."""

    def __init__(self, guide: Any, params: Any):
        fitted: Generative = guide(params)
        self._guide, self._inner, self.name = guide, fitted, fitted.name

    def __call__(self, params: Any) -> Generative:
        return self._guide(params)

    def __repr__(self) -> str:
        return f"fitted {self.name}"

    def lawful(self) -> Lawful | None:
        assert self._inner is not None
        return self._inner.lawful()

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        assert self._inner is not None
        return self._inner.execute(given, exact=exact, select=select)


@final
class Posterior(Shown):
    """A fitted guide in place of the posterior of a program given data.

    Attributes:
        model: the program, called with its arguments.
        data: its observed choices.
        fit: the :class:`ppl.Fit` behind it.
        guide: the guide at ``fit.averaged``, a Generative over the choices that are not in data.

    Example:
        >>> posterior = ppl.infer(model(), data, key=key, steps=500)
        >>> posterior.sample(key, 100)["x"].shape
        (100,)
    """

    parts = "data", "elbo", "k_hat", "ess", "fit"

    def __init__(self, model: Generative, data: Choices, guide: Any, fit: Fit, key: jax.Array):
        self.model, self.data, self.fit = model, data, fit
        params = fit.params if fit.averaged is None else fit.averaged
        self.guide = FittedGuide(guide, params)
        self._key = key

    # --- draws ---

    @functools.cached_property
    def _draw(self) -> Any:
        return together(drawing(self.model, self.guide), dict(self.data))

    def sample(self, key: jax.Array, n: int, corrected: bool = False) -> dict[str, Any]:
        """Choices with an axis of ``n`` in front, of those that are not in data.

        Args:
            key: random key.
            n: number of draws.
            corrected: resample four times as many draws of the guide by their smoothed importance
                weights (PSIS), which removes most of what the guide gets wrong where ``k_hat`` is
                below .7.

        Warns:
            SoundnessWarning: ``corrected`` draws where the Pareto shape of their ratios is above
                .7, so that the correction cannot be trusted.
        """
        key, n = as_key(key), as_count(n, "n")
        if not corrected:
            return in_turn(self._draw, key, n)[0]
        draw, choose = jax.random.split(key)
        choices, log_p, log_q = in_turn(self._draw, draw, max(POOL * n, DIAGNOSED))
        weights = _weights(log_p, log_q)
        if not weights.k_hat <= BAD:
            warn(
                f"the corrected draws at {_jax.user_line()} cannot be trusted: the importance "
                f"ratios have the Pareto shape {_above(weights.k_hat)}, above {BAD}, so the guide "
                "misses a part of the posterior that is not in its draws. Use a richer guide.",
                SoundnessWarning,
            )
        kept = resample(choose, weights.log_weights, n)
        return jax.tree.map(lambda a: a[kept], choices)

    def predict(
        self, key: jax.Array, program: Generative, n: int, corrected: bool = False
    ) -> dict[str, Any]:
        """Choices of a program that the posterior does not fix, with an axis of ``n`` in front.

        Args:
            key: random key.
            program: the model called with its own or new arguments, or another program, whose
                choices include those of the posterior, in the same shapes.
            n: number of draws.
            corrected: as in :meth:`sample`.

        Raises:
            AddressError: the program has no choice of an address of the posterior.
            ShapeError: it has one of another shape: a choice for each group or row of the data
                says nothing of new ones. Draw these beside it, at another address.
        """
        draw, predict = jax.random.split(as_key(key))
        fixed = self.sample(draw, n, corrected)
        try:
            run = together(predicting(program), None, fixed)
            return in_turn(run, predict, as_count(n, "n"), fixed)
        except (AddressError, ShapeError) as error:
            raise type(error)(
                f"{error} The values are draws of the posterior ({_jax.user_line()}): a choice for "
                "each group or row of the data says nothing of new ones. The program keeps it as "
                "it is, and draws new ones beside it, at another address; steps of a scan that "
                "come after those of the data are drawn by posterior.forecast."
            ) from None

    def forecast(
        self, key: jax.Array, program: Generative, n: int, corrected: bool = False
    ) -> dict[str, Any]:
        """The steps of a ``scan`` after those of the data, with an axis of ``n`` in front.

        They are drawn from the program itself, after draws of the posterior and the data; no guide
        of them is needed. See :func:`ppl.forecast`.

        Args:
            key: random key.
            program: the model called with more steps.
            n: number of draws.
            corrected: as in :meth:`sample`.

        Raises:
            AddressError, ShapeError, UnsupportedError: as :func:`ppl.forecast`.
        """
        draw, ahead = jax.random.split(as_key(key))
        fixed = self.sample(draw, n, corrected)
        run = together(forecasting(program), dict(self.data), fixed)
        return in_turn(run, ahead, as_count(n, "n"), fixed)

    # --- whether to trust it ---

    @functools.cached_property
    def diagnosed(self) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """The 4,000 draws of the guide behind what follows: choices, log p and log q f64[n]."""
        choices, log_p, log_q = in_turn(self._draw, self._key, DIAGNOSED)
        return choices, np.asarray(log_p, np.float64), np.asarray(log_q, np.float64)

    @property
    def _ratios(self) -> np.ndarray:
        _, log_p, log_q = self.diagnosed
        return log_p - log_q

    @functools.cached_property
    def _smoothed(self) -> Smoothed:
        found = _weights(*self.diagnosed[1:])
        return Smoothed(found.log_weights, math.inf) if self._is_point else found

    @functools.cached_property
    def _is_point(self) -> bool:
        """Whether the guide has no width: all of its draws are the same."""
        drawn = [np.asarray(v) for v in jax.tree.leaves(self.diagnosed[0])]
        wide = [v for v in drawn if np.issubdtype(v.dtype, np.floating)]
        return bool(wide) and all(np.all(v == v[0]) for v in wide)

    @property
    def elbo(self) -> float:
        """The mean of log p - log q over 4,000 draws of the guide: a bound of the log evidence."""
        return float(self._ratios.mean())

    @property
    def elbo_error(self) -> float:
        """The standard error of :attr:`elbo`."""
        return float(self._ratios.std(ddof=1) / math.sqrt(DIAGNOSED))

    @property
    def k_hat(self) -> float:
        """Pareto shape of the importance ratios, see :func:`ppl.k_hat`; infinite for a point."""
        return self._smoothed.k_hat

    @property
    def ess(self) -> float:
        """The effective number of 4,000 draws under importance weights; see :func:`ppl.ess`."""
        if self._is_point:
            return 1.0
        return float(1.0 / np.sum(np.exp(2.0 * self._smoothed.log_weights)))

    @property
    def verdict(self) -> str:
        """What the Pareto shape says, in words."""
        k = self.k_hat
        if self._is_point:
            return (
                "the guide is a point: its draws are all the same and say nothing of what is "
                "uncertain, and the elbo is the log density there, no bound of the evidence."
            )
        if k <= 0.5:
            return f"k_hat {k:.2f}, good: the guide covers the posterior."
        if k <= BAD:
            return f"k_hat {k:.2f}, fair: sample(..., corrected=True) is closer to the posterior."
        family = self.guide.name.partition("(")[0]
        less = RICHER.index(family) + 1 if family in RICHER else 0
        richer = ", ".join(f"ppl.guides.{name}" for name in RICHER[less:]) or "more layers"
        return (
            f"k_hat {_above(k)}, above {BAD}: the guide misses a part of the posterior, and "
            f"neither its draws nor corrected ones can be trusted. Try a richer one ({richer}), "
            "or effects of groups written the other way: a standard normal, scaled, where each "
            "group has little data; Normal(mean, scale) itself where it has much."
        )

    def summary(self) -> Summary:
        """A table of the mean, standard deviation and quantiles of every choice, by 4,000 draws."""
        return summarize(flatten(self.diagnosed[0]), tuple(self._lines()))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The groups of ArviZ: posterior, sample_stats, observed_data; arrays ``[1, n, ...]``."""
        choices, log_p, log_q = self.diagnosed
        plain = lambda tree: {named(a): np.asarray(v) for a, v in flatten(tree).items()}
        chain = lambda group: {name: v[None] for name, v in group.items()}
        weights = self._smoothed.log_weights
        stats = {"lp": log_p, "log_q": log_q, "log_weight": weights}
        return {
            "posterior": chain(plain(choices)),
            "sample_stats": chain(stats),
            "observed_data": plain(dict(self.data)),
        }

    def to_arviz(self) -> Any:
        """For ArviZ: the draws, their log p and log q, and the data (needs ``arviz-base``).

        Raises:
            ImportError: arviz-base is not installed.
        """
        return optional("arviz_base", "arviz").from_dict(self.to_dict())

    def _lines(self) -> list[str]:
        ess = f"ess {self.ess:,.0f} of {DIAGNOSED:,}"
        return [
            f"elbo {self.elbo:.2f} ± {self.elbo_error:.2g}, {ess}",
            self.verdict,
            self.fit.verdict,
        ]

    def __repr__(self) -> str:
        shapes = flatten(self.diagnosed[0])
        text = lambda a, v: named(a) + (str(list(v.shape[1:])) if v.shape[1:] else "")
        names = [text(a, v) for a, v in shapes.items()]
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        return "\n  ".join([f"Posterior of {shown}", *self._lines()])


def _above(k: float) -> str:
    """A shape that is too large, rounded up, so that it reads so."""
    return f"{math.ceil(100 * k) / 100:.2f}" if math.isfinite(k) else str(k)


def _weights(log_p: Any, log_q: Any) -> Smoothed:
    return smoothed(np.asarray(log_p, np.float64) - np.asarray(log_q, np.float64))
