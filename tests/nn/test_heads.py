"""What stands before and after the layers, against formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.heads import Classifier, Detector, Head, Pooler
from lm.nn.params import abstract_parameters, bind, count_parameters
from lm.nn.positions import Table
from tests.nn.tiny import tiny

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 16))
TABLE = RNG.standard_normal((40, 16))


def encoder(**keys):
    keys = {"stack": "encoder", "activation": "gelu_tanh", "norm_eps": 0.1, **keys}
    return tiny({f"model.{key}": value for key, value in keys.items()}).model


def random(module):
    return jax.tree.map(
        lambda leaf: RNG.standard_normal(leaf.shape).astype(leaf.dtype), abstract_parameters(module)
    )


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def transformed(p, x):
    """gelu(x W + b), b if there is one."""
    return gelu(x @ p["transform_DM"] + p.get("transform_bias_M", 0))


def close(ours, expected):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


NAMES = {"none": "", "learned": "bias_V", "fixed": "fixed_bias_V"}


def logits(module, p):
    module = bind(module, p)
    return module.logits(module.prepared(jnp.float32(X)), module.columns(jnp.float32(TABLE)))


@pytest.mark.parametrize("bias", ["none", "learned", "fixed"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_a_matrix_and_perhaps_a_bias(bias, tied):
    module = Head(encoder(head_bias=bias, tied_embedding=tied))
    p = random(module)
    kernel = TABLE.T if tied else p["kernel_DV"]
    close(logits(module, p), X @ kernel + p.get(NAMES[bias], 0))
    assert (NAMES[bias] in p) == (bias != "none")


@pytest.mark.parametrize("biased", [True, False])
def test_a_transform_stands_before_the_matrix(biased):
    """BERT's: dense, activation, norm; with a bias if the feed-forward has one."""
    module = Head(encoder(head="transform", head_bias="learned", feedforward_bias=biased))
    p = random(module)
    h = transformed(p, X)
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 0.1)
    h = h * p["norm"]["scale_D"] + p["norm"]["bias_D"]
    close(logits(module, p), h @ TABLE.T + p["bias_V"])
    assert ("transform_bias_M" in p) == biased


def test_a_fixed_bias_is_no_parameter():
    learned, fixed = (Head(encoder(head_bias=bias)) for bias in ("learned", "fixed"))
    p = random(fixed)["fixed_bias_V"]

    def loss(p, module):
        p = {NAMES[module.config.head_bias]: p}
        return jnp.square(logits(module, p)).sum()

    assert (np.asarray(jax.grad(loss)(p, fixed)) == 0).all()
    assert (np.asarray(jax.grad(loss)(p, learned)) != 0).all()
    assert (count_parameters(fixed), count_parameters(fixed, buffers=True)) == (0, 40)
    assert count_parameters(learned) == 40


def test_the_pooler_reads_the_first_token():
    module = Pooler(encoder(feedforward_bias=False))  # its own bias is there all the same
    p = random(module)
    expected = np.tanh(X[:, :1] @ p["kernel_DM"] + p["bias_M"])
    close(bind(module, p)(jnp.float32(X)), expected)


def test_a_classifier_is_a_matrix_and_a_bias():
    module = Classifier(encoder(), 3)
    p = random(module)
    close(bind(module, p)(jnp.float32(X)), X @ p["kernel_DC"] + p["bias_C"])


def test_the_detector_has_a_logit_for_each_token():
    module = Detector(encoder(feedforward_bias=False))
    p = random(module)
    expected = transformed(p, X) @ p["classifier"]["kernel_DC"] + p["classifier"]["bias_C"]
    assert expected.shape == (2, 5, 1)
    close(bind(module, p)(jnp.float32(X)), expected)


def test_logits_of_classes_are_never_in_low_precision():
    for module in (Classifier(encoder(), 2), Detector(encoder())):
        assert bind(module, random(module))(jnp.bfloat16(X)).dtype == jnp.float32


def test_token_types_are_rows_of_a_table():
    module = Table(encoder(token_types=3), "Y", 3, "classes")
    p = random(module)
    types = np.array([[0, 2, 1], [1, 1, 0]])
    np.testing.assert_array_equal(bind(module, p)(types), p["table_YD"][types])
