"""The page of steps to AdamW's loss is what its script makes of what was measured, and the measuring works."""

import json
import math
import string

import jax
import numpy as np
import pytest

import gdfx


@pytest.fixture
def script(docs_script):
    return docs_script("make_convergence")


@pytest.fixture
def measuring(docs_script):
    return docs_script("measure_convergence")


def test_page_is_up_to_date(script):
    assert script.PAGE.read_text(encoding="utf-8") == script.page(script.measured()), f"run: python {script.__file__}"


def test_all_methods_are_measured_in_the_present_setting(script, measuring):
    found = script.measured()
    assert list(found["methods"]) == list(measuring.METHODS)
    assert {name: found["setting"][name] for name in measuring.SETTING} == measuring.SETTING


def test_the_best_rates_are_not_at_the_edge(script):
    for name, record in script.measured()["methods"].items():
        losses = {float(rate): math.inf if loss is None else loss for rate, loss in record["rates"].items()}
        best = min(losses, key=losses.__getitem__)
        assert record["rate"] == pytest.approx(best, rel=1e-4), name
        assert min(losses) < best < max(losses), name


@pytest.mark.parametrize(
    ("losses", "target", "part"),
    [
        ({100: 2.0, 50: 4.0}, 2.0, 1.0),
        ({100: 2.0, 50: 4.0}, 3.0, 0.75),
        ({100: 2.0, 50: 4.0}, 1.9, None),
        ({100: 1.0, 80: 2.0, 40: 4.0}, 3.0, 0.6),
        ({100: 1.0, 80: 2.0, 40: 4.0}, 5.0, 0.4),
        ({100: 1.0, 80: 2.0, 40: 1.0}, 1.5, 0.9),  # fewer steps that are better by chance do not count
    ],
)
def test_part_of_steps(script, losses, target, part):
    assert script.part_of_steps(losses, target) == (part if part is None else pytest.approx(part))


def method(family, **losses):
    return {"family": family, "rate": 0.01, "rates": {}, "losses": {k.lstrip("at"): x for k, x in losses.items()}}


SETTING = {
    "steps": 100, "batch": 2, "length": 8, "width": 16, "depth": 1, "heads": 2, "characters": 3000, "held_out": 4,
    "seeds": 2, "params": 12345,
}  # fmt: skip
FOUND = {
    "setting": SETTING,
    "jax": "1.2",
    "methods": {
        "adamw": method("AdamW", at100=[2.0, 2.1], at50=[3.0, 3.1]),
        "adamw slow": method("AdamW", at100=[2.2, 2.2]),
        "muon": method("matrices", at100=[1.0, 1.1], at50=[3.0, 2.1]),
        "sgd": method("all leaves", at100=[2.5, 1.5]),
    },
}


def test_lines(script):
    lines = script.page(FOUND).splitlines()
    assert "| muon | matrices | 0.01 | 1.050 ± 0.071 | 0.62 (0.50 to 0.75) |" in lines
    assert "| **adamw** | all leaves | 0.01 | 2.050 ± 0.071 | 1 |" in lines
    assert "| sgd | all leaves | 0.01 | 2.000 ± 0.707 | more than 1 from 1 of 2 seeds |" in lines
    assert "| adamw slow | all leaves | 0.01 | 2.200 ± 0.000 | more than 1 |" in lines
    assert [line.split(" ")[1] for line in lines if line.startswith("| ")][2:] == ["muon", "**adamw**", "sgd", "adamw"]
    assert any("`muon`, needs **0.62** of the steps of AdamW (goal: at most 0.75, met)" in line for line in lines)
    missed = FOUND | {"methods": FOUND["methods"] | {"muon": method("matrices", at100=[1.9, 2.0], at50=[3.0, 3.0])}}
    assert "of the steps of AdamW (goal: at most 0.75, **missed**)" in script.page(missed)


def test_plot(script, tmp_path):
    for name in ("1.svg", "2.svg"):
        script.plot(FOUND, tmp_path / name)
    drawn = (tmp_path / "1.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "2.svg").read_text(encoding="utf-8")
    assert ">muon<" in drawn
    assert ">sgd<" not in drawn  # it does not get there


def test_measuring(measuring, script, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "FOUND", tmp_path / "convergence.json")
    monkeypatch.setattr(measuring, "PARTS", (1.0, 0.5))
    start = {"adamw": 0.01, "sgd": 0.02}  # the best rates are beyond those tried first
    methods = {
        "adamw": measuring.adamw()._replace(start=start["adamw"]),
        "sgd": measuring.Method(gdfx.sgd, start["sgd"], constant=True),
    }
    monkeypatch.setattr(measuring, "METHODS", methods)
    setting = {name: SETTING[name] for name in measuring.SETTING} | {"steps": 20}
    text = "".join(np.random.default_rng(0).choice(list(string.ascii_lowercase), 3000, p=zipf(26)))
    measuring.measure(["adamw"], setting, text)
    first = json.loads((tmp_path / "convergence.json").read_text(encoding="utf-8"))
    measuring.measure([], setting, text)
    found = json.loads((tmp_path / "convergence.json").read_text(encoding="utf-8"))
    assert list(found["methods"]) == list(methods)
    assert {name: found["methods"][name] for name in first["methods"]} == first["methods"]
    for record in found["methods"].values():
        rates = sorted(map(float, record["rates"]))
        assert rates[0] < record["rate"] < rates[-1]
        assert len(record["losses"]["20"]) == 2
        assert all(1 < loss < math.log(40) for losses in record["losses"].values() for loss in losses)
        assert math.isfinite(sum(map(sum, record["losses"].values())))
    assert found["methods"]["sgd"]["rate"] > 4 * start["sgd"]  # of five by factors of 2 around the start
    assert list(found["methods"]["adamw"]["losses"]) == ["20", "10"]
    assert "| sgd | all leaves |" in script.table(found, script.outcomes(found))


def zipf(n):
    weights = 1 / np.arange(1, n + 1)
    return weights / weights.sum()


def test_matrices_go_to_their_method(measuring):
    task = measuring.Task({name: SETTING[name] for name in measuring.SETTING} | {"steps": 2}, "abcdefgh" * 400)
    params = task.model.init(jax.random.key(0))
    told = str(gdfx.explain(task.optimizer(measuring.METHODS["muon"], 1e-3, 2)(0.02), params))
    rows = {line.split()[0]: line for line in told.splitlines() if "/" in line or line.startswith("embedding")}
    assert "matrix" in rows["layers/query"]
    assert "matrix" not in rows["embedding"]
