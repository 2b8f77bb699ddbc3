"""Modules as parameters: trees of any class, with parts that are no arrays, like those of Flax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ppl
from ppl import dist

KEY = jax.random.key(0)
X, Y = jnp.arange(6.0).reshape(3, 2), jnp.array([1.0, 0.0, 2.0])


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass
class Variable:
    """An array and what it is, as ``nnx.Param``."""

    value: jax.Array
    kind: str

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("value"), self.value)], self.kind

    @classmethod
    def tree_unflatten(cls, kind, children):
        return cls(children[0], kind)


@jax.tree_util.register_pytree_with_keys_class
class Net:
    """A module whose attributes are its children, as ``nnx.Module``."""

    def __init__(self, weight, bias, activation):
        self.weight, self.bias, self.activation = weight, bias, activation

    def __call__(self, x):
        return self.activation(x @ self.weight.value + self.bias.value)

    def tree_flatten_with_keys(self):
        names = ["weight", "bias"]
        return [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in names], self.activation

    @classmethod
    def tree_unflatten(cls, activation, children):
        return cls(*children, activation)


@ppl.gen
def model(net):
    ppl.sample("y", dist.Normal(net(X), 0.5))


@ppl.expectation
def fitness(net):
    return model(net).log_density({"y": Y})


def exact(weight, bias):
    """The gradient of the log density, by hand."""
    slope = (Y - (X @ weight + bias)) / 0.25
    return X.T @ slope, slope.sum()


def test_a_module_is_fitted_and_is_one_again():
    net = Net(Variable(jnp.array([0.3, -0.2]), "weight"), Variable(jnp.array(0.1), "bias"), _same)
    fit = ppl.maximize(fitness, net, optax.sgd(0.01), key=KEY, steps=2, progress=False)
    weight, bias = net.weight.value, net.bias.value
    for _ in range(2):
        g, h = exact(weight, bias)
        weight, bias = weight + 0.01 * g, bias + 0.01 * h
    assert isinstance(fit.params, Net) and fit.params.activation is _same
    assert fit.params.weight.kind == "weight"
    np.testing.assert_allclose(fit.params.weight.value, weight, rtol=1e-5)
    np.testing.assert_allclose(fit.params.bias.value, bias, rtol=1e-5)
    gradient = fitness.grad(KEY, net)
    assert isinstance(gradient, Net)
    np.testing.assert_allclose(gradient.weight.value, exact(*_values(net))[0], rtol=1e-5)


def _same(x):
    return x


def _values(net):
    return net.weight.value, net.bias.value
