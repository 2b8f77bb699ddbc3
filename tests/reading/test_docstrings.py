"""Every public name has a docstring with an example, and the examples run.

They share the names of ``docstrings.py``. What an example prints is compared where it is shown.
"""

import doctest
import inspect
import io
import pathlib
from contextlib import redirect_stdout

import pytest

import ppl

PRELUDE = pathlib.Path(__file__).with_name("docstrings.py")
MODULES = {"ppl": ppl, "ppl.guides": ppl.guides, "ppl.plots": ppl.plots}


def public(module):
    """The public names of a module, with what they name."""
    if module is ppl:
        return {n: getattr(ppl, n) for n in set(ppl.__all__) - {"dist", *MODULES}}
    own = lambda o: inspect.isfunction(o) and o.__module__.startswith(module.__name__)
    return {n: o for n, o in vars(module).items() if own(o) and not n.startswith("_")}


CALLABLE = {
    f"{name}.{n}": o
    for name, module in MODULES.items()
    for n, o in public(module).items()
    if not inspect.ismodule(o)
}


@pytest.mark.parametrize("name", sorted(CALLABLE))
def test_a_public_name_has_an_example(name):
    assert ">>> " in (inspect.getdoc(CALLABLE[name]) or ""), f"{name} has no example"


def failures(name, scope):
    """What is wrong with the examples of a public name."""
    for example in doctest.DocTestParser().get_examples(inspect.getdoc(CALLABLE[name])):
        told = io.StringIO()
        try:
            with redirect_stdout(told):
                exec(compile(example.source, f"<{name}>", "single"), scope)
        except Exception as error:
            yield f"{name}: {example.source}{error!r}"
        if example.want and told.getvalue() != example.want:
            yield f"{name}: {example.source}gives {told.getvalue()}and not {example.want}"


@pytest.mark.parametrize("kind", ["class", "function"])
def test_the_examples_run(kind):
    """Each by itself; but all of a kind in one test, for what they share is made once."""
    scope = {"__name__": "examples"}
    exec(compile(PRELUDE.read_text(), str(PRELUDE), "exec"), scope)
    found = []
    for name, o in CALLABLE.items():
        if inspect.isclass(o) == (kind == "class"):
            found += failures(name, dict(scope))
    assert not found, "\n".join(found)
