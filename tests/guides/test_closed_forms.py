"""Closed forms of ``ppl.guides``: divergences where the numbers drawn are the choices, else
entropies of the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest

import ppl
from ppl import dist
from ppl.objectives.closed import closed

KEY = jax.random.key(0)
DATA = {"y": 0.7}


@ppl.gen
def hierarchy():
    m = ppl.sample("m", dist.Normal(0.0, 2.0))
    s = ppl.sample("s", dist.HalfNormal(1.0))
    jax.vmap(lambda: ppl.sample("z", dist.Normal(m, 1.5)), axis_size=3)()
    ppl.sample("k", dist.Bernoulli(probs=0.3))
    ppl.sample("y", dist.Normal(m, 1.0))
    return s


def exact(p):
    """The ELBO of a mean-field guide of ``hierarchy``."""
    loc, scale = ({a: p[a][n] for a in "msz"} for n in ("loc", "log_scale"))
    scale = {a: jnp.exp(v) for a, v in scale.items()}
    divergence = lambda a, second, sd: (
        jnp.log(sd / scale[a]) + (scale[a] ** 2 + second) / (2 * sd**2) - 0.5
    )
    total = -divergence("m", loc["m"] ** 2, 2.0)
    total -= jnp.sum(divergence("z", (loc["z"] - loc["m"]) ** 2 + scale["m"] ** 2, 1.5))
    total += 0.5 + jnp.log(2.0 * scale["s"]) + loc["s"]  # log 2 pi of entropy and density cancel
    total -= 0.5 * jnp.exp(2.0 * (loc["s"] + scale["s"] ** 2))
    q = jax.nn.sigmoid(p["k"]["logits"])
    total -= q * jnp.log(q / 0.3) + (1 - q) * jnp.log((1 - q) / 0.7)
    off = (DATA["y"] - loc["m"]) ** 2 + scale["m"] ** 2
    return total - 0.5 * (off + jnp.log(2 * jnp.pi))


def test_a_mean_field_guide(x64):
    guide, params = ppl.guides.mean_field(hierarchy(), DATA, key=KEY)
    params["z"] = {"loc": jnp.array([0.3, -1.0, 2.0]), "log_scale": jnp.array([-1.0, 0.0, 0.5])}
    params["m"] = {"loc": jnp.array(0.4), "log_scale": jnp.array(-0.7)}
    params["k"] = {"logits": jnp.array(0.8)}
    found = []

    @ppl.expectation
    def f(params):
        found.append(closed(hierarchy(), guide(params), DATA).closed)
        return ppl.elbo(hierarchy(), guide(params), DATA, analytic=True)

    goal = jax.jit(jax.value_and_grad(exact))(params)
    ztest.check(lambda key: f.value_and_grad(key, params), goal, n=20_000)
    assert {a for (a,) in found[-1]} >= {"m", "z"}
    assert "s" not in {a for (a,) in found[-1]}


@ppl.gen
def pair():
    ppl.sample("x", dist.Normal(jnp.zeros(2), 1.0))


@pytest.mark.parametrize("name", ["mean_field", "full_rank", "structured"])
def test_what_has_a_closed_form_has_no_variance(name):
    guide, params = getattr(ppl.guides, name)(pair(), {}, key=KEY, scale=0.3)
    entropy = ppl.expectation(lambda p: ppl.entropy(guide(p)))
    for key in jax.random.split(KEY, 2):
        np.testing.assert_allclose(
            entropy.value(key, params), jnp.log(2 * jnp.pi * jnp.e * 0.09), rtol=1e-5
        )
    if name != "full_rank":
        loc = params["x"]["loc"]
        goal = 2 * (-jnp.log(0.3) + 0.045 - 0.5) + 0.5 * loc @ loc
        f = ppl.expectation(lambda p: ppl.kl(guide(p), pair()))
        np.testing.assert_allclose(f.value(KEY, params), goal, rtol=1e-5)
