import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import gdfx
from gdfx import losses, models


def shapes(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


def test_mlp_shapes():
    init, apply = models.mlp([4, 8, 3])
    params = jax.eval_shape(init, jax.random.key(0))
    assert shapes(params) == {
        "['layer_0']['bias']": (8,),
        "['layer_0']['kernel']": (4, 8),
        "['layer_1']['bias']": (3,),
        "['layer_1']['kernel']": (8, 3),
    }
    for batch in ((), (5,), (2, 5), (0,)):
        assert jax.eval_shape(apply, params, jnp.ones((*batch, 4))).shape == (*batch, 3)


def test_mlp_is_its_formula():
    model = models.mlp([4, 8, 8, 3], jnp.tanh, bias_scale=1.0)
    p = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 4))
    h = np.asarray(x)
    for i in range(3):
        h = h @ np.asarray(p[f"layer_{i}"]["kernel"]) + np.asarray(p[f"layer_{i}"]["bias"])
        h = np.tanh(h) if i < 2 else h
    np.testing.assert_allclose(jax.jit(model.apply)(p, x), h, rtol=1e-5, atol=1e-5)


def test_mlp_of_many_layers_keeps_their_order():
    model = models.mlp(range(1, 14))  # "layer_10" sorts before "layer_2"
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.eval_shape(model.apply, params, jnp.ones((2, 1))).shape == (2, 13)


def test_cnn_shapes():
    init, apply = models.cnn((9, 8, 3), channels=(4, 6), classes=5)
    params = jax.eval_shape(init, jax.random.key(0))
    assert shapes(params) == {
        "['conv_0']['bias']": (4,),
        "['conv_0']['kernel']": (3, 3, 3, 4),
        "['conv_1']['bias']": (6,),
        "['conv_1']['kernel']": (3, 3, 4, 6),
        "['dense']['bias']": (5,),
        "['dense']['kernel']": (2 * 2 * 6, 5),
    }
    for batch in ((), (7,), (2, 7), (0,)):
        assert jax.eval_shape(apply, params, jnp.ones((*batch, 9, 8, 3))).shape == (*batch, 5)
    linear = models.cnn((2, 2, 1), channels=())
    params = jax.eval_shape(linear.init, jax.random.key(0))
    assert jax.eval_shape(linear.apply, params, jnp.ones((3, 2, 2, 1))).shape == (3, 10)


def test_cnn_is_its_formula():
    model = models.cnn((5, 4, 2), channels=(3,), classes=2, bias_scale=1.0)
    p = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 2)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    h = np.einsum("nhwiab,abio->nhwo", windows, p["conv_0"]["kernel"]) + p["conv_0"]["bias"]
    h = np.maximum(h, 0)[:, :4]  # the odd row is dropped
    h = np.max([h[:, i::2, j::2] for i, j in itertools.product((0, 1), repeat=2)], axis=0)
    expected = h.reshape(2, -1) @ p["dense"]["kernel"] + p["dense"]["bias"]
    np.testing.assert_allclose(model.apply(p, jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


def test_initial_scale():
    key = jax.random.key(0)
    he = models.mlp([200, 300, 400, 100])
    glorot = models.mlp([200, 300, 400, 100], jnp.tanh)
    for model, gains in ((he, (2 / 200, 2 / 300)), (glorot, (2 / 500, 2 / 700))):
        params = jax.jit(model.init)(key)
        for i, variance in enumerate((*gains, 2 / 500)):  # the output layer is linear
            kernel, bias = params[f"layer_{i}"]["kernel"], params[f"layer_{i}"]["bias"]
            np.testing.assert_allclose(kernel.var(), variance, rtol=0.03)
            np.testing.assert_allclose(kernel.mean(), 0, atol=4 * (variance / kernel.size) ** 0.5)
            assert not bias.any()
    conv = jax.jit(models.cnn((8, 8, 16), channels=(64,)).init)(key)["conv_0"]["kernel"]
    np.testing.assert_allclose(conv.var(), 2 / (9 * 16), rtol=0.05)
    biased = jax.jit(models.mlp([2, 5000, 1], bias_scale=0.1).init)(key)
    np.testing.assert_allclose(biased["layer_0"]["bias"].std(), 0.1, rtol=0.05)


def test_activations_keep_their_scale_through_depth():
    h = jnp.asarray(np.random.default_rng(0).normal(size=(100, 512)), jnp.float32)
    params = jax.jit(models.mlp([512] * 7).init)(jax.random.key(0))
    for i in range(6):
        h = jax.nn.relu(h @ params[f"layer_{i}"]["kernel"])
    assert 0.4 < jnp.square(h).mean() < 2.5  # without the factor 2, it would be near 1 / 64


def test_dtypes():
    x32 = jnp.ones((2, 8, 8, 1))
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        model = models.cnn((8, 8, 1), channels=(4,), dtype=dtype, bias_scale=0.1)
        params = jax.jit(model.init)(jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        for x in (x32, x32.astype(jnp.bfloat16)):
            out = jax.jit(model.apply)(params, x)
            assert out.dtype == dtype
            assert np.isfinite(out.astype(jnp.float32)).all()
    with jax.enable_x64(True):
        model = models.mlp([4, 3, 2], dtype=jnp.float64)
        params = model.init(jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float64)}
        assert model.apply(params, jnp.ones((2, 4), jnp.float32)).dtype == jnp.float64


@pytest.mark.parametrize(
    ("model", "shape"), [(models.mlp([6, 8, 3]), (6,)), (models.cnn((8, 8, 1), (4, 4)), (8, 8, 1))]
)
def test_gradients_keys_and_transformations(model, shape):
    x = jax.random.normal(jax.random.key(1), (16, *shape))
    params = jax.jit(model.init)(jax.random.key(0))
    grads = jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, x)).mean()))(params)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all(), path
        assert np.any(g), path

    keys = jax.random.split(jax.random.key(2), 3)
    member = jax.jit(lambda key: model.apply(model.init(key), x))
    out = jax.jit(jax.vmap(member))(keys)
    for i, key in enumerate(keys):
        np.testing.assert_allclose(out[i], member(key), rtol=1e-4, atol=1e-5)
    assert not np.allclose(out[0], out[1])
    first = [v["kernel"].ravel()[:4] for v in params.values()]
    assert not any(np.allclose(a, b) for a, b in itertools.combinations(first, 2))
    legacy = jax.random.PRNGKey(0)
    assert shapes(jax.eval_shape(model.init, legacy)) == shapes(params)


