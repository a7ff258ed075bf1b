"""What is made of a sweep's runs: the ranking, the table, the exports and the plots, of results built by hand."""

import csv
import json
import sys

import matplotlib.pyplot as plt
import ml_dtypes
import numpy as np
import pytest

import gdfx
from gdfx.sweeps import export
from gdfx.sweeps.plot import plot_curves, plot_heat_map, plot_lineage, plot_metric
from gdfx.sweeps.result import SweepResult


def made(
    points=None, losses=None, *, seeds=1, steps=20, diverged=(), culled=None, errors=None, optimizers=None, **fields
):
    """A sweep whose members have these train losses (in order, 1 for each by default, ± 10% over the seeds)."""
    points = [{"learning_rate": 10.0**-i} for i in range(4)] if points is None else points
    members = len(points)
    losses = np.ones(members) if losses is None else np.asarray(losses, float)
    around = np.linspace(0.9, 1.1, seeds) if seeds > 1 else np.ones(1)
    ends = (losses[:, None] * around).astype(np.float32)
    history = (ends[..., None] * (1 + 3 * np.exp(-np.arange(steps) / (0.2 * steps)))).astype(np.float32)
    lost = np.zeros((members, seeds), bool)
    lost_at = np.full((members, seeds), -1)
    culled_at = np.full(members, -1)
    for i, j in diverged:
        lost[i, j], lost_at[i, j] = True, steps // 2
        history[i, j, : steps // 2] *= np.geomspace(1, 1e6, steps // 2)
        history[i, j, steps // 2 :], ends[i, j] = np.nan, np.nan
    for i, at in (culled or {}).items():
        culled_at[i], history[i, :, at:] = at, np.nan
    for i in errors or {}:
        history[i], ends[i] = np.nan, np.nan
    given = {
        "points": points,
        "optimizers": optimizers or [gdfx.sgd(float(p.get("learning_rate", 0.5))) for p in points],
        "seeds": list(range(seeds)),
        "params": [{"w": 100 * i + np.arange(2 * seeds).reshape(seeds, 2)} for i in range(members)],
        "history": {"loss": history},
        "metrics": {"train_loss": ends},
        "diverged": lost,
        "diverged_at": lost_at,
        "culled_at": culled_at,
        "errors": errors or {},
        "metric": "train_loss",
        "mode": "min",
        "executor": "one program of all members, as they fit",
        "seconds": {"compile": 1.5, "run": 2.25},
    }
    return SweepResult(**(given | fields))


def every_kind(**fields):
    """Six members, two seeds: finished (two), culled (two), diverged with one seed, failed."""
    points = [
        {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 32},
        {"optimizer": "adam", "learning_rate": 0.1, "batch_size": 32},
        {"optimizer": "muon", "batch_size": 32, "ns_steps": 3},
        {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 64},
        {"optimizer": "sgd", "learning_rate": 1.0, "batch_size": 64},
        {"optimizer": "sgd", "learning_rate": 10.0, "batch_size": 64},
    ]
    return made(
        points,
        [0.5, 0.3, 0.1, 0.2, 0.01, 0.4],
        seeds=2,
        diverged=[(4, 1)],
        culled={2: 5, 3: 10},
        errors={5: "ValueError: out of memory, it says <so> & more\nand a long traceback"},
        **fields,
    )


# The ranking.


def test_the_ranking():
    result = every_kind()
    assert result.status == ["finished", "finished", "culled", "culled", "diverged", "failed"]
    # Those that finished; then the one that was culled later, though its loss is larger; then 4, though it is lowest.
    assert result.order.tolist() == [1, 0, 3, 2, 4, 5]
    assert result.best_index == result.best.index == 1
    largest = every_kind(mode="max")
    assert largest.order.tolist() == [0, 1, 3, 2, 4, 5]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_metric_that_is_not_finite_comes_after_those_that_are(value, mode):
    result = made(losses=[value, 2, 1, 3], mode=mode)
    assert result.order.tolist() == ([2, 1, 3, 0] if mode == "min" else [3, 1, 2, 0])
    assert made(losses=[value] * 4, mode=mode).best.index == 0


def test_the_best():
    scores = np.array([[0.1, 0.2], [0.9, 0.7], [0.3, 0.8], [0.0, 0.0]])
    fields = {"metrics": {"train_loss": np.ones((4, 2)), "accuracy": scores}, "metric": "accuracy", "mode": "max"}
    result = made([{"learning_rate": r, "width": 16} for r in (1, 0.1, 0.5, 2)], seeds=2, **fields)
    best = result.best
    assert (best.index, best.seed, best.point) == (1, 0, {"learning_rate": 0.1, "width": 16})
    assert best.optimizer == eval(repr(best.optimizer), vars(gdfx).copy()) == gdfx.sgd(0.1)
    assert best.params["w"].tolist() == [100, 101]
    assert best.metrics == {"train_loss": 1.0, "accuracy": pytest.approx(0.8)}
    lost = made(seeds=2, metrics={"train_loss": np.array([[np.nan, 1.0]] * 4)})
    assert lost.best.seed == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"diverged": [(i, 0) for i in range(4)]}, "every member of the sweep diverged with some seed: try smaller"),
        ({"errors": dict.fromkeys(range(4), "out of memory")}, "sweep failed; the first that failed: out of memory"),
        (
            {"diverged": [(0, 0)], "errors": dict.fromkeys([1, 2, 3], "no")},
            "diverged with some seed, or failed; .*: no",
        ),
    ],
)
def test_there_is_no_best(fields, message):
    result = made(**fields)
    assert result.best_index is None
    assert result.to_dict()["best"] is None
    assert "best" not in result.table()
    with pytest.raises(RuntimeError, match=message):
        _ = result.best


