"""``ppl.plots``: pictures of fits and posteriors. Each returns a matplotlib figure.

matplotlib is imported by the first picture, not by ``import ppl``, and ``pyplot`` never: a figure
shows in a notebook after ``%matplotlib inline``, and is written by ``figure.savefig("fit.png")``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from transforms.runs.addresses import flatten

from .inference.optional import optional
from .inference.posterior import Posterior
from .inference.psis import smoothed
from .inference.summary import named
from .programs.given import Choices

MOST = 16
"""Numbers of a posterior that one picture shows."""


def history(fit: Any, window: int = 100) -> Any:
    """The estimates of the objective at every step of a fit, and their mean over ``window``.

    Example:
        >>> figure = ppl.plots.history(posterior.fit)
    """
    values = np.asarray(fit.history, np.float64)
    figure, (axes,) = _figure(1)
    axes.plot(np.arange(1, values.size + 1), values, ".", ms=1, alpha=0.3, label="estimates")
    if values.size > window:
        means = np.convolve(values, np.ones(window) / window, "valid")
        axes.plot(np.arange(window, values.size + 1), means, label=f"mean of {window}")
        low, high = np.nanquantile(means, [0.0, 1.0])
        late = values[values.size // 4 :]
        low, high = np.nanmin([low, *np.nanquantile(late, [0.01])]), np.nanmax([high, *late])
        axes.set_ylim(np.nanquantile(late, 0.01), high)
    axes.set_xlabel("step")
    axes.set_ylabel("objective")
    axes.legend()
    return figure


def marginals(posterior: Posterior, key: Any, n: int = 2_000) -> Any:
    """A histogram of each number of the posterior, the first 16.

    Example:
        >>> figure = ppl.plots.marginals(posterior, key)
    """
    columns = _columns(posterior.sample(key, n))
    figure, all_axes = _figure(len(columns))
    for axes, (name, values) in zip(all_axes, columns.items(), strict=False):
        axes.hist(values, bins=40, density=True, histtype="stepfilled", alpha=0.6)
        axes.set_title(name)
        axes.set_yticks([])
    return figure


def pairs(posterior: Posterior, key: Any, n: int = 1_000, most: int = 6) -> Any:
    """Scatter plots of each two of the first ``most`` numbers of the posterior.

    Example:
        >>> figure = ppl.plots.pairs(posterior, key)
    """
    columns = list(_columns(posterior.sample(key, n)).items())[:most]
    k = len(columns)
    figure, all_axes = _figure(k * k, k)
    for i, (below, y) in enumerate(columns):
        for j, (left, x) in enumerate(columns):
            axes = all_axes[i * k + j]
            if i == j:
                axes.hist(x, bins=40, histtype="stepfilled", alpha=0.6)
            else:
                axes.plot(x, y, ".", ms=2, alpha=0.3)
            if i == k - 1:
                axes.set_xlabel(left)
            if j == 0:
                axes.set_ylabel(below)
    return figure


def predictive(posterior: Posterior, key: Any, n: int = 50, data: Choices | None = None) -> Any:
    """Data beside ``n`` replications of them, as distribution functions, one for each address.

    Example:
        >>> figure = ppl.plots.predictive(posterior, key)
    """
    drawn = flatten(posterior.predict(key, posterior.model, n))
    observed = flatten(posterior.data if data is None else data)
    shown = [a for a in observed if a in drawn]
    figure, all_axes = _figure(len(shown))
    for axes, address in zip(all_axes, shown, strict=True):
        for row in np.asarray(drawn[address], np.float64):
            axes.step(*_distribution(row), color="C0", alpha=0.2, lw=0.8)
        axes.step(*_distribution(observed[address]), color="k", label="data")
        axes.set_title(named(address))
        axes.legend()
    return figure


def k_hat(posterior: Posterior) -> Any:
    """The largest importance weights of a posterior, and the Pareto shape of their tail.

    Example:
        >>> figure = ppl.plots.k_hat(posterior)
    """
    _, log_p, log_q = posterior.diagnosed
    found = smoothed(log_p - log_q)
    weights = np.sort(np.exp(log_p - log_q - np.max(log_p - log_q)))[::-1]
    tail = np.arange(1, weights.size + 1)
    figure, (axes,) = _figure(1)
    axes.loglog(tail, weights, ".")
    axes.set_xlabel("rank")
    axes.set_ylabel("weight, the largest being 1")
    axes.set_title(f"k_hat {found.k_hat:.2f}")
    return figure


def _figure(n: int, columns: int | None = None) -> tuple[Any, list[Any]]:
    """A figure of ``n`` axes."""
    module = optional("matplotlib.figure", "plots")
    columns = min(n, 4) if columns is None else columns
    rows = math.ceil(n / max(columns, 1))
    figure = module.Figure(figsize=(max(5.0, 2.5 * columns), 2.5 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(n)]


def _columns(draws: dict[str, Any]) -> dict[str, np.ndarray]:
    """Numbers of draws by name."""
    found: dict[str, np.ndarray] = {}
    for address, value in flatten(draws).items():
        values = np.asarray(value, np.float64)
        for place in np.ndindex(values.shape[1:]):
            at = f"[{', '.join(map(str, place))}]" if place else ""
            found[f"{named(address)}{at}"] = values[(slice(None), *place)]
    return dict(list(found.items())[:MOST])


def _distribution(values: Any) -> tuple[np.ndarray, np.ndarray]:
    x = np.sort(np.ravel(np.asarray(values, np.float64)))
    return x, np.arange(1, x.size + 1) / x.size
