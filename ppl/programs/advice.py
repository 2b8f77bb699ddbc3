"""What to type instead, where an error of JAX, numpyro or Python is raised in a user's program.

:func:`user_code` surrounds every run of a user's function. An exception that passes keeps its
type and message, and gets a note: the user's line, why it is so, and what to type instead.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpyro.primitives
from jax import errors

from transforms import _jax, authors
from transforms.errors import PPLError, UnsupportedError, describe

from .frozen import generators, warn_of_frozen

_UNKNOWN = "and what depends on a draw or an argument has none while the program is traced. "
_TRUTH = (
    f"if, while, and, or, not need a truth value, {_UNKNOWN}Use jnp.where(c, a, b) for a value, "
    "jax.lax.cond(c, f, g) for a part of the program, and & | ~ for and, or, not."
)
_INDEX = (
    f"range(k) and the [k] of a list or a dict need an integer with a value, {_UNKNOWN}Index an "
    "array, jnp.array(xs)[k]; run the largest number of steps and mask those that should not "
    "count, jnp.where(i < k, x, 0.0)."
)
_NUMBER = (
    f"float(x), int(x), x.item() and the functions of math need a number with a value, {_UNKNOWN}"
    "Leave the conversion out, or use x.astype(float); write jnp.exp(x) for math.exp(x)."
)
_NUMPY = (
    f"numpy needs arrays with values, {_UNKNOWN}Use jax.numpy: jnp.sin(x) for np.sin(x), "
    "jnp.stack(xs) for np.array(xs), jnp.array(a)[k] for a[k], x.at[i].set(v) for x[i] = v."
)
_SIZE = (
    f"a shape, a slice and the length of a loop need an integer with a value, {_UNKNOWN}For a "
    "draw, take the largest size and mask: jnp.where(jnp.arange(n) < k, x, 0.0). For a setting, "
    "close over it in place of an argument: functools.partial(f, n=3)."
)
_MASK = (
    f"x[mask] has as many elements as mask has true values, {_UNKNOWN}Keep all elements and mask: "
    "jnp.where(mask, x, 0.0)."
)
_BRANCHES = (
    "both branches return the same types and shapes. A draw of a discrete distribution is an "
    "integer: 1.0 * k makes it a float."
)
_CARRY = (
    "the state of a loop has one type and shape from the first step to the last. A draw of a "
    "discrete distribution is an integer: 1.0 * k makes it a float; start with 0.0 for 0."
)
_OBSERVED = (
    "a random choice takes no data. Give them where the density is taken, "
    'model().log_density({"x": data}) or ppl.elbo(model(), guide(), {"x": data}), or in the '
    'program: ppl.observe("x", d, data).'
)
_KEYWORD = (
    'a choice is ppl.sample("x", d) or ppl.sample("x", d, estimator). It takes no key, since '
    "randomness is implicit in a program, and no shape: use d.expand(shape)."
)
_ARGUMENTS = (
    'a choice has an address and a distribution, ppl.sample("x", dist.Normal(0.0, 1.0)); a factor '
    'an address and a weight, ppl.factor("w", log_weight); an observation an address, a '
    'distribution and data, ppl.observe("x", d, data).'
)
_PROGRAM = (
    "a generative function that was called is a distribution, not a value. Draw from it: "
    'x = ppl.sample("name", g(...)).'
)
_TRACE = (
    'a trace is no value: it has trace.choices (a dict), trace["x"], trace.log_density and '
    "trace.retval."
)
_LIST = "jax.numpy takes arrays. Make one of a list: jnp.stack(xs)."
_DISTRIBUTION = (
    "numpyro cannot make or use this distribution. Its parameters are numbers and arrays "
    "(jnp.array([0.5, 0.5]) for a list) whose shapes broadcast, inside their constraints (a scale "
    "is positive: jnp.exp(s) or jax.nn.softplus(s))."
)

_ADVICE: tuple[tuple[type[Exception], str, str], ...] = (
    (errors.TracerBoolConversionError, "", _TRUTH),
    (errors.TracerIntegerConversionError, "", _INDEX),
    (errors.TracerArrayConversionError, "", _NUMPY),
    (errors.NonConcreteBooleanIndexError, "", _MASK),
    (errors.ConcretizationTypeError, "`length`", _SIZE),
    (errors.ConcretizationTypeError, "", _NUMBER),
    (ValueError, "setting an array element with a sequence", _NUMPY),
    (TypeError, r"unhashable type: '\w*Tracer'", _INDEX),
    (TypeError, r"^Shapes must be 1D sequences of concrete .*Trace", _SIZE),
    (IndexError, r"static (integers|start/stop/step).*Trace", _SIZE),
    (TypeError, r"branch(es)? .*(equal|same)", _BRANCHES),
    (TypeError, r"carry", _CARRY),
    (TypeError, r"sample\(\) got an unexpected keyword argument 'obs'", _OBSERVED),
    (TypeError, r"sample\(\) got an unexpected keyword argument", _KEYWORD),
    (TypeError, r"^(sample|factor|observe)\(\) missing", _ARGUMENTS),
    (TypeError, r"\bProgram\b", _PROGRAM),
    (TypeError, r"\bTrace\b", _TRACE),
    (TypeError, r"got <class 'list'>", _LIST),
)


@contextlib.contextmanager
def user_code(name: str, f: Callable[..., Any]) -> Iterator[None]:
    """Around a run of the user's function ``f``: refuses numpyro's primitives, adds notes, and
    warns of numbers that are frozen."""
    try:
        run = _NumpyroRefused(name)
        around = run.around()
        if around is not None:
            around.functions.append(f)
        before = None if around is not None else generators()
        with run:
            yield
        if before is not None and before != generators():
            warn_of_frozen([f, *run.functions])
    except PPLError:
        raise
    except Exception as error:
        text = _arguments(f, error) or _key(error) or _advice(error)
        if text is not None and not any(text in n for n in getattr(error, "__notes__", ())):
            error.add_note(f"{_jax.raised_at(error)}: {text}")
        raise


def _arguments(f: Callable[..., Any], error: Exception) -> str | None:
    """What to say of a call of ``f`` with other arguments than it takes."""
    called = re.search(
        r"(missing \d+ required|takes .* but .* given|unexpected keyword)", str(error)
    )
    if not isinstance(error, TypeError) or not called:
        return None
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    try:
        return None if authors.is_users(last) else _taken(f, str(error))
    except ValueError:  # of a function that is not written in Python
        return None


def _taken(f: Callable[..., Any], said: str) -> str | None:
    f = inspect.unwrap(f)
    if not said.startswith(f"{getattr(f, '__qualname__', f)}()"):
        return None
    return (
        f"{_jax.definition(f)} takes {inspect.signature(f)}. Give it these by "
        "position or by keyword; of an objective, after the key, and samples= and the like by "
        "keyword alone."
    )


def _key(error: Exception) -> str | None:
    """Which dict has no such key, where the user's own line reads one from a dict it has."""
    if type(error) is not KeyError or not isinstance(key := error.args[0], str):
        return None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if not _jax.is_users(frame.f_code.co_filename):
        return None
    dicts = {
        n: d
        for n, d in _dicts(frame.f_locals)
        if d and key not in d and all(isinstance(k, str) for k in d)
    }
    known = [(k, n) for n, d in dicts.items() for k in d]
    close = difflib.get_close_matches(key, [k for k, _ in known], n=1)
    name = next((n for k, n in known if [k] == close), next(iter(dicts), None))
    if name is None:
        return None
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"{name} has no {key!r}; its keys are {', '.join(map(repr, dicts[name]))}.{meant}"


