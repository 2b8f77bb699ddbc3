"""Programmable variational inference for JAX.

Write a model, a guide and an objective as plain JAX programs; get unbiased gradients of the
objective, with the estimator of your choice at every random choice.
A file is imported when a name of it is first used.
"""

from typing import TYPE_CHECKING

from . import _beside  # noqa: F401  must come first

# isort: split
from numpyro import distributions as dist

from transforms import _jax  # noqa: F401  warns of a JAX that computes wrong sums

from ._names import attach as _attach

if TYPE_CHECKING:
    from estimators.baselines import learned, moving_average
    from estimators.disarm import disarm
    from estimators.enumeration import enum
    from estimators.measure_valued import mvd
    from estimators.pathwise import reparam
    from estimators.perturbation import spa
    from estimators.rebar import rebar
    from estimators.reinforce import reinforce
    from estimators.relax import relax
    from estimators.stein import stein
    from estimators.straight_through import straight_through
    from estimators.unordered import unordered
    from transforms.analyses.primitives import register_primitive
    from transforms.checker.alarm import strict
    from transforms.checker.findings import Finding
    from transforms.errors import (
        AddressError,
        KeyRequiredError,
        NonFiniteError,
        PPLError,
        RandomnessWarning,
        ShapeError,
        SoundnessError,
        SoundnessWarning,
        SupportError,
        UnsupportedError,
    )
    from transforms.estimation.estimator import (
        Baseline,
        Continued,
        Enumerated,
        Estimator,
        InPlace,
        LocalSite,
        magic_box,
    )

    from . import guides, plots
    from .fitting.batches import minibatches
    from .fitting.epochs import epochs
    from .fitting.fit import Fit, maximize, minimize
    from .fitting.play import Played, play
    from .fitting.rounds import Player
    from .imports.exported import to_numpyro
    from .imports.imported import Imported, from_numpyro
    from .inference.infer import infer
    from .inference.posterior import Posterior
    from .inference.psis import ess, k_hat
    from .inference.summary import Summary
    from .objectives.audit import Audit
    from .objectives.expectation import Expectation, expectation
    from .objectives.explain import Explanation
    from .objectives.nested import debias, mean
    from .objectives.signal import signal_to_noise
    from .objectives.tune import Tuned, tune
    from .objectives.variational import (
        chi2,
        dreg,
        elbo,
        entropy,
        forward_kl,
        iwelbo,
        kl,
        renyi,
        stl,
        wake_phi,
        wake_theta,
    )
    from .programs.advice import not_in_ppl as _not_in_ppl  # noqa: F401
    from .programs.annealed import ais
    from .programs.choices import factor, observe, sample
    from .programs.decoding import marginals, most_likely
    from .programs.detached import detach
    from .programs.enumeration import enumeration
    from .programs.forecast import forecast
    from .programs.generative import Generative, Trace
    from .programs.given import merge, seed
    from .programs.importance import importance
    from .programs.marginal import marginal, normalize
    from .programs.partly import partly
    from .programs.program import gen, with_estimators
    from .programs.scaled import scale
    from .programs.score_only import score_only
    from .programs.smc import smc
    from .programs.space import unconstrained
    from .programs.statements import continuous
    from .programs.target import Algorithm, Target
else:
    __getattr__, __dir__ = _attach(__name__)

__all__ = [
    "AddressError",
    "Algorithm",
    "Audit",
    "Baseline",
    "Continued",
    "Enumerated",
    "Estimator",
    "Expectation",
    "Explanation",
    "Finding",
    "Fit",
    "Generative",
    "Imported",
    "InPlace",
    "KeyRequiredError",
    "LocalSite",
    "NonFiniteError",
    "PPLError",
    "Played",
    "Player",
    "Posterior",
    "RandomnessWarning",
    "ShapeError",
    "SoundnessError",
    "SoundnessWarning",
    "Summary",
    "SupportError",
    "Target",
    "Trace",
    "Tuned",
    "UnsupportedError",
    "ais",
    "chi2",
    "continuous",
    "debias",
    "detach",
    "disarm",
    "dist",
    "dreg",
    "elbo",
    "entropy",
    "enum",
    "enumeration",
    "epochs",
    "ess",
    "expectation",
    "factor",
    "forecast",
    "forward_kl",
    "from_numpyro",
    "gen",
    "guides",
    "importance",
    "infer",
    "iwelbo",
    "k_hat",
    "kl",
    "learned",
    "magic_box",
    "marginal",
    "marginals",
    "maximize",
    "mean",
    "merge",
    "minibatches",
    "minimize",
    "most_likely",
    "moving_average",
    "mvd",
    "normalize",
    "observe",
    "partly",
    "play",
    "plots",
    "rebar",
    "register_primitive",
    "reinforce",
    "relax",
    "renyi",
    "reparam",
    "sample",
    "scale",
    "score_only",
    "seed",
    "signal_to_noise",
    "smc",
    "spa",
    "stein",
    "stl",
    "straight_through",
    "strict",
    "to_numpyro",
    "tune",
    "unconstrained",
    "unordered",
    "wake_phi",
    "wake_theta",
    "with_estimators",
]
