"""How far does a trained network help with few images? One that reads digits learns to tell the odd from the even.

    python examples/finetune.py
    python examples/finetune.py --images 5 --epochs 100

The data are scikit-learn's 1797 images of handwritten digits. A network learns to read them from 1000 images; then it
gets a new head, that is to tell odd from even digits, and a few other images to learn this from, and is tested on the
rest. Three ways: from scratch; with the trained body frozen, which takes no memory in the optimizer; and with the body
trained along, the slower the further from the head, and averaged params evaluated. `explain` tells what each leaf gets.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import gdfx


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=int, default=20, help="images to learn odd and even from, 2 to 300")
    parser.add_argument("--epochs", type=int, default=200, help="passes through these images")
    parser.add_argument("--seeds", type=int, default=5, help="choices of images and heads to average over")
    args = parser.parse_args()
    for flag, low, high in [("images", 2, 300), ("epochs", 1, 10_000), ("seeds", 1, 100)]:
        value = getattr(args, flag)
        if not low <= value <= high:
            parser.error(f"--{flag} is {value}, expected {low} to {high}")
    return args


BODY = [64, 128, 64]  # pixels, and the widths of the layers to keep
READER, PARITY = gdfx.models.mlp([*BODY, 10]), gdfx.models.mlp([*BODY, 2])


def loss_fn(params: Any, batch: Any) -> jax.Array:
    model = READER if params["layer_2"]["bias"].shape == (10,) else PARITY
    logits = model.apply(params, batch[0])
    return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


@jax.jit
def accuracy(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return (PARITY.apply(params, x).argmax(-1) == y).mean()


def ways(params: Any) -> dict[str, Any]:
    """The optimizers by name."""
    adam = gdfx.adamw(3e-3)
    rates = gdfx.factors.by_layer(params, 0.3, ["layer_0", "layer_1", "layer_2"])
    return {
        "from scratch": adam,
        "frozen body": gdfx.freeze(adam, "layer_[01]"),
        "layer-wise rates": gdfx.chain(adam, gdfx.scale_by_factors(rates), gdfx.ema_params(0.95)),
    }


def main() -> None:
    args = parse_args()
    x, y = load_digits(return_X_y=True)
    x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y, jnp.int32)
    order = np.random.default_rng(0).permutation(len(x))
    many, rest = order[:1000], order[1000:]

    start = READER.init(jax.random.key(0))
    reader = gdfx.fit(loss_fn, start, gdfx.adamw(3e-3), (x[many], y[many]), epochs=30, batch_size=32, progress=False)
    print(f"{reader.message}, loss {reader.history['loss'][-1]:.4f}\n")

    rows = []
    for name, optimizer in ways(start).items():
        scores = []
        for seed in range(args.seeds):
            chosen = np.random.default_rng(seed).permutation(rest)
            few, others = chosen[: args.images], chosen[args.images :]
            params = PARITY.init(jax.random.key(seed + 1))
            if name != "from scratch":
                params = {**reader.params, "layer_2": params["layer_2"]}
            data = x[few], y[few] % 2
            result = gdfx.fit(loss_fn, params, optimizer, data, epochs=args.epochs, progress=False)
            averaged = gdfx.eval_params(optimizer, result.opt_state, result.params)
            scores.append([float(accuracy(p, x[others], y[others] % 2)) for p in (result.params, averaged)])
        told = gdfx.explain(optimizer, PARITY.init(jax.random.key(0)))
        print(f"{name}: {optimizer}\n{told}\n")
        rows.append((name, np.mean(scores, axis=0), told.state_bytes))
    print(f"odd or even, from {args.images} images   test accuracy   of averaged params   bytes of state")
    for name, (last, averaged), size in rows:
        print(f"{name:30}  {last:13.2%}  {averaged:19.2%}  {size:15,}")


if __name__ == "__main__":
    main()