def _dicts(values: Mapping[str, Any], name: str = "{}") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The dicts among some values, and in them, with their names as they are written."""
    for k, x in values.items():
        if isinstance(x, dict):
            yield name.format(k), x
            yield from _dicts(x, name.format(k) + "[{!r}]")


def _advice(error: Exception) -> str | None:
    for e in (error, error.__cause__):
        for kind, pattern, text in _ADVICE:
            if isinstance(e, kind) and re.search(pattern, str(e)):
                return text
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    last = max((i for i, file in enumerate(files) if authors.is_users(file)), default=0)
    return _DISTRIBUTION if any("numpyro" in file for file in files[last + 1 :]) else None


class _NumpyroRefused(numpyro.primitives.Messenger):
    """``numpyro.sample`` and its relatives would leave no trace in a program: say so.

    Under a handler of the user's own, like that of ``numpyro.infer.util.log_density``, they are
    the handler's business.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.functions: list[Callable[..., Any]] = []  # that run inside

    def around(self) -> _NumpyroRefused | None:
        """The outermost run that this one will be inside of."""
        stack = numpyro.primitives._PYRO_STACK
        return next((m for m in stack if isinstance(m, _NumpyroRefused)), None)

    def process_message(self, msg: Any) -> None:
        instead = _instead_of(msg)
        if instead is None or numpyro.primitives._PYRO_STACK[-1] is not self:
            return
        what = "factor" if "factor" in instead else msg["type"]
        raise UnsupportedError(
            f"numpyro.{what} {msg['name']!r} at {_jax.called_at()} is inside {self.name}, which "
            f"does not see it: it would have no density and no gradient. Use {instead}."
        )


