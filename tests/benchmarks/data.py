"""The data of the workloads, in NumPy, so that every framework's process can read them."""

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist


def fashion(n: int) -> tuple[np.ndarray, np.ndarray, str]:
    """`n` images of Fashion-MNIST, float32 of shape `(n, 784)`, their labels, int32, and where they are from.

    Where the files are not installed: random numbers of these shapes, which take as long to train on.
    """
    try:
        images = _idx(FASHION / "train-images-idx3-ubyte.gz")
        labels = _idx(FASHION / "train-labels-idx1-ubyte.gz")
    except FileNotFoundError:
        rng = np.random.default_rng(0)
        return rng.random((n, 784), np.float32), rng.integers(0, 10, n, np.int32), "random"
    return images[:n].reshape(n, 784).astype(np.float32) / 255, labels[:n].astype(np.int32), "Fashion-MNIST"


def digits() -> tuple[np.ndarray, np.ndarray, str]:
    """The 1797 images of scikit-learn's digits, float32 of shape `(1797, 64)`, with labels and source as in `fashion`.

    Random numbers where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        rng = np.random.default_rng(0)
        return rng.random((1797, 64), np.float32), rng.integers(0, 10, 1797, np.int32), "random"
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    return (images / 16).astype(np.float32), labels.astype(np.int32), "scikit-learn's digits"


def leaf_shapes(model: str, quick: bool) -> list[tuple[int, ...]]:
    """The shapes of the params of `ten`, `thousand` or `gpt2`; with `quick` a few tiny ones of these kinds."""
    if model == "ten":  # 20 million params
        return [(20, 10) if quick else (2000, 1000)] * 10
    if model == "thousand":  # 3500 params each
        return [(5, 7), (35,)] * 10 if quick else [(50, 70), (3500,)] * 500
    # GPT-2 small, 124 million params; its embedding is also its output layer.
    width, depth, tokens, length = (8, 1, 50, 16) if quick else (768, 12, 50257, 1024)
    norm = [(width,), (width,)]
    attention = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    network = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(tokens, width), (length, width), *[*norm, *attention, *norm, *network] * depth, *norm]


def normal(shapes: Sequence[Sequence[int]], seed: int) -> Iterator[np.ndarray]:
    """Random numbers of these shapes, one after another, so that a caller need not hold them twice."""
    rng = np.random.default_rng(seed)
    for shape in shapes:
        yield rng.standard_normal(shape, np.float32)


def _idx(path: Path) -> np.ndarray:
    """The array in an IDX file of bytes: http://yann.lecun.com/exdb/mnist."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
