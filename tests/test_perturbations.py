import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from gdfx.perturbations import Gumbel, Normal, make_perturbed_fun

pytestmark = pytest.mark.numbers

KEY = jax.random.key(0)
NOISES = [
    (Gumbel(), optax.perturbations.Gumbel(), scipy.stats.gumbel_r),
    (Normal(), optax.perturbations.Normal(), scipy.stats.norm),
]


def first(x):
    """The largest as a one-hot vector: constant almost everywhere."""
    # Not x == x.max(): a compiler may round the two sides differently.
    return jax.nn.one_hot(x.argmax(), x.size, dtype=x.dtype)


@pytest.mark.parametrize(("noise", "theirs", "exact"), NOISES)
def test_noise(noise, theirs, exact):
    z = noise.sample(KEY, (40000,))
    np.testing.assert_array_equal(z, theirs.sample(KEY, (40000,)))
    assert scipy.stats.kstest(np.asarray(z), exact.cdf).pvalue > 0.01
    x = jnp.linspace(-3, 6, 10)
    np.testing.assert_allclose(noise.log_prob(x), exact.logpdf(x), rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(lambda x: noise.log_prob(x).sum())(x), jax.grad(lambda x: theirs.log_prob(x).sum())(x), rtol=1e-5
    )
    assert noise.sample(KEY, (2, 3), jnp.bfloat16).dtype == jnp.bfloat16
    assert noise == type(noise)()
    assert hash(noise) == hash(type(noise)())


@pytest.mark.parametrize(("noise", "theirs", "baseline"), [(*NOISES[0][:2], True), (*NOISES[1][:2], False)])
def test_agrees_with_optax_to_the_second_derivative(x64, noise, theirs, baseline):
    def f(x):
        return {"argmax": first(x["a"]), "product": jnp.sign(x["a"]).sum() * x["b"] ** 3}

    x = {"a": jnp.array([1.0, 0.8, 0.1]), "b": jnp.array([[0.3, -0.2]])}
    results = []
    for make, n in ((make_perturbed_fun, noise), (optax.perturbations.make_perturbed_fun, theirs)):
        smooth = make(f, 50, 0.4, n, baseline)
        loss = lambda x, g=smooth: (g(KEY, x)["argmax"] ** 2).sum() + jnp.sin(g(KEY, x)["product"]).sum()
        results.append(jax.jit(lambda x, g=smooth, loss=loss: (g(KEY, x), jax.grad(loss)(x), jax.hessian(loss)(x)))(x))
    jax.tree.map(lambda y, z: np.testing.assert_allclose(y, z, rtol=1e-9, atol=1e-9), *results)


def test_argmax_with_gumbel_noise_is_softmax():
    x = jnp.array([1.0, 0.8, 0.1])
    smooth = make_perturbed_fun(first, 40000, 0.5)
    np.testing.assert_allclose(smooth(KEY, x), jax.nn.softmax(x / 0.5), atol=0.01)
    exact = jax.jacobian(lambda x: jax.nn.softmax(x / 0.5))
    np.testing.assert_allclose(jax.jacobian(smooth, 1)(KEY, x), exact(x), atol=0.03)


@pytest.mark.parametrize("baseline", [True, False])
def test_derivatives_of_a_smoothed_square_are_unbiased(baseline):
    # The mean of (x + sigma z)^2 over normal z is x^2 + sigma^2.
    def smoothed(x, sigma):
        return make_perturbed_fun(lambda x: x**2, 40000, sigma, Normal(), baseline)(KEY, x)

    x, sigma = jnp.float32(0.7), jnp.float32(0.5)
    value, (dx, dsigma) = jax.jit(jax.value_and_grad(smoothed, (0, 1)))(x, sigma)
    np.testing.assert_allclose(value, 0.49 + 0.25, atol=0.02)
    np.testing.assert_allclose(dx, 1.4, atol=0.05)
    np.testing.assert_allclose(dsigma, 1.0, atol=0.06)
    np.testing.assert_allclose(jax.grad(jax.grad(smoothed))(x, sigma), 2.0, atol=0.3)


def test_small_noise_on_large_inputs_keeps_its_gradient():
    smooth = make_perturbed_fun(lambda x: x.sum(), 20000, 1e-4, Normal())
    slope = jax.grad(smooth, 1)(KEY, jnp.array([100.0, -3.0]))
    with jax.enable_x64(True):
        wide = jax.grad(smooth, 1)(KEY, jnp.array([100.0, -3.0], jnp.float64))
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(wide, [1, 1], atol=0.05)


@pytest.mark.parametrize("f", [lambda x: x.argmax(), lambda x: x > 0, lambda x: x.astype(jnp.bfloat16)])
def test_outputs_that_are_no_float32_are_averaged_in_float32(f):
    smooth = make_perturbed_fun(f, 100)
    y = smooth(KEY, jnp.array([0.0, 0.1, -0.1]))
    assert y.dtype == jnp.float32
    assert np.isfinite(jax.jacobian(smooth, 1)(KEY, jnp.zeros(3))).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    seen = []

    def f(x):
        seen.append(x.dtype)
        return first(x)

    x = jnp.array([1.0, 0.5], dtype)
    smooth = make_perturbed_fun(f, 2000, 0.5)
    wide = jax.jacobian(smooth, 1)(KEY, x.astype(jnp.float32))
    assert smooth(KEY, x).dtype == jnp.float32
    assert set(seen) == {jnp.dtype(dtype), jnp.dtype(jnp.float32)}
    slope = jax.jacobian(smooth, 1)(KEY, x)
    assert slope.dtype == dtype
    np.testing.assert_allclose(slope.astype(jnp.float32), wide, atol=0.05)


def test_vmap_is_a_loop():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    keys = jax.random.split(KEY, 3)
    smooth = jax.jit(make_perturbed_fun(first, 20))
    looped = jnp.stack([smooth(*pair) for pair in zip(keys, x, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(smooth))(keys, x), looped, rtol=1e-5)


def test_errors():
    for sigma in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="sigma must be positive"):
            make_perturbed_fun(first, sigma=sigma)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        make_perturbed_fun(first, 0)
    with pytest.raises(TypeError, match="num_samples must be an int"):
        make_perturbed_fun(first, 10.0)
    with pytest.raises(TypeError, match=r"x\['a'\] must be floating point"):
        make_perturbed_fun(lambda x: x["a"], 10)(KEY, {"a": jnp.arange(3)})