BUILDS = [
    (ValueError, lambda: models.mlp([4]), r"sizes must hold .* inputs and the outputs, got \(4,\)"),
    (ValueError, lambda: models.mlp([4, 0, 2]), r"sizes must be at least 1, got \[4, 0, 2\]"),
    (TypeError, lambda: models.mlp([4, 2.0]), r"sizes must be a sequence of ints, got \[4, 2.0\]"),
    (TypeError, lambda: models.mlp([4, True]), "sizes must be a sequence of ints"),
    (TypeError, lambda: models.mlp(4), "sizes must be a sequence of ints, got 4"),
    (TypeError, lambda: models.mlp([4, 2], "relu"), "activation must be a function .* 'relu'"),
    (TypeError, lambda: models.mlp([4, 2], dtype=int), "dtype must be a floating-point type"),
    (ValueError, lambda: models.mlp([4, 2], bias_scale=-1), "bias_scale must be at least 0"),
    (ValueError, lambda: models.cnn((28, 28)), r"must be \(height, width, channels\), got"),
    (ValueError, lambda: models.cnn((3, 8, 1)), r"\(3, 8, 1\) is too small to be halved 2 times"),
    (ValueError, lambda: models.cnn((8, 8, 1), (0,)), r"channels must be at least 1, got \(0,\)"),
    (ValueError, lambda: models.cnn((8, 8, 1), classes=0), r"\(classes,\) must be at least 1"),
    (ValueError, lambda: models.transformer(0, 8, 2, 2, 7), r"\(vocabulary,\) must be at least 1, got \(0,\)"),
    (ValueError, lambda: models.transformer(9, 8, 2, 2, -1), r"\(length,\) must be at least 1"),
    (TypeError, lambda: models.transformer(9, 8, 2.0, 2, 7), r"\(depth,\) must be a sequence of ints"),
    (ValueError, lambda: models.transformer(9, 8, 2, 3, 7), r"width is 8, expected a multiple of 6, 2 \* heads"),
    (ValueError, lambda: models.transformer(9, 6, 2, 2, 7), "width is 6, expected a multiple of 4"),
    (TypeError, lambda: models.transformer(9, 8, 2, 2, 7, dtype=int), "dtype must be a floating-point type"),
]


@pytest.mark.parametrize(("error", "build", "message"), BUILDS)
def test_wrong_arguments_raise(error, build, message):
    with pytest.raises(error, match=message):
        build()


