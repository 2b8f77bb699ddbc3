"""``python tests/benchmarks/streaming.py [rows]``: a fit to more rows than it holds in memory.

Regression of 19 columns on the last one, read in batches of 10,000 from a memory-mapped file of 20
columns, for an epoch: ours beside a loop by hand over the same batches, in alternation. Memory is
the most that the process held of its own (RssAnon, every 20 ms) less what it held before; pages of
the file belong to the system, which takes them back.
"""

from __future__ import annotations

import pathlib
import re
import statistics
import sys
import tempfile
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import table

import ppl
from ppl import dist

COLUMNS, SIZE, BLOCK, ROUNDS = 20, 10_000, 100, 5
KEY = jax.random.key(0)
OPTIMIZER = optax.adam(1e-2)
START = {"m": jnp.zeros(COLUMNS - 1), "s": jnp.full(COLUMNS - 1, -3.0)}


@ppl.gen
def model(x: Any) -> None:
    w = ppl.sample("w", dist.Normal(jnp.zeros(COLUMNS - 1), 1.0).to_event(1))
    ppl.sample("y", dist.Normal(x @ w, 1.0).to_event(1))


@ppl.gen
def guide(phi: Any) -> None:
    ppl.sample("w", dist.Normal(phi["m"], jnp.exp(phi["s"])).to_event(1))


def objective(rows: int) -> ppl.Expectation:
    @ppl.expectation
    def elbo(phi: Any, batch: Any) -> Any:
        x, y = batch[:, :-1], batch[:, -1]
        scaled = ppl.scale(model(x), {"y": rows / SIZE})
        return ppl.elbo(scaled, guide(phi), {"y": y}) / rows

    return elbo


def by_hand(rows: int) -> Any:
    def cost(phi: Any, key: Any, batch: Any) -> Any:
        normal = lambda x, m, s: -0.5 * ((x - m) / s) ** 2 - jnp.log(s) - 0.5 * jnp.log(2 * jnp.pi)
        x, y = batch[:, :-1], batch[:, -1]
        scale = jnp.exp(phi["s"])
        w = phi["m"] + scale * jax.random.normal(key, phi["m"].shape)
        log_p = normal(w, 0.0, 1.0).sum() + rows / SIZE * normal(y, x @ w, 1.0).sum()
        return -(log_p - normal(w, phi["m"], scale).sum()) / rows

    @jax.jit
    def step(phi: Any, state: Any, i: Any, batch: Any) -> Any:
        value, slope = jax.value_and_grad(cost)(phi, jax.random.fold_in(KEY, i), batch)
        updates, state = OPTIMIZER.update(slope, state, phi)
        return optax.apply_updates(phi, updates), state, -value

    return step


def peak(run: Any) -> tuple[Any, float, float]:
    """What a function returns, its seconds, and the most memory it held, in MB."""
    held = lambda: int(re.search(r"RssAnon:\s+(\d+)", status.read_text())[1]) / 1e3
    status = pathlib.Path("/proc/self/status")
    before, most, done = held(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return result, seconds, most[0] - before


def write(path: pathlib.Path, rows: int) -> np.ndarray:
    """A file of rows, written and opened memory-mapped."""
    shape = (rows, COLUMNS)
    file = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=COLUMNS - 1).astype(np.float32)
    for i in range(0, rows, 100_000):
        part = file[i : i + 100_000]
        part[:] = rng.normal(size=part.shape).astype(np.float32)
        part[:, -1] += part[:, :-1] @ weights
    file.flush()
    return np.load(path, mmap_mode="r")


def measure(rows: int, folder: str) -> list[dict[str, Any]]:
    path = pathlib.Path(folder) / f"{rows}.npy"
    batches = ppl.epochs(write(path, rows), SIZE, key=KEY, block=BLOCK)
    steps, elbo, step = len(batches), objective(rows), by_hand(rows)

    def ours() -> Any:
        how = {"key": KEY, "steps": steps, "batches": batches, "progress": False}
        fit = ppl.maximize(elbo, START, OPTIMIZER, **how)
        return fit.params, fit.history

    def hand() -> Any:
        phi, state, values = START, OPTIMIZER.init(START), []
        for i, batch in zip(range(steps), batches, strict=False):
            phi, state, value = step(phi, state, i, batch)
            values.append(value)
        return jax.block_until_ready(phi), np.asarray(values)

    a, b = ours(), hand()  # compiles
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), a, b)
    found = [(peak(ours)[1:], peak(hand)[1:]) for _ in range(ROUNDS)]
    path.unlink()
    ratio = statistics.median(o[0] / h[0] for o, h in found)
    return [
        {
            "rows": rows,
            "file MB": rows * COLUMNS * 4 / 1e6,
            "program": name,
            "s an epoch": statistics.median(f[i][0] for f in found),
            "rows/s": rows / statistics.median(f[i][0] for f in found),
            "most MB": max(f[i][1] for f in found),
            "× time": ratio if i == 0 else 1.0,
        }
        for i, name in enumerate(("ppl.epochs", "by hand"))
    ]


if __name__ == "__main__":
    sizes = [int(float(a)) for a in sys.argv[1:]] or [1_000_000, 10_000_000]
    with tempfile.TemporaryDirectory() as folder:
        found = [row for rows in sizes for row in measure(rows, folder)]
    sys.stdout.write(table(found) + "\n")
