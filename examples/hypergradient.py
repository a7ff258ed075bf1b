"""How should the hyperparameters change? Differentiates the outcome of training with respect to the optimizer.

    python examples/hypergradient.py
    python examples/hypergradient.py --learning-rate 0.0003 --steps 50

A small network learns how far diabetes has progressed in 300 of scikit-learn's 442 patients; the loss on the others
after the last step is a function of the optimizer alone. Its gradient is an `adam` that holds derivatives. Compares
them with finite differences, and then lets the learning rate itself go downhill, in one and the same compiled program.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes

import gdfx


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Differentiates training with respect to the optimizer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--learning-rate", type=float, default=0.001, help="of adam, at the start")
    parser.add_argument("--steps", type=int, default=100, help="training steps that are differentiated through")
    parser.add_argument("--outer-steps", type=int, default=10, help="steps of the learning rate")
    parser.add_argument("--outer-rate", type=float, default=3.0, help="how fast the learning rate moves")
    args = parser.parse_args()
    for flag in "learning-rate", "steps", "outer-steps", "outer-rate":
        value = getattr(args, flag.replace("-", "_"))
        if not 0 < value < float("inf"):
            parser.error(f"--{flag} is {value}, expected a positive, finite number")
    return args


def load_data() -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Ten measurements of each patient and the progression of the disease, standardised: to train, and to validate."""
    measurements, progression = load_diabetes(return_X_y=True, scaled=False)
    patients = np.column_stack([measurements, progression])
    patients = np.random.default_rng(0).permutation((patients - patients.mean(0)) / patients.std(0))
    x, y = jnp.asarray(patients[:, :10], jnp.float64), jnp.asarray(patients[:, 10:], jnp.float64)
    return (x[:300], y[:300]), (x[300:], y[300:])


def main() -> None:
    args = parse_args()
    jax.config.update("jax_enable_x64", True)  # the differences of nearly equal losses need the digits
    train, valid = load_data()
    model = gdfx.models.mlp([10, 16, 1], jnp.tanh, dtype=jnp.float64)
    params = model.init(jax.random.key(0))

    def loss_fn(params, batch):
        x, y = batch
        return gdfx.losses.mean_squared_error(model.apply(params, x), y)

    step = gdfx.step_function(loss_fn)

    def final_loss(optimizer: gdfx.adam) -> jax.Array:
        """The loss on the validation data after training."""
        start = gdfx.TrainState.create(optimizer, params)
        end, _ = jax.lax.scan(lambda state, _: step(optimizer, state, train), start, length=args.steps)
        return loss_fn(end.params, valid)

    optimizer = gdfx.as_arrays(gdfx.adam(args.learning_rate))
    # Compiled once, for all values of the hyperparameters.
    loss_and_slope = jax.jit(jax.value_and_grad(final_loss)).lower(optimizer).compile()

    loss, slope = loss_and_slope(optimizer)
    print(f"{optimizer}\nends at a validation loss of {loss:.6f}, whose derivatives are\n{slope}\n")

    print("hyperparameter       derivative  finite difference")
    for name in "learning_rate", "b1", "b2", "eps":
        value = getattr(optimizer, name)
        h = 1e-4 * value
        above, _ = loss_and_slope(optimizer.replace(**{name: value + h}))
        below, _ = loss_and_slope(optimizer.replace(**{name: value - h}))
        print(f"{name:14}  {getattr(slope, name):15.8f}  {(above - below) / (2 * h):17.8f}")

    print("\nouter step  learning rate  validation loss")
    for i in range(args.outer_steps + 1):
        loss, slope = loss_and_slope(optimizer)
        print(f"{i:10}  {optimizer.learning_rate:13.6f}  {loss:15.6f}")
        # Down the slope of its logarithm, as learning rates differ by factors; by a factor of 2 at most.
        move = -args.outer_rate * optimizer.learning_rate * slope.learning_rate
        optimizer = optimizer.replace(learning_rate=optimizer.learning_rate * 2 ** np.clip(move, -1, 1))


if __name__ == "__main__":
    main()
