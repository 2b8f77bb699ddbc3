"""Layouts of scopes are found once."""

import fingerprinted
import jax
import pytest

from transforms.plan import layouts

KEY = jax.random.key(0)
NAMES = (
    "chain",
    "enumerated, joint",
    "elbo, discrete",
    "expectations inside, vmapped",
    "HMM, guide",
)


@pytest.mark.filterwarnings("ignore::ppl.SoundnessWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_scope_is_analysed_once_for_each_choice_of_estimators(name, monkeypatch):
    seen, analyse = [], layouts.analyse

    def count(closed, chosen):
        seen.append((closed, tuple((s.choice.path, s.estimator) for s in chosen)))
        return analyse(closed, chosen)

    monkeypatch.setattr(layouts, "analyse", count)
    objective, args, samples = fingerprinted.PROGRAMS[name]
    fresh = samples + 3  # what another test has traced is not traced again
    grad = lambda *args: objective.value_and_grad(KEY, *args, samples=fresh)
    for trace in (lambda: jax.jit(grad).trace(*args), lambda: objective.explain(*args)):
        seen.clear()
        trace()
        names = [(id(closed), estimators) for closed, estimators in seen]
        assert seen and len(set(names)) == len(names)
