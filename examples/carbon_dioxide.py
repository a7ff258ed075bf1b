"""How fast does carbon dioxide in the air rise, and for how long can that be foretold? A curve fitted to a record.

    python examples/carbon_dioxide.py
    python examples/carbon_dioxide.py --until 1990 --output co2.png

The record comes with statsmodels: the air over Mauna Loa, week by week, 1958 to 2001. The curve is the level from
before industry, 280 ppm, plus an exponential, and seasons whose swing grows in time: nine params, fitted by
`gdfx.least_squares` to the weeks before `--until`. Prints the params with their standard errors, and how far the
curve is from the weeks that it has not seen; draws it with its 95 % confidence band. The residuals of neighboring
weeks are alike, so that there are fewer independent ones than weeks: the errors are widened by what the correlation
from one week to the next says of it.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from statsmodels.datasets import co2

import gdfx

LEVEL = 280.0  # parts per million, told by old ice
START = {
    "excess": 50.0,  # above the level from before industry, in 1980, in parts per million
    "growth": 0.02,  # of the excess, each year
    "swing_growth": 0.0,  # of the seasons, each year
    "cosines": np.zeros(3),  # of one, two and three waves a year
    "sines": np.zeros(3),
}


def curve(params, years):
    """The carbon dioxide in `years`, shape (n,), in parts per million."""
    t = years - 1980.0
    trend = LEVEL + params["excess"] * jnp.exp(params["growth"] * t)
    angles = 2 * jnp.pi * years[:, None] * jnp.arange(1.0, 4.0)[None]
    seasons = jnp.cos(angles) @ params["cosines"] + jnp.sin(angles) @ params["sines"]
    return trend + (1 + params["swing_growth"] * t) * seasons


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--until", type=float, default=1975.0, help="the curve is fitted to the years before")
    parser.add_argument("--output", type=Path, default=Path("carbon_dioxide.png"), help="the plot")
    options = parser.parse_args()
    record = pd.DataFrame(co2.load_pandas().data).dropna()
    weeks = pd.DatetimeIndex(record.index)
    years = (weeks.year + (weeks.day_of_year - 0.5) / 365.25).to_numpy(float)
    found = record["co2"].to_numpy()
    seen = years < options.until
    if not 500 <= seen.sum() < len(seen):
        parser.error(f"--until is {options.until}, expected a year that leaves ten years before and some after: 1970")

    jax.config.update("jax_enable_x64", True)
    residuals = lambda params: curve(params, years[seen]) - found[seen]
    result = gdfx.least_squares(residuals, jax.tree.map(jnp.asarray, START))
    print(f"ended by {result.status}, after {result.steps} steps and {result.evaluations} evaluations\n")
    if not result.success:
        raise SystemExit(result.message)

    left = np.asarray(residuals(result.params))
    correlation = np.corrcoef(left[1:], left[:-1])[0, 1]
    covariance = gdfx.covariance(residuals, result.params) * (1 + correlation) / (1 - correlation)
    params, unravel = ravel_pytree(result.params)
    errors = unravel(jnp.sqrt(jnp.diag(covariance)))
    for name in ("excess", "growth", "swing_growth"):
        print(f"{name:>12} {result.params[name]:10.4f} +- {errors[name]:.4f}")

    grid = jnp.linspace(years[0], years[-1], 2500)
    foretold = curve(result.params, grid)
    slopes = jax.jacobian(lambda params: curve(unravel(params), grid))(params)
    band = 1.96 * jnp.sqrt(jnp.einsum("ti,ij,tj->t", slopes, covariance, slopes))
    ahead = np.asarray(curve(result.params, years[~seen])) - found[~seen]
    print(f"\nthe weeks it was fitted to are off by {np.sqrt(np.mean(left**2)):.2f} ppm (root mean square)")
    for year in range(int(options.until), int(years[-1]) + 1, 4):
        part = ahead[(years[~seen] >= year) & (years[~seen] < year + 4)]
        print(f"those of {year} to {year + 4} by {np.sqrt(np.mean(part**2)):.2f} ppm")

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(years, found, ".", markersize=2, color="0.5", label="measured")
    axes.plot(grid, foretold, color="C0", linewidth=1, label=f"fitted to the years before {options.until:g}")
    axes.fill_between(grid, foretold - band, foretold + band, color="C0", alpha=0.3, label="95 % confidence")
    axes.axvline(options.until, color="black", linestyle=":", linewidth=1)
    axes.set(xlabel="year", ylabel="CO2 over Mauna Loa, ppm", xlim=(years[0], years[-1]))
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.output, dpi=150)
    print(f"\nwrote {options.output}")


if __name__ == "__main__":
    main()
