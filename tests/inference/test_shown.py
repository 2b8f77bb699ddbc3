"""What a notebook shows of traces, fits and posteriors: text, and a tree with treescope."""

import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import ppl
from ppl import dist

KEY = jax.random.key(0)


@ppl.gen
def model():
    group = ppl.gen(lambda: ppl.sample("effect", dist.Normal(jnp.zeros(3), 1.0)))
    ppl.sample("y", dist.Normal(ppl.sample("group", group()), 1.0))


@pytest.fixture(scope="module")
def shown():
    trace = model().simulate(KEY)
    f = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0)))
    fit = ppl.maximize(f, 0.5, optax.sgd(0.1), key=KEY, steps=3, progress=False)
    return trace, fit, ppl.infer(model(), {"y": jnp.ones(3)}, key=KEY, steps=20)


def test_parts_are_a_tree(shown):
    for x, parts in zip(shown, ["choices", "history", "k_hat"], strict=True):
        html = x._repr_html_()
        assert html.startswith("<pre>") and "treescope" in html
        assert parts in x.parts and len(html) < 60_000
    assert "https://" not in shown[0]._repr_html_()  # nothing is fetched


def test_without_treescope_it_is_what_is_printed(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "treescope", None)
    for x in shown:
        html = x._repr_html_()
        assert html.startswith("<pre>") and html.endswith("</pre>")
    assert "3 steps" in shown[1]._repr_html_()