def test_the_best_of_culled_ones_came_farthest():
    assert made(losses=[1, 2, 3, 4], culled={0: 2, 1: 8, 2: 8, 3: 4}).best.index == 1


# Means, spreads, columns.


def test_means_and_spreads_leave_out_the_seeds_that_diverged():
    scores = np.array([[1.0, 2.0, 6.0], [1.0, np.nan, 3.0], [np.nan, np.nan, 5.0], [np.nan] * 3])
    lost = [(1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    result = made(seeds=3, diverged=lost, metrics={"train_loss": scores})
    np.testing.assert_allclose(result.mean("train_loss"), [3, 2, 5, np.nan])
    np.testing.assert_allclose(result.spread("train_loss"), [np.std([1, 2, 6], ddof=1), 2**0.5, 0, np.nan])
    with pytest.raises(ValueError, match="no metric 'loss': expected one of: train_loss"):
        result.mean("loss")


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float16, ml_dtypes.bfloat16])
def test_metrics_of_any_real_dtype(dtype):
    scores = np.array([[0, 0, 1], [1, 1, 1]]).astype(dtype)
    points = [{"b1": 0.5}, {"b1": 0.9}]
    result = made(points, seeds=3, metrics={"good": scores}, metric="good", mode="max")
    assert result.best.index == 1
    np.testing.assert_allclose(result.mean("good"), [1 / 3, 1])
    assert json.loads(json.dumps(result.to_dict()))["members"][1]["metrics"]["good"] == [1, 1, 1]
    assert export.to_rows(result)[0]["good"] == 0


def test_what_was_varied():
    varied = every_kind().varied
    assert list(varied) == ["optimizer", "learning_rate", "batch_size", "ns_steps"]
    assert varied["optimizer"].tolist() == ["adam", "adam", "muon", "sgd", "sgd", "sgd"]
    np.testing.assert_array_equal(varied["learning_rate"], [0.01, 0.1, np.nan, 0.1, 1, 10])
    np.testing.assert_array_equal(varied["batch_size"], [32, 32, 32, 64, 64, 64])
    objects = made([{"sizes": (8, 8), "nesterov": True}, {"sizes": (16,)}]).varied
    assert objects["sizes"].tolist() == [(8, 8), (16,)]
    assert objects["nesterov"].tolist() == [True, None]
    assert made([{}]).varied == {}


# The table.