MLP, CNN = models.mlp([784, 2]), models.cnn((28, 28, 1))
INPUTS = [
    (MLP, (5, 783), r"\(..., 784\), found \(5, 783\): is this the input that the model"),
    (MLP, (5, 28, 28), r"\(..., 784\), found \(5, 28, 28\): reshape each example to \(784,\)"),
    (MLP, (), r"\(..., 784\), found \(\)"),
    (models.mlp([1, 2]), (5,), r"\(..., 1\), found \(5,\): the last axis is missing, x\[..., None"),
    (CNN, (5, 28, 28), r"\(..., 28, 28, 1\), found \(5, 28, 28\): the last axis is missing"),
    (CNN, (5, 784), r"\(..., 28, 28, 1\), found \(5, 784\): reshape each example"),
    (CNN, (5, 28, 28, 3), r"\(..., 28, 28, 1\), found \(5, 28, 28, 3\): is this the input"),
]


@pytest.mark.parametrize(("model", "shape", "message"), INPUTS)
def test_wrong_inputs_raise(model, shape, message):
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.apply, params, jnp.zeros(shape))
    with pytest.raises(TypeError, match=r"x must be floating point, got uint8: cast with x.astype"):
        jax.eval_shape(model.apply, params, jnp.zeros(shape, jnp.uint8))


def test_mlp_learns_xor():
    init, apply = models.mlp([2, 16, 1], jnp.tanh)
    x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = jnp.array([[0.0], [1.0], [1.0], [0.0]])

    def loss_fn(params):
        return losses.sigmoid_binary_cross_entropy(apply(params, x), y).mean()

    def step(params, _):
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss_fn)(params)), None

    params, _ = jax.jit(lambda key: jax.lax.scan(step, init(key), length=500))(jax.random.key(0))
    assert loss_fn(params) < 0.1
    np.testing.assert_array_equal(apply(params, x) > 0, y == 1)


def test_cnn_learns_digits():
    images, labels = load_digits(return_X_y=True)
    x = np.float32(images.reshape(-1, 8, 8, 1) / 16)
    init, apply = models.cnn((8, 8, 1), channels=(8, 16))

    def loss_fn(params, x, y):
        return losses.softmax_cross_entropy_with_integer_labels(apply(params, x), y).mean()

    def step(params, batch):
        grads = jax.grad(loss_fn)(params, *batch)
        return jax.tree.map(lambda p, g: p - 0.2 * g, params, grads), None

    @jax.jit
    def train(key, x, y):
        batches = x.reshape(16, 64, 8, 8, 1), y.reshape(16, 64)

        def epoch(params, _):
            return jax.lax.scan(step, params, batches)

        return jax.lax.scan(epoch, init(key), length=8)[0]

    params = train(jax.random.key(0), x[:1024], labels[:1024])
    assert (jax.jit(apply)(params, x[1024:]).argmax(-1) == labels[1024:]).mean() > 0.85


TOKENS = jax.random.randint(jax.random.key(5), (2, 7), 0, 11)


