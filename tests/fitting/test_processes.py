"""A fit in two processes, of which one is killed: ``tests/benchmarks/hosts.py``."""

import hosts
import numpy as np


def test_the_others_say_so_and_the_run_resumes(tmp_path, monkeypatch):
    """The same as one process that never stopped, but for the order of sums in float32."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    path = str(tmp_path / "fit.npz")
    seconds, (said,) = hosts.killed(2, path)
    assert seconds < 60  # it waits 10 for the one that is gone
    assert "process 0 of 2, has stopped: another process has failed or is gone" in said
    assert f"the fit resumes from {path}" in said

    steps = len(np.load(path)["history"]) + 100
    found = hosts.results(hosts.begin(2, path, steps))
    alone = hosts.results(hosts.begin(1, None, steps))  # with the random bits of a user
    np.testing.assert_allclose(found, alone * 2, rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "fit.npz.partial").exists()