def test_the_table():
    result = every_kind()
    header, rule, *rows = result.table().splitlines()
    assert header.split() == ["member", "optimizer", "learning_rate", "batch_size", "ns_steps", "train_loss", "status"]
    assert set(rule) == {"-", " "}
    assert [int(row.split()[0]) for row in rows] == result.order.tolist()
    assert rows[0].split() == ["1", "adam", "0.1", "32", "0.3", "±", "0.042", "best"]
    assert rows[2].endswith("culled at 10")
    assert rows[3].split() == ["2", "muon", "32", "3", "0.1", "±", "0.014", "culled", "at", "5"]
    assert rows[4].split() == ["4", "sgd", "1", "64", "(0.009)", "1", "of", "2", "diverged"]
    assert rows[5].split()[4] == "-"
    assert rows[5].endswith("  failed: ValueError: out of memory, it says <so> & more")
    assert repr(result) == str(result) == result.table()
    assert "±" not in made().table()
    assert made(diverged=[(0, 0)]).table().splitlines()[-1].split() == ["0", "1", "-", "1", "of", "1", "diverged"]


def test_the_rows_that_are_too_many_are_counted():
    many = made([{"learning_rate": float(i)} for i in range(100)], np.arange(100.0))
    lines = many.table().splitlines()
    assert len(lines) == 2 + 40 + 1
    assert lines[-1] == "... and 60 more: table(rows=None) has all"
    assert len(many.table(rows=None).splitlines()) == 102
    assert len(many.table(rows=100).splitlines()) == 102
    with pytest.raises(ValueError, match="rows is 0, expected at least 1, or None"):
        many.table(rows=0)


def test_a_sweep_without_variation_has_a_table():
    assert made([{}]).table().split()[:3] == ["member", "train_loss", "status"]


def test_a_table_stays_a_table():
    points = [{"member": "a\nb" * 99, "status": max, "train_loss": None}, {"train_loss": 100000}]
    header, _, *rows = made(points).table().splitlines()
    assert header.split() == ["member", "member_", "status", "train_loss", "train_loss_", "status_"]
    assert len(rows) == 2
    assert all(len(row) < 120 for row in rows)
    assert "max" in rows[0]
    assert "None" in rows[0]
    assert "100000" in rows[1]


# Exports.


def test_the_dict(tmp_path):
    result = every_kind(lineage=[{"step": 3, "member": 1, "from": np.int64(0), "values": {"learning_rate": 0.2}}])
    given = result.to_dict()
    assert given["members"][1]["rank"] == 1
    assert given["best"] == 1
    assert given["members"][2]["point"] == {"optimizer": "muon", "batch_size": 32, "ns_steps": 3}
    assert given["members"][2]["culled_at"] == 5
    assert given["members"][2]["history"]["loss"][1][5:] == [None] * 15
    np.testing.assert_array_equal(np.float32(given["members"][0]["history"]["loss"]), result.history["loss"][0])
    assert given["members"][4]["diverged"] == [False, True]
    assert given["members"][4]["diverged_at"] == [-1, 10]
    assert given["members"][4]["metrics"]["train_loss"][1] is None
    assert given["members"][5]["error"] == result.errors[5]
    assert given["members"][0]["error"] is None
    assert given["lineage"][0]["from"] == 0
    assert eval(given["members"][3]["optimizer"], vars(gdfx).copy()) == gdfx.sgd(0.1)
    result.to_json(tmp_path / "sweep.json")
    assert json.loads((tmp_path / "sweep.json").read_text("utf-8"), parse_constant=pytest.fail) == given
    odd = made([{"sizes": (8, 16), "act": max, "norm": np.float32(0.5), "flag": np.True_, "none": None}])
    assert odd.to_dict()["members"][0]["point"] == {
        "sizes": [8, 16],
        "act": "max",
        "norm": 0.5,
        "flag": True,
        "none": None,
    }


def test_the_csv(tmp_path):
    path = tmp_path / "sweep.csv"
    result = every_kind()
    result.to_csv(path)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    names = "member rank seed optimizer learning_rate batch_size ns_steps train_loss status diverged diverged_at"
    assert list(rows[0]) == [*names.split(), "culled_at", "error", "made_by"]
    assert [(row["member"], row["seed"]) for row in rows[:3]] == [("0", "0"), ("0", "1"), ("1", "0")]
    assert rows[2]["rank"] == "1"
    assert rows[4]["learning_rate"] == ""
    assert (rows[8]["diverged"], rows[9]["diverged"], rows[9]["train_loss"]) == ("False", "True", "nan")
    assert rows[11]["error"] == result.errors[5]
    assert [float(row["train_loss"]) for row in rows[:4]] == result.metrics["train_loss"][:2].ravel().tolist()
    assert eval(rows[0]["made_by"], vars(gdfx).copy()) == gdfx.sgd(0.01)
    clash = export.to_rows(made([{"seed": 7, "train_loss": 2, "member": "x"}]))[0]
    assert (clash["seed"], clash["seed_"], clash["train_loss"], clash["train_loss_"]) == (0, 7, 2, 1.0)