def in_numpy(params, tokens, heads):
    """A transcription of the transformer for one sequence of tokens, position by position and head by head."""
    normalize = lambda x: x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6)
    layers = params["layers"]
    depth, width, _ = layers["query"].shape
    size = width // heads

    def turn(x, position):
        out = np.empty(size)
        for i in range(size // 2):
            angle = position / 10_000 ** (2 * i / size)
            out[i] = x[i] * np.cos(angle) - x[i + size // 2] * np.sin(angle)
            out[i + size // 2] = x[i] * np.sin(angle) + x[i + size // 2] * np.cos(angle)
        return out

    x = params["embedding"][tokens]
    for layer in range(depth):
        query, key, value = (normalize(x) @ layers[name][layer] for name in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for t, head in itertools.product(range(len(tokens)), range(heads)):
            part = slice(head * size, (head + 1) * size)
            scores = [turn(query[t, part], t) @ turn(key[s, part], s) / np.sqrt(size) for s in range(t + 1)]
            weights = np.exp(scores) / np.sum(np.exp(scores))
            mixed[t, part] = weights @ value[: t + 1, part]
        x = x + mixed @ layers["output"][layer]
        h = normalize(x) @ layers["up"][layer]
        gelu = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + gelu @ layers["down"][layer]
    return (normalize(x) * params["norm"]["scale"]) @ params["embedding"].T


@pytest.mark.parametrize("depth", [2, 13])  # of which the second runs as a loop
def test_transformer_is_its_formula(depth, x64):
    model = models.transformer(11, 12, depth, 3, 7, dtype=jnp.float64)
    params = jax.jit(model.init)(jax.random.key(0))
    noise = lambda p: p + 0.3 * np.random.default_rng(p.size).normal(size=p.shape)
    params = jax.tree.map(lambda p: noise(np.asarray(p)), params)
    out = jax.jit(model.apply)(params, TOKENS)
    assert out.dtype == jnp.float64
    for logits, tokens in zip(out, TOKENS, strict=True):
        np.testing.assert_allclose(logits, in_numpy(params, np.asarray(tokens), 3), rtol=1e-10, atol=1e-10)


def test_transformer_shapes_and_roles():
    init, apply = models.transformer(11, 8, 3, 2, 7)
    params = jax.eval_shape(init, jax.random.key(0))
    table = {path: (shape, role) for path, shape, role in gdfx.roles(params).rows}
    assert table == {
        "embedding": ((11, 8), "embedding"),
        "layers/query": ((3, 8, 8), "matrix"),
        "layers/key": ((3, 8, 8), "matrix"),
        "layers/value": ((3, 8, 8), "matrix"),
        "layers/output": ((3, 8, 8), "matrix"),
        "layers/up": ((3, 8, 32), "matrix"),
        "layers/down": ((3, 32, 8), "matrix"),
        "norm/scale": ((8,), "norm"),
    }
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, decays in jax.tree_util.tree_leaves_with_path(gdfx.matrices(params))
        if decays
    }
    assert decayed == table.keys() - {"norm/scale"}
    for batch, n in (((), 7), ((5,), 1), ((2, 5), 3), ((0,), 7)):
        for dtype in (jnp.int32, jnp.uint8):
            out = jax.eval_shape(apply, params, jnp.zeros((*batch, n), dtype))
            assert (out.shape, out.dtype) == ((*batch, n, 11), jnp.float32)


def test_transformer_starts_with_small_logits():
    model = models.transformer(50, 128, 3, 4, 32)
    params = jax.jit(model.init)(jax.random.key(0))
    inputs = {"query": 128, "key": 128, "value": 128, "output": 6 * 128, "up": 128, "down": 6 * 512}
    for name, kernel in params["layers"].items():
        assert kernel.std() == pytest.approx(inputs[name] ** -0.5, rel=0.02)
    assert params["embedding"].std() == pytest.approx(0.02, rel=0.05)
    assert (params["norm"]["scale"] == 1).all()
    logits = jax.jit(model.apply)(params, jax.random.randint(jax.random.key(1), (4, 32), 0, 50))
    assert 0.1 < logits.std() < 0.4


def test_transformer_looks_back_only_and_anywhere():
    model = models.transformer(11, 8, 1, 2, 7)
    params = jax.jit(model.init)(jax.random.key(0))
    apply = jax.jit(model.apply)
    before = np.asarray(apply(params, TOKENS))
    for t in range(7):
        tokens = np.array(TOKENS)
        tokens[:, t] = (tokens[:, t] + 1) % 11
        after = np.asarray(apply(params, tokens))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(-1).all()
    np.testing.assert_allclose(apply(params, TOKENS[:, :4]), before[:, :4], rtol=1e-5, atol=1e-6)
    for wrong in (-1, 11):  # does not stand for another token
        tokens = np.array(TOKENS)
        tokens[0, 3] = wrong
        after = np.asarray(apply(params, tokens))
        assert np.isnan(after[0]).all()
        np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_transformer_gradients_dtypes_and_vmap(dtype):
    model = models.transformer(11, 8, 1, 2, 7, dtype=dtype)
    params = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(0), 2))
    loss = lambda p: losses.softmax_cross_entropy_with_integer_labels(model.apply(p, TOKENS), TOKENS).mean()
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(loss)))(params)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert g.dtype == dtype, path
        g = np.asarray(g.astype(jnp.float32))
        assert np.isfinite(g).all(), path
        assert g.reshape(2, -1).any(-1).all(), path
    assert values[0] != values[1]
    member = jax.tree.map(lambda p: p[0], params)
    np.testing.assert_allclose(values[0], jax.jit(loss)(member), rtol=1e-5 if dtype == jnp.float32 else 1e-2)


TOKENS_OF = [
    (ValueError, jnp.zeros((2, 8), int), r"n from 1 to 7, found \(2, 8\): .* only to be predicted, tokens\[..., :-1\]"),
    (ValueError, jnp.zeros((2, 9), int), r"n from 1 to 7, found \(2, 9\): is this the length"),
    (ValueError, jnp.zeros((2, 0), int), r"found \(2, 0\)"),
    (ValueError, jnp.int32(3), r"found \(\)"),
    (TypeError, jnp.zeros((2, 7)), "tokens must be integers, got float32: give the indices"),
    (TypeError, jnp.zeros((2, 7), bool), "tokens must be integers, got bool"),
]


@pytest.mark.parametrize(("error", "tokens", "message"), TOKENS_OF)
def test_wrong_tokens_raise(error, tokens, message):
    model = models.transformer(11, 8, 2, 2, 7)
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(error, match=message):
        jax.eval_shape(model.apply, params, tokens)
