"""Which optimizer, with which learning rate and weight decay? Tries eight in one call, and writes a page about it.

    python examples/sweep_report.py
    python examples/sweep_report.py --optimizers adamw lion --members 40 --steps 5000

Reads Fashion-MNIST, as it is published, from a folder; where it is not, takes scikit-learn's handwritten digits. The
learning rates and weight decays are drawn, the same for each optimizer. Of all members together a third goes on at each
of three rungs, those with the least loss on held-out images. Prints the table, and how the best does on the test
images; the page has the table too, with plots, and needs nothing beside it.
"""

import argparse
import gzip
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import gdfx

NAMES = ["adamw", "nadamw", "adamaxw", "adan", "laprop", "lion", "lamb", "schedule_free_adamw"]
BATCH_SIZE = 64
Data = tuple[jax.Array, jax.Array]  # images, float32 of shape (n, pixels) in [0, 1], and labels, int32 of shape (n,)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, default="/usr/share/datasets/fashion-mnist", help="folder of the files")
    parser.add_argument("--optimizers", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="those to try")
    parser.add_argument("--members", type=int, default=10, help="draws for each optimizer")
    parser.add_argument("--steps", type=int, default=1500, help="of those that go on to the end, up to whole epochs")
    parser.add_argument("--output", type=Path, default="sweep.html", help="the page to write")
    args = parser.parse_args()
    for flag, low, high in [("members", 1, 1000), ("steps", 10, 100_000)]:
        if not low <= getattr(args, flag) <= high:
            parser.error(f"--{flag} is {getattr(args, flag)}, expected {low} to {high}")
    if args.output.suffix != ".html" or not args.output.parent.is_dir():
        parser.error(f"--output is {args.output}, expected a name that ends in .html, in a folder that exists")
    return args


def load(folder: Path) -> tuple[Data, Data, Data]:
    """What to train on, a sixth that is held out, and what to test on."""
    if (folder / "train-images-idx3-ubyte.gz").exists():
        x, test_x = (_read(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784) for part in ("train", "t10k"))
        y, test_y = (_read(folder / f"{part}-labels-idx1-ubyte.gz", 8) for part in ("train", "t10k"))
        x, test_x = x / 255, test_x / 255
    else:
        print(f"{folder} has no Fashion-MNIST: these are scikit-learn's digits instead")
        x, y = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(x))
        (test_x, x), (test_y, y) = np.split(x[order] / 16, [360]), np.split(y[order], [360])
    cut = len(x) // 6
    parts = (x[cut:], y[cut:]), (x[:cut], y[:cut]), (test_x, test_y)
    train, held_out, test = ((jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)) for x, y in parts)
    return train, held_out, test


def _read(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def main() -> None:
    args = parse_args()
    train, held_out, test = load(args.data)
    model = gdfx.models.mlp([train[0].shape[1], 64, 10])

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits = model.apply(params, batch[0])
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def accuracy(params: Any, data: Data) -> jax.Array:
        return (model.apply(params, data[0]).argmax(-1) == data[1]).mean()

    log_uniform = gdfx.distributions.log_uniform
    drawn: Any = {"learning_rate": log_uniform(3e-5, 0.1), "weight_decay": log_uniform(1e-4, 1.0)}
    result = gdfx.sweep(
        loss_fn,
        model.init,
        [gdfx.sample(getattr(gdfx, name), args.members, **drawn) for name in args.optimizers],
        train,
        epochs=-(-args.steps // (len(train[0]) // BATCH_SIZE)),
        batch_size=BATCH_SIZE,
        evaluate=lambda params: {"loss": loss_fn(params, held_out), "accuracy": accuracy(params, held_out)},
        metric="loss",
        culling=gdfx.halving(),
        progress=True,
    )
    print(result)
    print(f"\nbest optimizer: {result.best.optimizer}")
    print(f"its accuracy on the test images: {accuracy(result.best.params, test):.2%}")
    result.report(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
