"""Attend, Infer, Repeat and the cone in Pyro: sizes, priors and random weights are ours.

A plate holds the images. What a network sees may have further dimensions to the left (particles,
the values of choices enumerated in parallel), so one guide serves every objective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import air as ours
import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    config_enumerate,
)
from pyro.optim import PyroLRScheduler
from torch import Tensor, nn

from ppl.demo.cone import FIELD

pyro.enable_validation(False)
torch.set_num_threads(1)  # on two shared cores, two threads wait for each other: 10 times slower

Run = Callable[[], float]

WHERE_PRIOR = tuple(torch.from_numpy(np.array(x)) for x in ours.WHERE_PRIOR)


# --- networks and the spatial transformer ---------------------------------------------------------


def resample(image: Tensor, n: int, scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``f32[..., n, n]``: images seen through scale · (-1 .. 1) + (x, y), as ``air.resample``."""
    batch, size = scale.shape, image.shape[-2:]
    zero = torch.zeros_like(scale)
    maps = torch.stack([scale, zero, x, zero, scale, y], -1).reshape(-1, 2, 3)
    grid = F.affine_grid(maps, [len(maps), 1, n, n], align_corners=True)
    image = image.expand(*batch, *size).reshape(-1, 1, *size)
    return F.grid_sample(image, grid, align_corners=True).reshape(*batch, n, n)


