import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import token_cross_entropy as eager_cross_entropy

token_cross_entropy = jax.jit(eager_cross_entropy, static_argnames="z_loss")


@pytest.fixture
def logits():
    return 4 * jax.random.normal(jax.random.key(0), (2, 5, 7))


TARGETS = jnp.array([[0, 1, 2, 3, 4], [5, 6, 0, 1, 2]])


def test_equals_optax_on_plain_labels(logits):
    objective, aux = token_cross_entropy(logits, TARGETS)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, TARGETS)
    np.testing.assert_allclose(objective, expected.mean(), rtol=1e-6)
    assert aux["loss"] == objective and aux["weight"] == 10


def test_gradient_is_the_softmax_minus_the_label(logits):
    gradient = jax.grad(lambda x: token_cross_entropy(x, TARGETS)[0])(logits)
    expected = (jax.nn.softmax(logits) - jax.nn.one_hot(TARGETS, 7)) / 10
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_masked_and_negative_labels_change_neither_value_nor_gradient(logits):
    weights = jnp.array([[1, 1, 0, 0, 1], [1, 0, 1, 1, 1]], jnp.float32)
    hidden = jnp.where(weights > 0, TARGETS, -100)

    def run(logits, targets, weights=None):
        return token_cross_entropy(logits, targets, weights, z_loss=0.1)

    grad = jax.value_and_grad(run, has_aux=True)
    (a, aux_a), grad_a = grad(logits, TARGETS, weights)
    (b, aux_b), grad_b = grad(logits, hidden)
    other = jnp.where(weights[..., None] > 0, logits, 3.0)
    (c, _), _ = grad(other, TARGETS, weights)
    assert a == b == c and aux_a == aux_b and aux_a["weight"] == 7
    np.testing.assert_array_equal(grad_a, grad_b)
    np.testing.assert_array_equal(grad_a[weights == 0], 0.0)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_is_a_mean_for_weights_of_any_size(logits, scale):
    weights = scale * jnp.arange(10, dtype=jnp.float32).reshape(2, 5)
    objective, aux = token_cross_entropy(logits, TARGETS, weights)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, TARGETS)
    expected = np.average(each, weights=weights)
    np.testing.assert_allclose(objective, expected, rtol=1e-6)
    np.testing.assert_allclose(aux["weight"], weights.sum(), rtol=1e-6)


def test_no_weight_at_all_gives_zero_and_no_gradient(logits):
    targets = jnp.full((2, 5), -1)
    value, gradient = jax.value_and_grad(
        lambda x: token_cross_entropy(x, targets, z_loss=0.1)[0]
    )(logits)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0.0)


def test_a_label_outside_the_vocabulary_is_not_silent(logits):
    targets = TARGETS.at[0, 1].set(7)
    assert np.isnan(token_cross_entropy(logits, targets)[0])
    weights = jnp.ones((2, 5)).at[0, 1].set(0.0)
    masked, _ = token_cross_entropy(logits, targets, weights)
    assert masked == token_cross_entropy(logits, TARGETS, weights)[0]


def test_z_loss_is_the_mean_squared_logsumexp(logits):
    objective, aux = token_cross_entropy(logits, TARGETS, z_loss=0.5)
    expected = 0.5 * np.mean(np.square(jax.nn.logsumexp(logits, axis=-1)))
    np.testing.assert_allclose(objective - aux["loss"], expected, rtol=1e-5)


def test_counts_hits_by_weight(logits):
    weights = jnp.arange(10, dtype=jnp.float32).reshape(2, 5)
    _, aux = token_cross_entropy(logits, TARGETS, weights)
    expected = jnp.sum(weights * (jnp.argmax(logits, -1) == TARGETS))
    assert aux["correct"] == expected > 0


def test_half_precision_logits_give_a_float32_loss_and_large_ones_stay_finite():
    logits = jnp.array([[1e4, -1e4, 0.0]], jnp.bfloat16)
    objective, aux = token_cross_entropy(logits, jnp.array([1]))
    assert objective.dtype == jnp.float32
    assert all(value.dtype == jnp.float32 for value in aux.values())
    np.testing.assert_allclose(objective, 2e4, rtol=1e-2)


def test_second_derivatives_exist(logits):
    def loss(x):
        return token_cross_entropy(x, TARGETS)[0]

    tangent = jnp.ones_like(logits).at[..., 0].set(2.0)
    _, product = jax.jvp(jax.grad(loss), (logits,), (tangent,))
    probs = jax.nn.softmax(logits)
    mean = jnp.sum(probs * tangent, axis=-1, keepdims=True)
    np.testing.assert_allclose(product, probs * (tangent - mean) / 10, atol=1e-7)
