"""What a gradient costs against the number of elements of a plate, or of steps of a chain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import mixtures
import numpy as np
import variance
from measure import Contender, Row, gradient, interleaved
from scan_compile import equations

import ppl

KEY = jax.random.key(0)
LIMIT = {"s": 20.0, "MB": 8_000.0}
"""No larger size is tried after a compilation or a run of so long; none runs that needs more."""

Program = Callable[[int], tuple[Callable[..., Any], Sequence[Any]]]
"""From a size: the function whose gradient is measured, and its arguments after the key."""


def of_problem(problem: Callable[[int], mixtures.Problem], form: str) -> Program:
    def program(size: int) -> tuple[Callable[..., Any], Sequence[Any]]:
        p = problem(size)
        return p.forms[form].estimate, (p.params, p.data)

    return program


def of_plate(estimator: ppl.Estimator) -> Program:
    def program(size: int) -> tuple[Callable[..., Any], Sequence[Any]]:
        logits, targets = jax.random.normal(KEY, (2, size))
        return variance.summed(estimator).surrogate, (logits, targets)

    return program


def of_chain(size: int) -> tuple[Callable[..., Any], Sequence[Any]]:
    p = variance.chain(size)
    return p.estimates["ours"], (p.params, p.data)


PROGRAMS: dict[str, Program] = {
    "GMM, marginal, by hand": of_problem(mixtures.gmm, "by hand"),
    "GMM, marginal": of_problem(mixtures.gmm, "ours"),
    "HMM, marginal, by hand": of_problem(mixtures.hmm, "by hand"),
    "HMM, marginal": of_problem(mixtures.hmm, "ours"),
    "plate, enumeration": of_plate(ppl.enum()),
    "plate, MVD": of_plate(ppl.mvd()),
    "plate, REINFORCE": of_plate(ppl.reinforce()),
    "chain, REINFORCE": of_chain,
}


def rows(program: Program, sizes: Sequence[int], blocks: int, seconds: float) -> Iterator[Row]:
    """A row for each size, with the exponent of the growth since the one before, and in all.

    Sizes end where the library refuses one, or where one is beyond ``LIMIT``.
    """
    found: list[Row] = []
    for size in sizes:
        try:
            row = {"size": size} | cost(*program(size), blocks, seconds)
        except ppl.UnsupportedError as refusal:
            yield {"size": size, "stopped": f"refused: {refusal}"[:60]}
            break
        if found:
            row |= exponents([found[-1], row])
        found.append(row)
        yield row
        if "stopped" in row:
            break
    if len(found) > 2:
        yield exponents(found)


def cost(f: Callable[..., Any], args: Sequence[Any], blocks: int, seconds: float) -> Row:
    """Of the value and gradient of ``f(key, *args)``."""
    slope = gradient(f)
    start = time.perf_counter()
    traced = jax.jit(lambda key, *args: slope(key, *args)).trace(KEY, *args)
    lowered = traced.lower()
    middle = time.perf_counter()
    call = lowered.compile()
    end = time.perf_counter()
    memory = call.memory_analysis()
    row = {
        "ms": None,
        "MB": memory.temp_size_in_bytes / 1e6 if memory else None,
        "trace s": middle - start,
        "compile s": end - middle,
        "equations": equations(traced.jaxpr.jaxpr),
    }
    if (row["MB"] or 0.0) > LIMIT["MB"]:
        return row | {"stopped": "too much memory"}
    run = Contender("", lambda: jax.block_until_ready(call(KEY, *args)))
    ((one, _),) = interleaved([run], blocks, seconds).values()
    row["ms"] = 1e3 * one
    return row | ({"stopped": "too long"} if max(one, end - start) > LIMIT["s"] else {})


def exponents(rows: Sequence[Row]) -> Row:
    """The slopes of log time and log memory over log size, by least squares."""
    found = {}
    for what, name in (("ms", "time ~ size^"), ("MB", "memory ~ size^")):
        points = [(row["size"], row[what]) for row in rows if row[what]]
        if len(points) > 1:
            x, y = np.log(np.asarray(points, float)).T
            found[name] = float(np.polyfit(x, y, 1)[0])
    return found
