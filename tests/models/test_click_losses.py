import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.click_losses import ClickLoss, click_loss

LOGITS = np.asarray([-3.0, -0.2, 0.0, 0.5, 2.0, 6.0])
LABELS = np.asarray([1.0, 0.0, 0.25, 1.0, 0.0, 1.0])


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def cross_entropy(z, y):
    return -y * np.log(sigmoid(z)) - (1 - y) * np.log(sigmoid(-z))


def per_sample(loss, z, y):
    return jax.jit(loss.per_sample)(jnp.float32(z), jnp.float32(y))


def gradient(loss, z, y):
    each = jax.vmap(jax.grad(loss.per_sample))
    return jax.jit(each)(jnp.float32(z), jnp.float32(y))


def test_cross_entropy_and_its_gradient():
    np.testing.assert_allclose(
        per_sample(ClickLoss(), LOGITS, LABELS),
        cross_entropy(LOGITS, LABELS),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        gradient(ClickLoss(), LOGITS, LABELS),
        sigmoid(LOGITS) - LABELS,
        rtol=1e-5,
        atol=1e-7,
    )


def test_cross_entropy_is_exact_at_any_logit():
    z = np.asarray([1e4, -1e4, 1e4, -1e4, 100.0, -100.0])
    y = np.asarray([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    wrong = np.asarray([1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(per_sample(ClickLoss(), z, y), wrong * np.abs(z))
    np.testing.assert_array_equal(gradient(ClickLoss(), z, y), wrong * np.sign(z))


def test_the_loss_of_a_sure_and_right_logit_keeps_its_digits():
    z, y = [30.0, -30.0, 20.0], [1.0, 0.0, 1.0]
    expected = np.exp([-30.0, -30.0, -20.0])
    np.testing.assert_allclose(per_sample(ClickLoss(), z, y), expected, rtol=1e-5)
    slope = np.asarray([-1, 1, -1]) * expected
    np.testing.assert_allclose(gradient(ClickLoss(), z, y), slope, rtol=1e-5)


def test_where_logarithms_of_the_probability_go_wrong():
    """What the module says of the original implementation's form."""

    def of_probability(z):
        p = jax.nn.sigmoid(jnp.float32(z))
        return float(-jnp.maximum(jnp.log(1 - p), -100.0))

    for z in (4.0, 8.0, 12.0):
        error = abs(of_probability(z) - float(per_sample(ClickLoss(), z, 0.0)))
        assert error < 6e-8 * np.exp(z) + 1e-6
    assert of_probability(18.0) == 100.0
    assert per_sample(ClickLoss(), 18.0, 0.0) == pytest.approx(18.0)


def test_squared_error_of_the_probability():
    loss, p = ClickLoss("mse"), sigmoid(LOGITS)
    np.testing.assert_allclose(
        per_sample(loss, LOGITS, LABELS), (p - LABELS) ** 2, rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(
        gradient(loss, LOGITS, LABELS),
        2 * (p - LABELS) * p * (1 - p),
        rtol=1e-5,
        atol=1e-7,
    )


def test_class_weights_multiply_and_the_mean_is_over_samples():
    loss = ClickLoss("wbce", (0.5, 2.0))
    factor = np.where(LABELS == 1.0, 2.0, 0.5)  # labels below 1 are of class 0
    expected = factor * cross_entropy(LOGITS, LABELS)
    np.testing.assert_allclose(per_sample(loss, LOGITS, LABELS), expected, rtol=1e-5)
    mean, _ = click_loss(loss, jnp.float32(LOGITS), jnp.float32(LABELS), None)
    assert mean == pytest.approx(expected.mean(), rel=1e-5)
    assert mean.dtype == jnp.float32


@pytest.mark.parametrize("name", ["bce", "wbce", "mse"])
@pytest.mark.parametrize("threshold", [0.3, 0.01, 0.5, 0.7])
def test_clipped_probabilities(name, threshold):
    loss = ClickLoss(name, (1.0, 3.0), threshold)
    p = np.clip(sigmoid(LOGITS), threshold, 1 - threshold)  # low > high: the latter
    np.testing.assert_allclose(loss.probability(jnp.float32(LOGITS)), p, rtol=1e-6)
    expected = (p - LABELS) ** 2
    if name != "mse":
        expected = -LABELS * np.log(p) - (1 - LABELS) * np.log(1 - p)
    if name == "wbce":
        expected = np.where(LABELS == 1, 3.0, 1.0) * expected
    found = per_sample(loss, LOGITS, LABELS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    bites = (sigmoid(LOGITS) < threshold) | (sigmoid(LOGITS) > 1 - threshold)
    slopes = np.asarray(gradient(loss, LOGITS, LABELS))
    np.testing.assert_array_equal(slopes[bites], 0.0)
    if threshold < 0.5:
        plain = gradient(ClickLoss(name, (1.0, 3.0)), LOGITS, LABELS)
        np.testing.assert_allclose(slopes[~bites], plain[~bites], rtol=1e-6)


@pytest.mark.parametrize("name", ["bce", "mse"])
@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.5, 2.0])
def test_thresholds_outside_the_open_interval_do_nothing(name, threshold):
    loss = ClickLoss(name, threshold=threshold)
    assert not loss.clips
    np.testing.assert_array_equal(
        per_sample(loss, LOGITS, LABELS), per_sample(ClickLoss(name), LOGITS, LABELS)
    )


def test_a_tiny_threshold_stays_finite():
    # In float32, 1 - 1e-9 is 1, whose logarithm of the complement is infinite.
    loss = ClickLoss(threshold=1e-9)
    z, y = [50.0, -50.0, 50.0], [0.0, 1.0, 1.0]
    found = per_sample(loss, z, y)
    np.testing.assert_allclose(found, [20.723, 20.723, 0.0], rtol=1e-4, atol=1e-8)
    np.testing.assert_array_equal(gradient(loss, z, y), 0.0)


def test_the_mean_is_weighted_and_says_what_it_averaged():
    weights = jnp.float32([0.5, 2.0, 0.0, 1.0, 1.0, 0.25])
    z, y = jnp.float32(LOGITS), jnp.float32(LABELS)
    mean, aux = jax.jit(click_loss, static_argnums=0)(ClickLoss(), z, y, weights)
    expected = np.average(cross_entropy(LOGITS, LABELS), weights=weights)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    assert set(aux) == {"loss", "weight", "logits"}
    assert aux["loss"] == mean and aux["weight"] == 4.75
    np.testing.assert_array_equal(aux["logits"], z)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_samples_without_weight_change_nothing_whatever_they_hold(bad):
    weights = jnp.float32([1, 1, 0])
    y = jnp.float32([1, 0, 1])

    def mean(z):
        return click_loss(ClickLoss(), z, y, weights)[0]

    value, slope = jax.value_and_grad(mean)(jnp.float32([0.3, -1.0, bad]))
    plain, expected = jax.value_and_grad(mean)(jnp.float32([0.3, -1.0, 0.0]))
    assert value == plain and slope[2] == 0.0
    np.testing.assert_array_equal(slope, expected)


def test_no_weight_at_all_gives_zero():
    z = jnp.ones(3)
    mean, aux = click_loss(ClickLoss(), z, z, jnp.zeros(3))
    assert mean == 0.0 and aux["weight"] == 0.0


def test_what_diverges_is_not_hidden():
    mean, _ = click_loss(ClickLoss(), jnp.float32([np.nan, 0.0]), jnp.zeros(2), None)
    assert np.isnan(mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hinge",), "loss must be one of bce, wbce, mse, got 'hinge'"),
        (("wbce", (1.0,)), r"two finite numbers >= 0, got \(1.0,\)"),
        (("wbce", (1.0, -2.0)), r"two finite numbers >= 0, got \(1.0, -2.0\)"),
        (("wbce", (np.nan, 1.0)), r"two finite numbers >= 0, got \(nan, 1.0\)"),
        (("wbce", (np.inf, 1.0)), r"two finite numbers >= 0, got \(inf, 1.0\)"),
    ],
)
def test_bad_losses_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClickLoss(*arguments)
