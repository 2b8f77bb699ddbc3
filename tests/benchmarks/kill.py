"""``python tests/benchmarks/kill.py``: fits that are killed at random moments resume to the bit.

A fit with a checkpoint, averages and checks for convergence runs in a process that gets SIGKILL
after a random time, ten times over; the last process is left alone. Its result is compared with
that of a fit that was never stopped.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ppl
from ppl import dist

KILLS, STEPS = 10, 30_000


@ppl.expectation
def objective(p):
    x = ppl.sample("x", dist.Normal(p["m"], jnp.exp(p["s"])))
    return -jnp.sum((x - jnp.arange(1_000.0)) ** 2) / 1_000 + p["s"].mean()


def fit(checkpoint: str | None) -> str:
    """A digest of everything that a fit returns."""
    params = {"m": jnp.zeros(1_000), "s": jnp.zeros(1_000)}
    got = ppl.maximize(
        objective,
        params,
        optax.adam(0.1),
        key=jax.random.key(0),
        steps=STEPS,
        tolerance=1e-9,
        progress=False,
        checkpoint=checkpoint,
    )
    parts = jax.tree.leaves((got.params, got.averaged, got.history))
    digest = hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in parts))
    return f"{digest.hexdigest()} {len(got.history)} {got.verdict}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "fit.npz")
        again = [sys.executable, __file__, path]
        for _ in range(KILLS):
            process = subprocess.Popen(again, stdout=subprocess.PIPE)
            while not os.path.exists(path) and process.poll() is None:
                pass
            try:
                process.wait(random.uniform(2.0, 8.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            size = len(np.load(path)["history"]) if os.path.exists(path) else 0
            sys.stdout.write(f"killed at {size} steps (exit {process.returncode})\n")
        resumed = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True).stdout
    whole = fit(None)
    assert resumed.strip() == whole, (resumed, whole)
    sys.stdout.write(f"the same to the bit: {whole}\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.stdout.write(fit(sys.argv[1]) + "\n")
    else:
        main()