def test_pandas():
    pandas = pytest.importorskip("pandas")
    frame = every_kind().to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.shape == (12, 14)
    assert frame.groupby("member").train_loss.mean().idxmin() == 4
    assert frame.ns_steps.isna().sum() == 10


def test_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pandas is needed for this: pip install "gdfx\[examples\]"'):
        made().to_pandas()


@pytest.mark.parametrize("name", ["to_json", "to_csv", "plot", "report"])
def test_a_file_is_whole_or_not_there(name, tmp_path, monkeypatch):
    result, path = made(steps=3), tmp_path / "sweep.svg"
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent: make it first"):
        getattr(result, name)(tmp_path / "absent" / "sweep.svg")
    with pytest.raises(IsADirectoryError, match="a folder: expected the name of a file"):
        getattr(result, name)(tmp_path)
    path.write_text("old")

    def fail(*_):
        raise OSError("the disk is full")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(export.os, step, fail)
            with pytest.raises(OSError, match="the disk is full"):
                getattr(result, name)(path)
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["sweep.svg"]
    getattr(result, name)(str(path))
    assert path.read_text("utf-8") != "old"
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.svg"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    export.write(tmp_path / "link", "text")
    assert (tmp_path / "file").read_text() == "text"
    assert (tmp_path / "link").is_symlink()


# Plots.


def panels(figure):
    return {f"{ax.get_xlabel()}, {ax.get_ylabel()}": ax for ax in figure.axes if ax.get_xlabel()}


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def a_grid(**fields):
    points = [{"learning_rate": r, "momentum": m} for r in (0.001, 0.01, 0.1, 1.0) for m in (0.0, 0.5, 0.9)]
    losses = [abs(np.log10(p["learning_rate"]) + 2 - p["momentum"]) + 0.05 for p in points]
    return made(points, losses, seeds=3, diverged=[(11, 0), (11, 1), (11, 2), (10, 2)], culled={0: 5, 9: 10}, **fields)


