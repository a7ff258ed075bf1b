"""What is in the picture? A small convolutional network learns to tell clothes apart: Fashion-MNIST.

    python examples/image_classification.py
    python examples/image_classification.py --data fashion --epochs 8

Reads the four files of Fashion-MNIST, as they are published, from a folder; where they are not, takes scikit-learn's
handwritten digits instead. A tenth of the training images is held out: of all epochs, the params that do best on these
are kept. The test images are looked at once, at the end. Prints the accuracy for each class, and draws the learning
curves, which classes are taken for which, and test images with the names that they were given.
"""

import argparse
import gzip
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix

import gdfx

CLOTHES = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
BATCH_SIZE = 64
Data = tuple[np.ndarray, np.ndarray]  # images, uint8 of shape (n, height, width, 1), and labels, int32 of shape (n,)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", type=Path, default="/usr/share/datasets/fashion-mnist", help="folder of the files")
    parser.add_argument("--epochs", type=int, default=5, help="passes through the training images")
    parser.add_argument("--output", type=Path, default="image_classification.png", help="the picture to write")
    args = parser.parse_args()
    if not 1 <= args.epochs <= 1000:
        parser.error(f"--epochs is {args.epochs}, expected 1 to 1000")
    if args.output.suffix != ".png" or not args.output.parent.is_dir():
        parser.error(f"--output is {args.output}, expected a name that ends in .png, in a folder that exists")
    return args


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes: after the magic number the number of axes, their lengths, and the bytes."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} begins with {raw[:3]!r}, expected 0, 0, 8: an idx file of unsigned bytes")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(np.frombuffer(raw, ">i4", raw[3], 4))


def load(folder: Path) -> tuple[Data, Data, list[str]]:
    """The images to train on, those to test on, and the names of the classes."""
    if (folder / "train-images-idx3-ubyte.gz").exists():
        kinds = ("images-idx3", "labels-idx1")
        parts = ([read_idx(folder / f"{part}-{kind}-ubyte.gz") for kind in kinds] for part in ("train", "t10k"))
        train, test = ((x[..., None], y.astype(np.int32)) for x, y in parts)
        return train, test, CLOTHES
    print(f"{folder} has no Fashion-MNIST: these are scikit-learn's digits instead")
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = np.asarray(x[order] * (255 / 16), np.uint8).reshape(-1, 8, 8, 1), np.asarray(y[order], np.int32)
    return (x[360:], y[360:]), (x[:360], y[:360]), [*"0123456789"]


def draw(path: Path, result: Any, test: Data, predicted: np.ndarray, names: list[str]) -> None:
    figure: Any = Figure(figsize=(15, 9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.25])
    curves, matrix = left.subplots(2, 1, height_ratios=[1, 1.9])
    parts = np.array_split(result.history["loss"], min(100, result.steps))
    curves.plot((np.arange(len(parts)) + 0.5) * result.steps / len(parts), [part.mean() for part in parts])
    curves.plot(result.evaluations["step"][1:], result.evaluations["val_loss"][1:], "o-")
    curves.axvline(result.best_step, color="0.6", linestyle=":")
    curves.legend(["training", "held-out images", "params kept"])
    curves.set(xlabel="step", ylabel="loss", ylim=(0, 1), title="learning curves")

    correct, counts = predicted == test[1], confusion_matrix(test[1], predicted)
    matrix.imshow(counts / counts.sum(1, keepdims=True), cmap="Blues")
    for i, j in np.argwhere(counts):
        matrix.text(j, i, counts[i, j], ha="center", va="center", size=8, color="white" if i == j else "black")
    matrix.set(
        xlabel="predicted", ylabel="true", title=f"{len(correct)} test images, {correct.mean():.1%} of them right"
    )
    matrix.set_xticks(range(len(names)), names, rotation=45)
    matrix.set_yticks(range(len(names)), names)

    sampled = np.random.default_rng(0).permutation(len(predicted))
    groups = {"test images, as they come": sampled, "mistakes: predicted (true)": sampled[~correct[sampled]]}
    for part, (title, chosen) in zip(right.subfigures(2, 1), groups.items(), strict=True):
        part.suptitle(title)
        axes = part.subplots(3, 8, subplot_kw={"xticks": [], "yticks": [], "frame_on": False}).flat
        for ax, i in zip(axes, chosen, strict=False):
            ax.imshow(test[0][i, ..., 0], cmap="gray_r")
            name, true = names[predicted[i]], names[test[1][i]]
            title, color = (f"\n{name}", "green") if correct[i] else (f"{name}\n({true})", "red")
            ax.set_title(title, size=9, color=color)
    figure.savefig(path, dpi=110)


def main() -> None:
    args = parse_args()
    (x, y), test, names = load(args.data)
    held_out = len(x) // 10
    model = gdfx.models.cnn(x.shape[1:], (32, 64), len(names))

    def logits(params: Any, images: jax.Array) -> jax.Array:
        return model.apply(params, images.astype(jnp.float32) / 255)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits(params, batch[0]), batch[1]).mean()

    total = args.epochs * ((len(x) - held_out) // BATCH_SIZE)
    rate = gdfx.schedules.warmup_cosine(peak=0.003, warmup=total // 10, total=total)
    result = gdfx.fit(
        loss_fn,
        model.init(jax.random.key(0)),
        gdfx.adamw(rate, weight_decay=0.01),
        (x[held_out:], y[held_out:]),
        epochs=args.epochs,
        batch_size=BATCH_SIZE,
        evaluate=gdfx.evaluator((x[:held_out], y[:held_out]), batch_size=500, val_loss=loss_fn),
    )
    print(result.message)
    predict = jax.jit(lambda images: logits(result.best_params, images).argmax(-1))
    predicted = np.concatenate([predict(part) for part in np.array_split(test[0], 20)])
    correct = predicted == test[1]
    print("\nclass      accuracy")
    for i, name in enumerate(names):
        print(f"{name:9}  {correct[test[1] == i].mean():8.2%}")
    print(f"\ntest accuracy: {correct.mean():.2%}")
    draw(args.output, result, test, predicted, names)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
