"""Trains an Equinox model, by `gdfx.fit` and in a loop of one's own.

    python examples/with_equinox.py
    python examples/with_equinox.py --epochs 50

An Equinox model is a pytree of arrays and of other things, such as activation functions: `eqx.partition` takes out the
arrays, which gdfx trains, and `eqx.combine` puts them back. The data are scikit-learn's 1797 images of handwritten
digits.
"""

import argparse
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import gdfx


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

    model = eqx.nn.MLP(64, 10, width_size=64, depth=2, key=jax.random.key(0))
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def logits(params: Any, images: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(params, rest))(images)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits(params, batch[0]), batch[1]).mean()

    def accuracy(params: Any) -> jax.Array:
        return (logits(params, test[0]).argmax(-1) == test[1]).mean()

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
