"""Trains a Flax model, by `gdfx.fit` and in a loop of one's own.

    python examples/with_flax.py
    python examples/with_flax.py --epochs 50

`nnx.split` takes the model apart into how it is built and its params, which are a pytree: gdfx trains this, and
`nnx.merge` puts the model together again. The data are scikit-learn's 1797 images of handwritten digits.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

import gdfx


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.output = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.output(nnx.relu(self.hidden(images)))


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="passes through the images")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs is {args.epochs}, expected at least 1")

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = np.asarray(x[order] / 16, np.float32), np.asarray(y[order], np.int32)
    train, test = (x[360:], y[360:]), (jnp.asarray(x[:360]), jnp.asarray(y[:360]))

    built, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits = nnx.merge(built, params)(batch[0])
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def accuracy(params: Any) -> jax.Array:
        return (nnx.merge(built, params)(test[0]).argmax(-1) == test[1]).mean()

    optimizer = gdfx.adamw(0.003)
    result = gdfx.fit(loss_fn, params, optimizer, train, epochs=args.epochs, batch_size=32)
    print(f"gdfx.fit: {result.message}, test accuracy {accuracy(result.params):.2%}")

    step = gdfx.make_step(loss_fn)
    state = gdfx.TrainState.create(optimizer, params)
    for epoch in range(args.epochs):
        rows = np.random.default_rng(epoch).permutation(len(train[0]))[: len(train[0]) // 32 * 32]
        for batch in rows.reshape(-1, 32):
            state, _ = step(optimizer, state, (train[0][batch], train[1][batch]))
    print(f"own loop: test accuracy {accuracy(state.params):.2%}")


if __name__ == "__main__":
    main()
