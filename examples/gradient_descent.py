"""How do optimizers walk downhill? Draws their paths on the contour lines of one loss.

    python examples/gradient_descent.py
    python examples/gradient_descent.py --steps 300 --output valley.png

Predicts the petal width of 150 irises from the lengths of their sepals and petals, all standardised: two parameters.
The two lengths are correlated, so the loss is a long valley, steep across and nearly flat along its floor. Prints each
final loss beside the smallest there is, by least squares. All make as many steps, but a stochastic step looks at a
single flower, which is 1/150 of the work of a full one.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_iris

import gdfx

START = np.array([1.7, 1.2], np.float32)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draws the paths of optimizers on a loss surface.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=100, help="steps of each optimizer")
    parser.add_argument("--batch-size", type=int, default=16, help="flowers in a mini-batch, up to 150")
    parser.add_argument("--seed", type=int, default=0, help="decides the order of the flowers")
    parser.add_argument("--output", type=Path, default="gradient_descent.png", help="the picture to write")
    args = parser.parse_args()
    for flag, low, high in [("steps", 1, 10_000), ("batch-size", 1, 150), ("seed", 0, 2**32 - 1)]:
        value = getattr(args, flag.replace("-", "_"))
        if not low <= value <= high:
            parser.error(f"--{flag} is {value}, expected {low} to {high}")
    if args.output.suffix != ".png" or not args.output.parent.is_dir():
        parser.error(f"--output is {args.output}, expected a name that ends in .png, in a folder that exists")
    return args


def loss_fn(params, batch):
    x, y = batch
    return gdfx.losses.mean_squared_error(x @ params, y)


def batches(x: np.ndarray, y: np.ndarray, size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Mini-batches without end; every epoch has a new order."""
    rng = np.random.default_rng(seed)
    while True:
        for rows in rng.permutation(len(x))[: len(x) // size * size].reshape(-1, size):
            yield x[rows], y[rows]


def main() -> None:
    args = parse_args()
    flowers = np.asarray(load_iris(return_X_y=True)[0])
    flowers = ((flowers - flowers.mean(0)) / flowers.std(0)).astype(np.float32)
    x, y = flowers[:, [0, 2]], flowers[:, 3]
    minimum, (squares,), *_ = np.linalg.lstsq(x.astype(np.float64), y.astype(np.float64))
    runs = [
        ("Gradient descent", len(x), gdfx.sgd(0.42)),
        ("Stochastic gradient descent", 1, gdfx.sgd(0.05)),
        (f"Mini-batches of {args.batch_size}", args.batch_size, gdfx.sgd(0.2)),
        ("Momentum", len(x), gdfx.sgd(0.1, momentum=0.8)),
        ("RMSprop", len(x), gdfx.rmsprop(0.05)),
        ("Adam", len(x), gdfx.adam(0.1)),
    ]
    step = gdfx.make_step(loss_fn)
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), sharex=True, sharey=True, layout="constrained")
    w1, w2 = np.meshgrid(np.linspace(-0.9, 2.1, 200), np.linspace(-0.55, 2.0, 200))
    surface = np.square(np.stack([w1, w2], -1) @ x.T - y).mean(-1)
    print(f"{'optimizer':28}  {'final loss':>10}  above least squares")
    for ax, (name, size, optimizer) in zip(axes.flat, runs, strict=True):
        state, path = gdfx.TrainState.create(optimizer, START), [START]
        for batch in itertools.islice(batches(x, y, size, args.seed), args.steps):
            state, _ = step(optimizer, state, batch)
            path.append(np.array(state.params))  # a copy, since the next step overwrites the state
        loss = np.square(x.astype(np.float64) @ path[-1] - y).mean()
        print(f"{name:28}  {loss:10.6f}  {loss - squares / len(x):19.6f}")
        filled = ax.contourf(w1, w2, surface, np.geomspace(0.07, 12, 14), cmap="Blues", norm="log", alpha=0.7)
        ax.contour(filled, colors="white", linewidths=0.7)
        ax.plot(*np.transpose(path), ".-", color="tab:red", linewidth=1, markersize=4)
        ax.plot(*START, "o", color="black", label="start")
        ax.plot(*minimum, "*", color="gold", markeredgecolor="black", markersize=13, label="minimum")
        ax.set(xlim=(-0.9, 2.1), ylim=(-0.55, 2.0), aspect="equal")
        ax.set_title(f"{name}\nlearning rate {optimizer.learning_rate}, {args.steps} steps, loss {loss:.4f}", size=11)
    print(f"{'least squares':28}  {squares / len(x):10.6f}")
    axes[0, 0].legend(loc="upper right")
    figure.supxlabel("weight of the sepal length")
    figure.supylabel("weight of the petal length")
    figure.savefig(args.output, dpi=120)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
