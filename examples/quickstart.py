"""Trains one model: a small network that reads handwritten digits.

    python examples/quickstart.py
    python examples/quickstart.py --learning-rate 0.001 --epochs 50

The data are scikit-learn's 1797 images of 8 x 8 pixels, 1437 to train on and 360 to test on.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import gdfx


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a small network to read handwritten digits.")
    parser.add_argument("--learning-rate", type=float, default=0.003, help="of adam (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="passes through the images (default: %(default)s)")
    args = parser.parse_args()
    if not 0 < args.learning_rate < float("inf"):
        parser.error(f"--learning-rate is {args.learning_rate}, expected a positive, finite number")
    if args.epochs < 1:
        parser.error(f"--epochs is {args.epochs}, expected at least 1")

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order], jnp.int32)

    model = gdfx.models.mlp([64, 64, 64, 10])

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        logits = model.apply(params, images)
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    params = model.init(jax.random.key(0))
    optimizer = gdfx.adam(args.learning_rate)
    result = gdfx.fit(loss_fn, params, optimizer, (x[360:], y[360:]), epochs=args.epochs, batch_size=32)

    print(result)
    print(result.message)
    accuracy = jnp.mean(model.apply(result.params, x[:360]).argmax(-1) == y[:360])
    print(f"test accuracy: {accuracy:.2%}")


if __name__ == "__main__":
    main()
