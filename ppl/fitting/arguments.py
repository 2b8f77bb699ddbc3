"""What a fit is given, checked before anything is compiled."""

from __future__ import annotations

import inspect
import os
from typing import Any

import jax
import jax.numpy as jnp

from transforms import _jax
from transforms.errors import UnsupportedError, describe

from ..objectives.expectation import Expectation
from ..programs.given import is_array


def check_objective(objective: Any) -> None:
    """Refuse what is no objective."""
    if not isinstance(objective, Expectation):
        raise UnsupportedError(
            f"the objective at {_jax.user_line()} is {describe(objective)}. Put @ppl.expectation "
            "above the function that returns it, and give that function, uncalled."
        )


def check_ending(
    objective: Expectation,
    average: Any,
    tolerance: Any,
    restarts: Any,
    state: Any,
    callback: Any,
) -> None:
    """Refuse what says no end of a fit, or contradicts itself."""
    line = _jax.user_line()
    if average is not None and not (isinstance(average, float | int) and 0 < average <= 1):
        raise UnsupportedError(
            f"average at {line} is {describe(average)}, and is the part of the steps, from the "
            "last one backwards, over which the parameters are averaged. Type average=0.5."
        )
    if tolerance is not None and not (isinstance(tolerance, float | int) and tolerance >= 0):
        raise UnsupportedError(
            f"tolerance at {line} is {describe(tolerance)}, and is the gain of the objective under "
            "which a fit stops. Type tolerance=0.02."
        )
    if tolerance is not None and average is not None and average > 0.5:
        raise UnsupportedError(
            f"average={average} at {line} reaches back beyond the last doubling of the steps, at "
            "which tolerance= compares. Type average=0.5, or leave it out."
        )
    if restarts is not None and state is not None:
        raise UnsupportedError(
            f"the fit at {line} has both restarts= and state=, which goes on with one fit, the "
            "best of its restarts. Leave out restarts=."
        )
    if callable(callback) and not objective.has_aux and takes_metrics(callback):
        raise UnsupportedError(
            f"the callback at {line} takes metrics, the auxiliary data of the objective, which has "
            "none. Return (value, metrics) from it, with @ppl.expectation(has_aux=True)."
        )


def takes_metrics(callback: Any) -> bool:
    """Whether a callback has an argument ``metrics``."""
    try:
        return "metrics" in inspect.signature(callback).parameters
    except (TypeError, ValueError):  # of a function that is not written in Python
        return False


def check_arguments(
    params: Any, optimizer: Any, args: Any, batches: Any, callback: Any, checkpoint: Any
) -> None:
    """Refuse what could not be fitted, before anything is compiled."""
    line = _jax.user_line()
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise UnsupportedError(
            f"the optimizer at {line} is {describe(optimizer)}. Give an optax optimizer, called "
            "with its learning rate, after the parameters: ppl.maximize(objective, params, "
            "optax.adam(1e-2), ...)."
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    whole = [(path, v) for path, v in leaves if type(v) is int]
    if whole:
        path, v = whole[0]
        raise UnsupportedError(
            f"the parameter {jax.tree_util.keystr(path) or 'params'} of the fit at {line} is the "
            f"integer {v}, which has no derivative and would never change. Type {v}.0."
        )
    if not any(is_array(v) and jnp.issubdtype(jnp.result_type(v), jnp.floating) for _, v in leaves):
        raise UnsupportedError(
            f"the parameters of the fit at {line} are {describe(params)} without any number of "
            "floating point, so there is nothing to fit. Give a number, an array, or a dict like "
            '{"m": 0.0}.'
        )
    if not isinstance(args, tuple | list):
        raise UnsupportedError(
            f"args at {line} is {describe(args)}, and is a tuple of the arguments of the objective "
            "after the parameters. Type args=(x,), with the comma."
        )
    if batches is not None and not callable(batches) and not hasattr(batches, "__iter__"):
        raise UnsupportedError(
            f"batches at {line} is {describe(batches)}. Give a list of batches, or "
            "ppl.minibatches(data, size)."
        )
    if callback is not None and not callable(callback):
        raise UnsupportedError(
            f"callback at {line} is {describe(callback)}. Give a function (step, params, history)."
        )
    if checkpoint is None:
        return
    if not isinstance(checkpoint, str | os.PathLike):
        raise UnsupportedError(
            f"checkpoint at {line} is {describe(checkpoint)}. Give the path of a file, "
            'checkpoint="fit.npz".'
        )
    folder = os.path.dirname(os.path.abspath(checkpoint))
    if os.path.isdir(checkpoint) or not os.path.isdir(folder):
        raise UnsupportedError(
            f"checkpoint at {line} is {os.fspath(checkpoint)!r}, where no file can be written: "
            "it is a folder, or is in one that does not exist. Give a file in a folder that exists."
        )
