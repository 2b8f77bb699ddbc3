"""``python tests/benchmarks/hosts.py [processes ...]``: one fit in several processes.

Each process holds its own rows of the data, on the loopback address. Printed: how far the result is
from that of one process, and the seconds; then one process is killed, the seconds until the others
have stopped and what they say, and the result of the run that resumes from the checkpoint.

``python tests/benchmarks/hosts.py --process I --of N --port P [--checkpoint FILE]`` is one of them:
what a user types on each host, with the address of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import ppl
from ppl import dist

ROOT = pathlib.Path(__file__).parents[2]
ROWS, COLUMNS, STEPS = 240, 5, 1_000


@ppl.gen
def model(x: Any) -> None:
    w = ppl.sample("w", dist.Normal(jnp.zeros(COLUMNS - 1), 1.0).to_event(1))
    ppl.sample("y", dist.Normal(x @ w, 1.0).to_event(1))


@ppl.gen
def guide(phi: Any) -> None:
    ppl.sample("w", dist.Normal(phi["m"], jnp.exp(phi["s"])).to_event(1))


@ppl.expectation
def elbo(phi: Any, rows: Any) -> Any:
    x, y = rows[:, :-1], rows[:, -1]
    return ppl.elbo(model(x), guide(phi), {"y": y}) / ROWS


def fit(process: int, of: int, checkpoint: str | None, steps: int) -> Any:
    """The fit of one process, which has its own part of the rows."""
    every = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    part = every[process * ROWS // of : (process + 1) * ROWS // of]
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    divided = NamedSharding(mesh, PartitionSpec("data"))
    rows = jax.make_array_from_process_local_data(divided, part)
    start = {"m": jnp.zeros(COLUMNS - 1), "s": jnp.zeros(COLUMNS - 1)}
    how = {"key": jax.random.key(0), "steps": steps, "args": (rows,), "progress": False}
    return ppl.maximize(elbo, start, optax.adam(1e-2), checkpoint=checkpoint, average=0.5, **how)


def one_process(given: argparse.Namespace) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = f"127.0.0.1:{given.port}"
    limits = {"heartbeat_timeout_seconds": 10, "shutdown_timeout_seconds": 10}
    jax.distributed.initialize(address, given.of, given.process, **limits)
    found = fit(given.process, given.of, given.checkpoint, given.steps)
    shown = [*np.ravel(found.averaged["m"]), *np.ravel(found.params["s"]), found.history[-1]]
    sys.stdout.write(json.dumps([float(a) for a in shown]) + "\n")


def begin(of: int, checkpoint: str | None = None, steps: int = STEPS) -> list[Any]:
    """All processes, each with one device."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    more = ["--checkpoint", checkpoint] if checkpoint else []
    common = ["--of", str(of), "--port", str(port), "--steps", str(steps), *more]
    start = lambda i: subprocess.Popen(
        [sys.executable, __file__, "--process", str(i), *common],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    return [*map(start, range(of))]


def results(processes: list[Any]) -> list[list[float]]:
    outs = [p.communicate(timeout=300) for p in processes]
    for p, (_, err) in zip(processes, outs, strict=True):
        if p.returncode:
            raise RuntimeError(err[-3_000:])
    return [json.loads(out.splitlines()[-1]) for out, _ in outs]


def killed(of: int, checkpoint: str) -> tuple[float, list[str]]:
    """Kill the last process once there is a checkpoint: seconds until the others stop, and why."""
    processes = begin(of, checkpoint, 10_000_000)
    while not os.path.exists(checkpoint):
        assert all(p.poll() is None for p in processes), [p.communicate() for p in processes]
        time.sleep(0.05)
    processes[-1].send_signal(signal.SIGKILL)
    start = time.perf_counter()
    said = [p.communicate(timeout=120)[1] for p in processes[:-1]]
    processes[-1].communicate()
    return time.perf_counter() - start, said


def reason(said: str) -> str:
    """The line that says why a process has stopped: of the fit, or of JAX, which ends a process
    whose neighbours are not the one that is gone."""
    lines, words = said.splitlines(), ("PPLError: ", "Terminating", "heartbeat")
    found = [line for word in words for line in lines if word in line]
    return found[0] if found else said[-500:]


def main(numbers: list[int]) -> None:
    alone = fit(0, 1, None, STEPS)
    wanted = np.array([*alone.averaged["m"], *alone.params["s"], alone.history[-1]])
    for of in numbers:
        start = time.perf_counter()
        found = results(begin(of))
        seconds = time.perf_counter() - start
        far = np.abs(np.array(found) - wanted).max()
        sys.stdout.write(f"{of} processes: {far:.1e} from one process, {seconds:.1f} s\n")
        with tempfile.TemporaryDirectory() as folder:
            path = str(pathlib.Path(folder) / "fit.npz")
            seconds, said = killed(of, path)
            sys.stdout.write(f"  one killed: the others stop after {seconds:.1f} s\n")
            for i, text in enumerate(said):
                sys.stdout.write(f"    {i}: {reason(text)}\n")
            size = len(np.load(path)["history"])
            resumed = results(begin(of, path, size + 200))
            direct = fit(0, 1, None, size + 200)
            wanted_then = [*direct.averaged["m"], *direct.params["s"], direct.history[-1]]
            far = np.abs(np.array(resumed) - np.array(wanted_then)).max()
            sys.stdout.write(f"  resumed at {size} steps, {far:.1e} from one that never stopped\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("numbers", nargs="*", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--of", type=int)
    parser.add_argument("--port", type=int)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--checkpoint")
    arguments = parser.parse_args()
    if arguments.process is None:
        main(arguments.numbers or [2, 4])
    else:
        one_process(arguments)
