"""Programmable variational inference for JAX."""

from numpyro import distributions as dist

from transforms.estimator import Baseline, Estimator

from .expectation import Expectation, expectation
from .generative import (
    Generative,
    Trace,
    factor,
    gen,
    merge,
    observe,
    sample,
    seed,
    with_estimators,
)
from estimators.enumeration import enum
from estimators.pathwise import reparam
from estimators.reinforce import reinforce
from estimators.baselines import learned, moving_average
from .densities import *
from .objectives import *
from .densities import marginal, normalize, importance, enumeration, detach
from .objectives import elbo, iwelbo, renyi, chi2, forward_kl, wake_theta, wake_phi, stl, dreg
