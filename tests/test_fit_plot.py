"""The picture of a training run shows what there is, and takes what comes."""

from types import SimpleNamespace

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import gdfx
from gdfx.training.plot import plot_fit


def result(loss, evaluations=None, *, best_step=None, **history):
    loss = np.array(loss, np.float32)
    history = {"loss": loss, "grad_norm": 2 * loss, **history}
    return SimpleNamespace(
        history=history, evaluations=evaluations or {}, best_step=best_step, steps=len(loss), message="stopped"
    )


def axes(figure):
    found = {ax.get_ylabel(): ax for ax in figure.axes}
    assert len(found) == len(figure.axes)
    return found


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def test_the_panels_and_their_lines(tmp_path):
    open_before = plt.get_fignums()
    evaluations = {
        "step": np.array([0, 2, 4]),
        "val_loss": np.array([3.0, 1.5, 2.0]),
        "accuracy": np.array([0.1, 0.75, 0.5]),
    }
    path = tmp_path / "run.png"
    rates = np.array([0.1, 0.1, 0.01, 0.001], np.float32)
    figure = plot_fit(result([4, 3, 2, 1], evaluations, best_step=2, learning_rate=rates), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == open_before  # a figure that went to a file is not left open
    found = axes(figure)
    assert list(found) == ["loss", "evaluation", "gradient norm", "learning rate"]
    assert list(lines(found["loss"])) == ["training loss", "val loss", "best: step 2"]
    # The loss of the first step and the evaluation of step 0 are of the same params.
    assert lines(found["loss"])["training loss"].get_xydata().tolist() == [[0, 4], [1, 3], [2, 2], [3, 1]]
    assert lines(found["loss"])["val loss"].get_xydata().tolist() == [[0, 3], [2, 1.5], [4, 2]]
    assert list(lines(found["evaluation"])) == ["accuracy", "best: step 2"]
    assert lines(found["learning rate"])["learning_rate"].get_ydata() == pytest.approx(rates)
    assert {label: ax.get_yscale() for label, ax in found.items()} == {
        "loss": "linear", "evaluation": "linear", "gradient norm": "log", "learning rate": "log"
    }  # fmt: skip
    assert figure.get_suptitle() == "stopped"


def test_with_fit(tmp_path):
    result = gdfx.fit(
        lambda params, batch: jnp.mean((batch - params) ** 2),
        jnp.zeros(()),
        gdfx.record(gdfx.sgd(0.1)),
        np.ones(4, np.float32),
        epochs=3,
        evaluate=lambda params: {"val_loss": params**2, "distance": abs(1 - params)},
        metric="distance",
        progress=False,
    )
    figure = result.plot(tmp_path / "run.png")
    assert list(axes(figure)) == ["loss", "evaluation", "gradient norm", "learning rate"]
    assert "best: step 3" in lines(axes(figure)["evaluation"])
    assert figure.get_suptitle() == "stopped after 3 steps: all epochs were run"


def test_without_evaluations_and_to_be_shown():
    figure = plot_fit(result(np.geomspace(100, 1, 9)))
    assert figure.number in plt.get_fignums()
    plt.close(figure)
    found = axes(figure)
    assert list(found) == ["loss", "gradient norm"]
    assert found["loss"].get_yscale() == "log"
    assert found["loss"].get_legend() is None


def test_only_losses_are_evaluated(tmp_path):
    figure = plot_fit(result([2, 1], {"step": np.array([2]), "Loss/test": np.array([1.0])}), tmp_path / "run.png")
    assert list(axes(figure)) == ["loss", "gradient norm"]


def test_learning_rates_of_groups(tmp_path):
    rates = {f"{group}/learning_rate": np.full(2, 0.1) for group in ("head", "body")}
    found = axes(plot_fit(result([2, 1], aux={"learning_rate": np.zeros((2, 3))}, **rates), tmp_path / "run.png"))
    assert list(lines(found["learning rate"])) == [*rates]


@pytest.mark.parametrize("steps", [100, 1234, 5000])
def test_means_and_outline_of_long_runs(steps, tmp_path):
    loss = 2 + np.random.default_rng(0).normal(size=steps).astype(np.float32)
    loss[50] = 40  # one spike is still seen
    raw, mean = axes(plot_fit(result(loss), tmp_path / "run.png"))["loss"].lines
    assert raw.get_ydata().min() == loss.min()
    assert raw.get_ydata().max() == 40
    assert len(raw.get_ydata()) == min(steps, 2000)
    x, y = mean.get_xdata(), mean.get_ydata()
    parts = min(steps // 10, 100)
    assert mean.get_label() == f"mean of {steps // parts} steps"
    assert len(x) == len(y) == parts
    width = steps // parts
    assert x[0] == (width - 1) / 2
    assert y[0] == pytest.approx(loss[:width].mean(), rel=1e-6)
    assert y[-1] == pytest.approx(loss[steps - -(-steps // parts) :].mean(), rel=0.05)


@pytest.mark.parametrize(
    ("loss", "lost"),
    [
        ([1, 2, np.inf], [2]),
        ([np.nan], [0]),
        ([1e30, -np.inf, np.nan], [1, 2]),
        ([*np.ones(500), *np.full(300, np.nan)], [*range(500, 800)]),
    ],
    ids=["inf", "at once", "both", "long"],
)
def test_what_is_not_finite_is_marked(loss, lost, tmp_path):
    evaluations = {"step": np.array([0, 1]), "val_loss": np.array([1, np.nan]), "accuracy": np.array([np.nan, np.inf])}
    figure = plot_fit(result(loss, evaluations, best_step=0), tmp_path / "run.png")
    found = axes(figure)
    for panel in "loss", "gradient norm":
        assert lines(found[panel])["not finite"].get_xdata().tolist() == lost


@pytest.mark.parametrize("loss", [[], [0.5], [0, 0, 0], [-1, -2]], ids=["none", "one", "zero", "negative"])
def test_few_steps_and_odd_losses(loss, tmp_path):
    found = axes(plot_fit(result(loss), tmp_path / "run.png"))
    assert len(lines(found["loss"])["training loss"].get_ydata()) == len(loss)
    assert found["loss"].get_yscale() == "linear"
    left, right = found["loss"].get_xlim()
    assert left < 0
    assert right > len(loss)
