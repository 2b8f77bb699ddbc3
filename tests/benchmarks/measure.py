"""How contenders are measured: in one process, in alternating blocks; medians and ratios.

What XLA counts (FLOPs, bytes, memory beside arguments and results) is exact. Times are medians over
blocks of the medians within a block, ratios are medians over blocks of the ratio to the first
contender: drift hits all alike.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "numpyro", "optax", "torch", "pyro-ppl", "genjax")

Row = dict[str, Any]


@dataclasses.dataclass
class Contender:
    """Something to measure; ``run`` does it once and waits for the result."""

    name: str
    run: Callable[[], Any]
    trace: float | None = None
    compile: float | None = None
    flops: float | None = None
    bytes: float | None = None
    memory: float | None = None
    """Bytes beside arguments and results, as XLA allocates them."""


def compiled(name: str, f: Callable[..., Any], *args: Any, repeats: int = 3) -> Contender:
    """``f(*args)``, compiled; the least trace and compile times of several, in seconds."""
    traces, compiles = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        lowered = jax.jit(lambda *args: f(*args)).lower(*args)
        traces.append(time.perf_counter() - start)
        start = time.perf_counter()
        call = lowered.compile()
        compiles.append(time.perf_counter() - start)
    cost = cost_of(call)
    return Contender(
        name,
        lambda: jax.block_until_ready(call(*args)),
        min(traces),
        min(compiles),
        cost["flops"],
        cost["bytes accessed"],
        cost["memory"],
    )


def cost_of(stage: Any) -> Mapping[str, float]:
    """XLA's analysis of a lowered or compiled program; of a compiled one with its memory."""
    cost = stage.cost_analysis()
    cost = dict(cost[0] if isinstance(cost, list) else cost)
    if isinstance(stage, jax.stages.Compiled):
        found: Any = stage.memory_analysis()
        cost["memory"] = found.temp_size_in_bytes
    return cost


def gradient(f: Callable[..., Any]) -> Callable[..., Any]:
    """Value and gradient of ``f(key, params, *data)`` with respect to ``params``."""
    return jax.value_and_grad(f, argnums=1)


def looped(f: Callable[..., Any], steps: int, rate: float = 1e-6) -> Callable[..., Any]:
    """``steps`` of ascent by the gradient ``f(key, params)`` in one compiled loop."""

    def run(key: jax.Array, params: Any) -> Any:
        def step(params: Any, i: jax.Array) -> Any:
            value, slope = f(jax.random.fold_in(key, i), params)
            return jax.tree.map(lambda p, g: p + rate * g, params, slope), value

        return jax.lax.scan(step, params, jax.numpy.arange(steps))

    return run


def interleaved(
    contenders: Sequence[Contender], blocks: int, seconds: float
) -> dict[str, tuple[float, float]]:
    """For each contender: seconds for one run, and the ratio to the first contender."""
    repeats = {}
    for c in contenders:
        c.run()
        start = time.perf_counter()
        c.run()
        repeats[c.name] = max(1, int(seconds / (time.perf_counter() - start)))
    medians: dict[str, list[float]] = {c.name: [] for c in contenders}
    for block in range(blocks):
        for c in contenders if block % 2 else contenders[::-1]:
            times = []
            for _ in range(repeats[c.name]):
                start = time.perf_counter()
                c.run()
                times.append(time.perf_counter() - start)
            medians[c.name].append(statistics.median(times))
    first = medians[contenders[0].name]
    return {
        name: (
            statistics.median(own),
            statistics.median(a / b for a, b in zip(own, first, strict=True)),
        )
        for name, own in medians.items()
    }


def rows(
    contenders: Sequence[Contender], blocks: int, seconds: float, per: int = 1, **labels: Any
) -> Iterable[Row]:
    """A row for each contender: what it costs, and each cost as a ratio to the first contender.

    A run counts as ``per`` steps.
    """
    times = interleaved(contenders, blocks, seconds)
    first = contenders[0]
    for c in contenders:
        ms, ratio = 1e3 * times[c.name][0] / per, times[c.name][1]
        row = {**labels, "program": c.name, "ms": ms, "× time": ratio}
        if c.flops is not None and first.flops:
            row |= {"MFLOP": c.flops / 1e6, "× FLOPs": c.flops / first.flops}
            row |= {"× bytes": c.bytes / first.bytes}
        if c.memory is not None and first.memory:
            row |= {"× memory": c.memory / first.memory}
        if c.trace is not None and first.trace:
            total, reference = c.trace + c.compile, first.trace + first.compile
            row |= {"trace s": c.trace, "compile s": c.compile, "× both": total / reference}
        yield row


# --- what comes out -------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Versions, processor, device and date."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        **versions,
        "device": str(jax.devices()[0].device_kind),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned text; a column is there if any row has it."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_text(row.get(c)) for c in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    numeric = [all(isinstance(r.get(c, 0), int | float) for r in rows) for c in columns]
    lines = [
        "  ".join(
            cell.rjust(w) if n else cell.ljust(w)
            for cell, w, n in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [columns, *cells]
    ]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def save(out: pathlib.Path, name: str, title: str, rows: Sequence[Row], notes: str = "") -> str:
    """Write ``name.json`` and ``name.txt``; returns the text."""
    where = environment()
    what = ", ".join(f"{key} {value}" for key, value in where.items())
    text = "\n".join(filter(None, [title, what, "", table(rows), "", notes])).rstrip() + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.txt").write_text(text)
    contents = {"title": title, "environment": where, "rows": rows, "notes": notes}
    (out / f"{name}.json").write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n")
    return text