def _instead_of(msg: Any) -> str | None:
    if msg["type"] == "plate":
        return "jax.vmap over the data, or a distribution with arrays as parameters"
    if msg["type"] == "param":
        return "an argument of your function; ppl.maximize(objective, params, ...) fits it"
    if msg["type"] != "sample":
        return None
    if type(msg["fn"]).__name__ == "Unit":
        return f"ppl.factor({msg['name']!r}, log_weight)"
    if msg["is_observed"]:
        return f"ppl.observe({msg['name']!r}, d, data), or give the data to the density"
    return f"ppl.sample({msg['name']!r}, d)"


_ELSEWHERE = {
    "plate": "Use jax.vmap over the data, or a distribution with arrays as parameters.",
    "param": "Parameters are arguments of your function; ppl.maximize(objective, params, ...) "
    "fits them.",
    "deterministic": "Return the value from the program: it is trace.retval.",
    "SVI": "Use ppl.maximize(objective, params, optimizer, key=key, steps=1000).",
    "Trace_ELBO": "Use ppl.elbo(model(), guide(params), data) inside @ppl.expectation.",
    "condition": "Give the data to the density: model().log_density(choices), or "
    "model().generate(data, key).",
    "simulate": "Call the generative function: model(...).simulate(key).",
    "log_density": "Call the generative function: model(...).log_density(choices).",
    "grad": "Use objective.grad(key, ...) of an @ppl.expectation.",
}


def not_in_ppl(name: str, known: list[str], distributions: Any) -> AttributeError:
    """The error for ``ppl.name``, which does not exist."""
    close = difflib.get_close_matches(name, known, n=1)
    if name in _ELSEWHERE:
        instead = _ELSEWHERE[name]
    elif not name.startswith("_") and isinstance(getattr(distributions, name, None), type):
        instead = f"Distributions are in ppl.dist: dist.{name}(...), after from ppl import dist."
    else:
        instead = f"Did you mean ppl.{close[0]}?" if close else "See help(ppl)."
    return AttributeError(f"ppl has no {name} ({_jax.user_line()}). {instead}")


def bad_return(name: str, out: Any) -> None:
    """Refuse what cannot leave a traced program, like strings.

    Raises:
        UnsupportedError: a leaf of ``out`` is no number and no array.
    """
    for leaf in jax.tree.leaves(out):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise UnsupportedError(
                f"{name} returns {describe(leaf)}, which is no number and no array. Return "
                "numbers, arrays, and tuples, lists or dicts of them."
            )
