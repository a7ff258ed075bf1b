"""Which optimizer is best? Trains one network with a dozen of them, each at the learning rate that suits it best.

    python examples/compare_optimizers.py
    python examples/compare_optimizers.py --optimizers sgd adam --rates 19 --seeds 10

The data are scikit-learn's 1797 images of handwritten digits: 1077 to train on, 360 to choose the learning rate by, and
360 to test on. All are tried at the same rates, from 0.0001 to 3, in one sweep. Prints a table of the best of each,
with the bytes of its state for every parameter, and draws their losses, `compare_optimizers.png`.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from sklearn.datasets import load_digits

import gdfx

OPTIMIZERS = "sgd rmsprop adagrad sm3 adam adamw nadam radam adabelief yogi lamb lion"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", metavar="NAME", default=OPTIMIZERS.split(), help="those to compare")
    parser.add_argument("--rates", type=int, default=10, help="learning rates to try, evenly spaced on a log scale")
    parser.add_argument("--seeds", type=int, default=3, help="networks for each rate")
    parser.add_argument("--epochs", type=int, default=20, help="passes through the training images")
    parser.add_argument("--output", type=Path, default="compare_optimizers.png", help="the picture to write")
    args = parser.parse_args()
    for name in args.optimizers:
        try:
            getattr(gdfx, name)(learning_rate=0.1)
        except (AttributeError, TypeError):
            parser.error(f"--optimizers: {name} is not in gdfx, or needs something else than a learning rate")
    for flag, low, high in [("rates", 2, 1000), ("seeds", 1, 1000), ("epochs", 1, 1000)]:
        value = getattr(args, flag)
        if not low <= value <= high:
            parser.error(f"--{flag} is {value}, expected {low} to {high}")
    if args.output.suffix != ".png" or not args.output.parent.is_dir():
        parser.error(f"--output is {args.output}, expected a name that ends in .png, in a folder that exists")
    return args


def main() -> None:
    args = parse_args()
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order], jnp.int32)
    train, valid, test = ((x[part], y[part]) for part in (slice(720, None), slice(360), slice(360, 720)))
    model = gdfx.models.mlp([64, 64, 64, 10])

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits = model.apply(params, batch[0])
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def evaluate(params: Any) -> dict[str, jax.Array]:
        accuracy = (model.apply(params, test[0]).argmax(-1) == test[1]).mean()
        return {"valid_loss": loss_fn(params, valid), "test_accuracy": accuracy}

    rates = np.logspace(-4, 0.5, args.rates)
    result = gdfx.sweep(
        loss_fn,
        model.init,
        [gdfx.grid(getattr(gdfx, name), learning_rate=rates) for name in args.optimizers],
        train,
        epochs=args.epochs,
        batch_size=32,
        seeds=args.seeds,
        evaluate=evaluate,
        metric="valid_loss",
    )
    figure, ax = plt.subplots(figsize=(9, 6), layout="constrained")
    ax.set_prop_cycle(color=[*plt.get_cmap("tab10")(range(10))] * 2, linestyle=["-"] * 10 + ["--"] * 10)
    print(f"{'optimizer':18}  best rate  train loss  validation loss  test accuracy  bytes/parameter")
    params = model.init(jax.random.key(0))
    for i, name in enumerate(args.optimizers):
        best = next(m for m in result.order if m // args.rates == i)  # members stand in the order of the list
        loss, valid_loss, accuracy = (result.mean(m)[best] for m in ("train_loss", "valid_loss", "test_accuracy"))
        rate, state = rates[best % args.rates], result.optimizers[best].init(params)
        size = sum(x.nbytes for x in jax.tree.leaves(state)) / sum(p.size for p in jax.tree.leaves(params))
        print(f"{name:18}  {rate:9.2g}  {loss:10.4f}  {valid_loss:15.4f}  {accuracy:13.2%}  {size:15.1f}")
        # The mean of each epoch, over the seeds too.
        losses = result.history["loss"][best].reshape(args.seeds, args.epochs, -1).mean(axis=(0, 2))
        ax.plot(np.arange(1, args.epochs + 1), losses, marker=".", label=f"{name}, {rate:.2g}")
    ax.set(xlabel="epoch", ylabel="training loss", yscale="log")
    ax.set_title(f"Each at the best of {args.rates} learning rates, {args.seeds} seeds")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_loss = sorted(ax.lines, key=lambda line: np.asarray(line.get_ydata())[-1], reverse=True)
    ax.legend(handles=by_loss, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(args.output, dpi=120)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
