"""Do networks predict numbers better than a linear model does? Regression on two small tables, cross-validated.

    python examples/regression.py
    python examples/regression.py --data wine --epochs 200

The tables come with scikit-learn: how far the diabetes of 442 patients has gone a year later, from ten measurements,
and the color of 178 wines, from twelve. Each row is predicted by models fitted to the other four fifths: scikit-learn's
ridge regression, and eight small networks trained together, which answer with their mean. All scaling is fitted to
training rows. A fifth of these is held out for early stopping. Prints the mean absolute errors, in the unit of the
table, and which is better, if that can be told, and draws predicted against true. (Weight decay and the size of the
networks were chosen on these tables, which flatters them a little.)
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes, load_wine
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gdfx

WINE, COLOR = load_wine(return_X_y=True)[0], 9
TABLES = {  # measurements, shape (rows, columns); what to predict from them, shape (rows,); its unit
    "diabetes": (*load_diabetes(return_X_y=True, scaled=False), "points of progression"),
    "wine": (np.delete(WINE, COLOR, axis=1), WINE[:, COLOR], "units of color intensity"),
}


def predict_by_networks(x: np.ndarray, y: np.ndarray, rows: np.ndarray, epochs: int) -> np.ndarray:
    """What networks that are trained on `x` and `y` predict from `rows`."""
    train_x, valid_x, train_y, valid_y = train_test_split(x, y[:, None], test_size=0.2, random_state=0)
    scale_x, scale_y = StandardScaler().fit(train_x), StandardScaler().fit(train_y)

    def scaled(x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(scale_x.transform(x), jnp.float32), jnp.asarray(scale_y.transform(y), jnp.float32)

    model = gdfx.models.mlp([x.shape[1], 32, 32, 1])
    apply = jax.vmap(model.apply, (0, None))  # of all networks: shape (networks, rows, 1)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        return jnp.square(apply(params, batch[0]) - batch[1][None]).mean()

    result = gdfx.fit(
        loss_fn,
        jax.vmap(model.init)(jax.random.split(jax.random.key(0), 8)),
        gdfx.adamw(1e-3, weight_decay=1.0),
        scaled(train_x, train_y),
        epochs=epochs,
        batch_size=32,
        evaluate=gdfx.evaluator(scaled(valid_x, valid_y), valid_loss=loss_fn),
        stop=gdfx.stopping.no_progress(30, metric="valid_loss"),
        progress=False,
    )
    answers = apply(result.best_params, jnp.asarray(scale_x.transform(rows), jnp.float32))
    return scale_y.inverse_transform(answers.mean(0))[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", choices=TABLES, nargs="+", default=[*TABLES], help="tables to predict")
    parser.add_argument("--epochs", type=int, default=200, help="passes through the training rows, at most")
    parser.add_argument("--output", type=Path, default="regression.png", help="the picture to write")
    args = parser.parse_args()
    if not 1 <= args.epochs <= 10_000:
        parser.error(f"--epochs is {args.epochs}, expected 1 to 10000")
    if args.output.suffix != ".png" or not args.output.parent.is_dir():
        parser.error(f"--output is {args.output}, expected a name that ends in .png, in a folder that exists")

    figure = Figure(figsize=(9, 4.5 * len(args.data)), layout="constrained")
    grid = figure.subplots(len(args.data), 2, squeeze=False)
    for name, axes in zip(args.data, grid, strict=True):
        x, y, unit = TABLES[name]
        predicted = {model: np.empty(len(y)) for model in ("ridge", "networks")}
        for rows, left_out in KFold(5, shuffle=True, random_state=0).split(x):
            ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 25))).fit(x[rows], y[rows])
            predicted["ridge"][left_out] = ridge.predict(x[left_out])
            predicted["networks"][left_out] = predict_by_networks(x[rows], y[rows], x[left_out], args.epochs)
        print(f"\n{name}: mean absolute error over {len(y)} rows, in {unit}")
        print(f"mean      {np.abs(y - y.mean()).mean():8.3f}")
        errors = {model: np.abs(found - y) for model, found in predicted.items()}
        for ax, (model, error) in zip(axes, errors.items(), strict=True):
            print(f"{model:8}  {error.mean():8.3f}")
            ax.axline((y[0], y[0]), slope=1, color="0.6")
            ax.plot(y, predicted[model], ".", alpha=0.6)
            ax.set(title=f"{name}, {model}: mean absolute error {error.mean():.3g}", xlabel=f"true, {unit}")
        axes[0].set_ylabel("predicted")
        axes[1].sharey(axes[0])
        gain = errors["ridge"] - errors["networks"]
        mean, margin = gain.mean(), 2 * gain.std(ddof=1) / len(gain) ** 0.5
        better, more = ("the networks are", "less") if mean > 0 else ("ridge regression is", "more")
        verdict = f"{better} better" if abs(mean) > margin else "too close to call"
        print(f"{verdict}: the networks' error is {abs(mean):.3f} {more}, give or take {margin:.3f}")
    figure.savefig(args.output, dpi=110)
    print(f"\nwrote {args.output}")


if __name__ == "__main__":
    main()