class AIR(nn.Module):
    """The networks, the model and the guide, for a plate of images ``f32[n, size, size]``."""

    def __init__(self, size: int = ours.CANVAS) -> None:
        super().__init__()
        window = ours.WINDOW**2
        self.lstm = nn.LSTMCell(size**2 + 3 + ours.WHAT + 1, ours.HIDDEN)
        self.predict = nn.Linear(ours.HIDDEN, 7)
        self.encoder = nn.Sequential(
            nn.Linear(window, ours.DENSE), nn.LeakyReLU(), nn.Linear(ours.DENSE, 2 * ours.WHAT)
        )
        self.decoder = nn.Sequential(
            nn.Linear(ours.WHAT, ours.DENSE),
            nn.LeakyReLU(),
            nn.Linear(ours.DENSE, window),
            nn.Sigmoid(),
            nn.Unflatten(-1, (ours.WINDOW, ours.WINDOW)),
        )
        bound = (self.lstm.input_size + ours.HIDDEN) ** -0.5
        for weights in self.lstm.parameters():
            nn.init.uniform_(weights, -bound, bound)
        nn.init.zeros_(self.lstm.bias_hh)  # ours has one bias

    def look(self, image: Tensor, last: Any, state: Any) -> Any:
        """One step of the LSTM: its state and what it says of ``pres`` and ``where``."""
        pres, where, what = last
        seen = [image.flatten(-2), where, what, pres.unsqueeze(-1), *state]
        batch = torch.broadcast_shapes(*(x.shape[:-1] for x in seen))
        *seen, h, c = (x.expand(*batch, -1).flatten(0, -2) for x in seen)
        h, c = (x.unflatten(0, batch) for x in self.lstm(torch.cat(seen, -1), (h, c)))
        out = self.predict(h)
        p = (ours.EPS + torch.sigmoid(out[..., 0]) * pres) / (1 + 1.01 * ours.EPS)
        return (h, c), p, (out[..., 1:4], F.softplus(out[..., 4:]))

    def encode(self, window: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self.encoder(window.flatten(-2)).chunk(2, -1)
        return loc, F.softplus(scale)

    def model(self, images: Tensor) -> None:
        pyro.module("air", self)
        size = images.shape[-1]
        with pyro.plate("images", len(images)):
            canvas = torch.zeros_like(images)
            for t in range(ours.STEPS):
                pres = pyro.sample(f"pres{t}", dist.Bernoulli(ours.PRES_PRIOR[t]))
                where = pyro.sample(f"where{t}", dist.Normal(*WHERE_PRIOR).to_event(1))
                what = pyro.sample(f"what{t}", dist.Normal(torch.zeros(ours.WHAT), 1.0).to_event(1))
                part = resample(self.decoder(what), size, *where.unbind(-1))
                canvas = canvas + pres[..., None, None] * part
            pyro.sample("image", dist.Normal(canvas, ours.NOISE).to_event(2), obs=images)

    def guide(self, images: Tensor) -> None:
        pyro.module("air", self)
        n = len(images)
        last = torch.ones(n), torch.zeros(n, 3), torch.zeros(n, ours.WHAT)
        state = torch.zeros(n, ours.HIDDEN), torch.zeros(n, ours.HIDDEN)
        with pyro.plate("images", n):
            for t in range(ours.STEPS):
                state, p, law = self.look(images, last, state)
                pres = pyro.sample(f"pres{t}", dist.Bernoulli(p))
                where = pyro.sample(f"where{t}", dist.Normal(*law).to_event(1))
                scale, x, y = where.unbind(-1)
                window = resample(images, ours.WINDOW, 1 / scale, -x / scale, -y / scale)
                what = pyro.sample(f"what{t}", dist.Normal(*self.encode(window)).to_event(1))
                last = pres, where, what


def air(images: np.ndarray, net: AIR | None = None) -> dict[str, Run]:
    """By the names of ``air.STRATEGIES``: one loss, summed over the images, and all its gradients.

    The gradients are in ``net``, which is random if not given. RenyiELBO has no score terms at
    alpha = 0: the logits of ``pres`` get a gradient of 0, so its step does less work than ours.
    """
    data = torch.tensor(np.asarray(images, np.float32))
    pyro.set_rng_seed(0)
    net = net or AIR(data.shape[-1])

    def once(objective: Any, guide: Callable[..., Any] = net.guide) -> Run:
        def run() -> float:
            pyro.clear_param_store()
            net.zero_grad()
            return objective.loss_and_grads(net.model, guide, data)

        return run

    two = RenyiELBO(alpha=0, num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    enum = TraceEnum_ELBO(max_plate_nesting=1)
    return {
        "REINFORCE": once(TraceGraph_ELBO(max_plate_nesting=1)),
        "ENUM": once(enum, config_enumerate(net.guide, default="sequential")),
        "ENUM, parallel": once(enum, config_enumerate(net.guide, default="parallel")),
        "IWAE + REINFORCE": once(two),
    }


# --- the cone -------------------------------------------------------------------------------------


def cone(objective: str, particles: int, steps: int, seed: int) -> dict[str, Callable[[], Any]]:
    """``step``: one step of Adam, returns the loss; ``fit``: all from the start, the parameters.

    ``particles`` estimates of "ELBO" or of "IWELBO(5)" make a step.
    """
    bound, n = {
        "ELBO": (Trace_ELBO(particles, 1, vectorize_particles=True), 1),
        "IWELBO(5)": (RenyiELBO(0, 5, 1, vectorize_particles=True), particles),
    }[objective]

    def model() -> None:
        with pyro.plate("estimates", n):
            x = pyro.sample("x", dist.Normal(0.0, 10.0))
            y = pyro.sample("y", dist.Normal(0.0, 10.0))
            r = x**2 + y**2
            pyro.sample("z", dist.Normal(r, 0.1 + r / 100), obs=torch.tensor(5.0))

    def guide() -> None:
        phi = {k: pyro.param(f"{k} of q", torch.tensor(start)) for k, start in FIELD.items()}
        with pyro.plate("estimates", n):
            pyro.sample("x", dist.Normal(phi["x"], phi["log_sx"].exp()))
            pyro.sample("y", dist.Normal(phi["y"], phi["log_sy"].exp()))

    def start() -> tuple[SVI, PyroLRScheduler]:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        optimizer = PyroLRScheduler(
            torch.optim.lr_scheduler.CosineAnnealingLR,
            {
                "optimizer": torch.optim.Adam,
                "optim_args": {"lr": 0.1, "betas": (0.9, 0.99)},
                "T_max": steps,
            },
        )
        return SVI(model, guide, optimizer, bound), optimizer

    svi, _ = start()

    def fit() -> dict[str, float]:
        svi, schedule = start()
        for _ in range(steps):
            svi.step()
            schedule.step()
        return {k: pyro.param(f"{k} of q").item() for k in FIELD}

    return {"step": lambda: svi.step() / n, "fit": fit}
