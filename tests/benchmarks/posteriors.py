"""``ppl.infer`` with its defaults, and with richer guides, beside a long run of NUTS.

For each model and guide: the worst error of a posterior mean, in posterior standard deviations of
NUTS, of plain draws and of importance-corrected ones; and what the Pareto shape said of it.

    python tests/benchmarks/posteriors.py [names] [--guides defaults flow] [--anew]

What NUTS found is kept in ``results/nuts.json``; ``--anew`` runs it again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import Row, save
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS

import ppl
from ppl import dist

KEY = jax.random.key(0)
Model = tuple[Any, dict[str, Any]]

# --- models, called with their arguments, and their data ----------------------------------------

EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools_centred() -> Model:
    @ppl.gen
    def schools(errors: jax.Array) -> None:
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfCauchy(5.0))
        theta = ppl.sample("theta", dist.Normal(mu, tau).expand([8]))
        ppl.sample("y", dist.Normal(theta, errors))

    return schools(ERRORS), {"y": EFFECTS}


def eight_schools() -> Model:
    @ppl.gen
    def schools(errors: jax.Array) -> None:
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfCauchy(5.0))
        z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([8]))
        ppl.sample("y", dist.Normal(mu + tau * z, errors))

    return schools(ERRORS), {"y": EFFECTS}


def hierarchical_regression(groups: int = 12, n: int = 120) -> Model:
    rng = np.random.default_rng(0)
    group = jnp.arange(n) % groups
    x = jnp.asarray(rng.normal(size=n), jnp.float32)
    slopes = rng.normal(0.5, 0.4, groups)
    y = 1.0 + slopes[np.asarray(group)] * np.asarray(x) + rng.normal(0, 0.5, n)

    @ppl.gen
    def regression(x: jax.Array) -> None:
        a, b = (ppl.sample(name, dist.Normal(0.0, 2.0)) for name in ("a", "b"))
        spread = ppl.sample("spread", dist.HalfNormal(1.0))
        z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([groups]))
        s = ppl.sample("s", dist.HalfNormal(1.0))
        ppl.sample("y", dist.Normal(a + (b + spread * z)[group] * x, s))

    return regression(x), {"y": jnp.asarray(y, jnp.float32)}


def gaussian_process_classification(n: int = 25) -> Model:
    rng = np.random.default_rng(0)
    x = jnp.linspace(-2.0, 2.0, n)
    y = jnp.asarray(rng.uniform(size=n) < 1 / (1 + np.exp(-2 * np.sin(2 * np.asarray(x)))), int)

    @ppl.gen
    def classification(x: jax.Array) -> None:
        height = ppl.sample("height", dist.HalfNormal(2.0))
        length = ppl.sample("length", dist.LogNormal(0.0, 0.5))
        kernel = jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + 1e-4 * jnp.eye(n)
        z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([n]))
        ppl.sample("y", dist.Bernoulli(logits=height * jnp.linalg.cholesky(kernel) @ z))

    return classification(x), {"y": y}


def horseshoe_regression(n: int = 60, d: int = 8) -> Model:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(n, d)), jnp.float32)
    y = x @ jnp.array([2.0, -1.0] + [0.0] * (d - 2)) + 0.7 * rng.normal(size=n)

    @ppl.gen
    def regression(x: jax.Array) -> None:
        local = ppl.sample("local", dist.HalfCauchy(1.0).expand([d]))
        overall = ppl.sample("overall", dist.HalfCauchy(1.0))
        z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([d]))
        s = ppl.sample("s", dist.HalfNormal(1.0))
        ppl.sample("y", dist.Normal(x @ (overall * local * z), s))

    return regression(x), {"y": jnp.asarray(y, jnp.float32)}


def mixture(n: int = 100) -> Model:
    rng = np.random.default_rng(0)
    y = np.where(rng.uniform(size=n) < 0.35, rng.normal(-2.0, 0.8, n), rng.normal(1.5, 1.2, n))

    @ppl.gen
    def clusters(n: int) -> None:
        p = ppl.sample("p", dist.Beta(2.0, 2.0))
        low = ppl.sample("low", dist.Normal(-2.0, 1.0))
        gap = ppl.sample("gap", dist.Gamma(4.0, 1.0))
        s = ppl.sample("s", dist.HalfNormal(1.0).expand([2]))
        law = dist.MixtureSameFamily(
            dist.Categorical(jnp.stack([p, 1 - p])),
            dist.Normal(jnp.stack([low, low + gap]), s),
        )
        ppl.sample("y", law.expand([n]))

    return clusters(n), {"y": jnp.asarray(y, jnp.float32)}


def stochastic_volatility(n: int = 60) -> Model:
    rng = np.random.default_rng(0)
    walk = np.cumsum(0.25 * rng.normal(size=n))
    y = np.exp(0.5 * walk - 1.0) * rng.normal(size=n)

    @ppl.gen
    def returns(n: int) -> None:
        step = ppl.sample("step", dist.Exponential(5.0))
        level = ppl.sample("level", dist.Normal(-2.0, 1.0))
        z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([n]))
        ppl.sample("y", dist.Normal(0.0, jnp.exp(0.5 * (level + step * jnp.cumsum(z)))))

    return returns(n), {"y": jnp.asarray(y, jnp.float32)}


def zero_inflated_poisson(n: int = 120) -> Model:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=n), jnp.float32)
    counts = rng.poisson(np.exp(0.6 + 0.7 * np.asarray(x)))
    y = np.where(rng.uniform(size=n) < 0.3, 0, counts)

    @ppl.gen
    def visits(x: jax.Array) -> None:
        gate = ppl.sample("gate", dist.Beta(1.0, 1.0))
        a, b = (ppl.sample(name, dist.Normal(0.0, 2.0)) for name in ("a", "b"))
        ppl.sample("y", dist.ZeroInflatedPoisson(gate, jnp.exp(a + b * x)))

    return visits(x), {"y": jnp.asarray(y, int)}


MODELS: dict[str, Callable[[], Model]] = {
    f.__name__: f
    for f in (
        eight_schools_centred,
        eight_schools,
        hierarchical_regression,
        gaussian_process_classification,
        horseshoe_regression,
        mixture,
        stochastic_volatility,
        zero_inflated_poisson,
    )
}
GUIDES = {
    "defaults": ppl.guides.mean_field,
    "full rank": ppl.guides.full_rank,
    "flow": ppl.guides.flow,
}

SAME = {"eight_schools_centred": "eight_schools"}
"""A model whose posterior NUTS finds in the form without a funnel."""


def compared(name: str, choices: dict[str, Any]) -> dict[str, np.ndarray]:
    """What of the choices is compared. The scales of a horseshoe have no variance, and coefficients
    in place of them; the schools have their effects in both forms."""
    c = {a: np.asarray(v, np.float64) for a, v in choices.items()}
    if name == "horseshoe_regression":
        scales = c["overall"][..., None] * c["local"]
        return {"coefficients": scales * c["z"], "log scales": np.log(scales), "s": c["s"]}
    if name == "eight_schools":
        c["theta"] = c["mu"][..., None] + c["tau"][..., None] * c["z"]
    return c


# --- NUTS -----------------------------------------------------------------------------------------

RESULTS = pathlib.Path(__file__).parent / "results"
KEPT = RESULTS / "nuts.json"
CHAINS, WARMUP, DRAWS = 4, 1_000, 4_000
Moments = dict[str, Any]
"""By address mean and standard deviation; and of all, R-hat and the least effective size."""


def by_nuts(name: str, anew: bool) -> Moments:
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if name not in kept or anew:
        kept[name] = _by_nuts(name)
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    return kept[name]


def _by_nuts(name: str) -> Moments:
    g, data = MODELS[name]()
    mcmc = MCMC(
        NUTS(ppl.to_numpyro(g, data), target_accept_prob=0.95),
        num_warmup=WARMUP,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(1))
    found = compared(name, mcmc.get_samples(True))
    rows = {a: v.reshape(-1, *v.shape[2:]) for a, v in found.items()}
    return {
        "mean": {a: np.round(v.mean(0), 5).tolist() for a, v in rows.items()},
        "sd": {a: np.round(v.std(0), 5).tolist() for a, v in rows.items()},
        "worst R-hat": max(float(np.max(split_gelman_rubin(v))) for v in found.values()),
        "least ESS": min(float(np.min(effective_sample_size(v))) for v in found.values()),
    }


# --- comparison -----------------------------------------------------------------------------------


def error(drawn: Any, nuts: Moments) -> tuple[float, str]:
    """The worst error of a mean in standard deviations, and where it is."""
    off = {}
    for a, v in drawn.items():
        mean, sd = (np.asarray(nuts[k][a]) for k in ("mean", "sd"))
        off[a] = float(np.max(abs(v.mean(0) - mean) / sd))
    where = max(off, key=lambda a: off[a])
    return off[where], where


def row(name: str, kind: str, nuts: Moments) -> Row:
    g, data = MODELS[name]()
    start = time.perf_counter()
    posterior = ppl.infer(g, data, key=KEY, guide=GUIDES[kind])
    seconds = time.perf_counter() - start
    (plain, where), (corrected, there) = (
        error(compared(name, posterior.sample(KEY, 20_000, corrected=c)), nuts)
        for c in (False, True)
    )
    return {
        "model": name,
        "guide": kind,
        "plain": plain,
        "at": where,
        "corrected": corrected,
        "at ": there,
        "k_hat": posterior.k_hat,
        "ess of 4,000": int(posterior.ess),
        "ELBO": f"{posterior.elbo:.2f} ± {posterior.elbo_error:.2g}",
        "steps": len(posterior.fit.history),
        "converged": str(posterior.fit.converged),
        "seconds": round(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--guides", nargs="*", default=list(GUIDES))
    parser.add_argument("--anew", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ppl.SoundnessWarning)  # k_hat is printed
    found: list[Row] = []
    for name in options.names:
        nuts = by_nuts(SAME.get(name, name), options.anew)
        sizes = {k: round(nuts[k], 3) for k in ("worst R-hat", "least ESS")}
        print(f"{name}: NUTS {sizes}", flush=True)
        for kind in options.guides:
            found.append(row(name, kind, nuts))
            print("   ", found[-1], flush=True)
    if options.names == list(MODELS):
        title = "ppl.infer beside NUTS: the worst error of a posterior mean, in posterior sds"
        print(save(RESULTS, "posteriors", title, found, NOTES))
        (RESULTS / "posteriors.json").unlink()


NOTES = f"""plain, corrected: of 20,000 draws, and of as many corrected by importance (PSIS); where.
k_hat above .7 says that neither can be trusted. NUTS: {CHAINS} chains of {DRAWS:,} draws."""

if __name__ == "__main__":
    main()
