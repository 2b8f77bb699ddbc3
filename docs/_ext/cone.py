"""Makes docs/_static/cone.png, the README's picture: python docs/_ext/cone.py, from the clone."""

import pathlib

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from ppl.demo import cone

TITLES = {"ELBO": "independent normals", "IWHVI, m=5": "a ring, 5 particles for its angle"}
TITLES["HVI, learned kernel"] = "a ring, a learned proposal"


def main(file):
    cases = [case for case in cone.CASES if case.label in TITLES]
    grid = jnp.linspace(-3.0, 3.0, 301)
    density = lambda x, y: cone.model().log_density({"x": x, "y": y} | cone.DATA)
    truth = jnp.exp(jax.vmap(jax.vmap(density, (0, None)), (None, 0))(grid, grid))
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    for panel, case in zip(figure.subplots(1, 3), cases, strict=True):
        result = cone.fit(case, steps=1200, draws=20_000)
        keys = jax.random.split(jax.random.key(2), 1500)
        q = case.posterior(result.params)
        xy = jax.vmap(lambda key, q=q: q.simulate(key).choices)(keys)
        panel.imshow(truth, cmap="Greys", origin="lower", extent=(-3, 3, -3, 3))
        panel.scatter(xy["x"], xy["y"], 2.5, color="#D55E00", alpha=0.5, linewidths=0)
        panel.set(xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), xticks=(), yticks=(), aspect="equal")
        panel.set_title(TITLES[case.label], fontsize=11)
        panel.set_xlabel(f"log evidence ≥ {result.value:.2f}", fontsize=11)
    figure.savefig(file, dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    main(pathlib.Path(__file__).parent.parent / "_static/cone.png")