def test_the_plot_of_a_grid(tmp_path):
    before = plt.get_fignums()
    path = tmp_path / "sweep.png"
    figure = a_grid().plot(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == before  # a figure that went to a file is not left open
    found = panels(figure)
    names = ["steps, loss", "learning rate, train loss", "momentum, train loss", "learning rate, momentum"]
    assert list(found) == names
    assert figure.get_suptitle() == "12 members, 3 seeds, 2 culled, 2 diverged"
    against_rate = found[names[1]]
    assert labels(against_rate) == [
        "momentum=0",
        "momentum=0.5",
        "momentum=0.9",
        "culled",
        "diverged",
        "best: learning_rate=0.01",
    ]
    assert against_rate.get_xscale() == "log"
    assert found[names[2]].get_xscale() == "linear"
    line = next(line for line in against_rate.lines if line.get_label() == "momentum=0.9")
    np.testing.assert_allclose(line.get_xydata(), [[0.001, 1.95], [0.01, 0.95], [0.1, 0.15]], rtol=1e-5)


def test_the_plot_of_every_kind(tmp_path):
    every_kind().plot(tmp_path / "sweep.pdf")
    assert (tmp_path / "sweep.pdf").read_bytes().startswith(b"%PDF")
    figure = every_kind().plot()
    assert list(panels(figure)) == [
        "steps, loss",
        *(f"{x}, train loss" for x in ("optimizer", "learning rate", "batch size", "ns steps")),
    ]
    ticks = [text.get_text() for text in panels(figure)["optimizer, train loss"].get_xticklabels()]
    assert ticks == ["adam", "muon", "sgd"]
    plt.close(figure)


@pytest.mark.parametrize(
    "result",
    [
        made([{}]),
        made([{}], steps=1),
        made([{}], steps=0),
        made([{}], history={}),
        made(errors=dict.fromkeys(range(4), "no")),
        made(diverged=[(i, 0) for i in range(4)]),
        made(losses=[np.inf, 1, -1, 0]),
        made([{"_a": "$x_{$", "b": None}, {"_a": "$", "b": 1}]),
        made([{"sizes": (i, i)} for i in range(40)]),
        made(lineage=[]),
    ],
    ids=["one", "one step", "no step", "no history", "failed", "diverged", "infinite", "odd names", "many names", "[]"],
)
def test_a_plot_of_anything(result, tmp_path):
    result.plot(tmp_path / "sweep.svg")
    assert "<svg" in (tmp_path / "sweep.svg").read_text("utf-8")


def test_the_heat_map():
    ax = plot_heat_map(a_grid())
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.001", "0.01", "0.1", "1"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "0.5", "0.9"]
    values = ax.images[0].get_array()
    assert values.shape == (3, 4)
    np.testing.assert_allclose(values[:, 1], [0.05, 0.55, 0.95], rtol=1e-5)
    assert values.mask[1:, 3].all()
    assert "(1.05)" in [t.get_text() for t in ax.texts]  # culled
    plt.close(ax.figure)
    turned = plot_heat_map(a_grid(), "momentum")
    assert turned.get_ylabel() == "learning rate"
    plt.close(turned.figure)
    with pytest.raises(ValueError, match="learning_rate and None have no grid"):
        plot_heat_map(made())
    with pytest.raises(ValueError, match="have no grid, expected one member for each pair"):
        plot_heat_map(made([{"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 2, "b": 2}]))
    with pytest.raises(ValueError, match="'b1' was not varied: expected one of: learning_rate, momentum"):
        plot_heat_map(a_grid(), "b1")


def test_a_random_search_is_drawn_as_points():
    rng = np.random.default_rng(0)
    points = [{"learning_rate": 10.0 ** -rng.uniform(0, 4), "b1": rng.uniform()} for _ in range(30)]
    result = made(points, rng.uniform(size=30), seeds=2)
    ax = plot_metric(result, "learning_rate")
    assert ax.lines[0].get_linestyle() == "None"
    assert len(ax.lines[0].get_xydata()) == 30
    assert labels(ax)[0].startswith("best: learning_rate=")
    plt.close(ax.figure)


def test_the_learning_curves():
    result = made(losses=[4, 3, 2, 1], culled={1: 5}, diverged=[(0, 0)])
    ax = plot_curves(result)
    curves = [line for line in ax.lines if len(line.get_xdata()) > 1]
    assert [line.get_linewidth() for line in curves] == [1, 1, 3]  # the best, which is thick, is drawn last
    np.testing.assert_allclose(curves[-1].get_ydata(), result.history["loss"][3, 0])
    (fading,) = ax.collections
    assert len(fading.get_segments()) == 4  # of 5 steps
    alphas = fading.get_color()[:, 3]
    assert (np.diff(alphas) < 0).all()
    assert alphas[-1] == pytest.approx(0.14)
    assert labels(ax) == ["best: member 3", "culled"]
    plt.close(ax.figure)
    long = made(steps=100_000)
    ax = plot_curves(long)
    assert len(ax.lines[0].get_xdata()) == 200
    plt.close(ax.figure)
    with pytest.raises(ValueError, match="no 'grad_norm' in the history, only: loss"):
        plot_curves(result, "grad_norm")


def test_the_lineage():
    copies = [
        {"step": 5, "member": 2, "from": 0, "values": {"learning_rate": 0.2}},
        {"step": 10, "member": 1, "from": 2, "values": {"learning_rate": 0.3}},
        {"step": 15, "member": 2, "from": 3, "values": {"learning_rate": 0.4}},
    ]
    result = made(losses=[4, 1, 3, 2], lineage=copies)
    ax = plot_lineage(result)
    line = next(line for line in ax.lines if line.get_label() == "ancestors of member 1, the best")
    assert line.get_xydata().tolist() == [[20, 1], [10, 1], [10, 2], [5, 2], [5, 0], [0, 0]]
    assert len(ax.texts) == 3
    plt.close(ax.figure)
    assert "steps, member" in panels(result.plot())
    plt.close("all")
    with pytest.raises(ValueError, match="this sweep has no lineage"):
        plot_lineage(made())
