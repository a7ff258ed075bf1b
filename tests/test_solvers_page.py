"""The page of solvers on known problems is what its script makes of what was measured, and a run is judged rightly."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import PROBLEMS


@pytest.fixture
def script(docs_script):
    return docs_script("make_solvers")


@pytest.fixture
def measuring(docs_script):
    return docs_script("measure_solvers")


def test_page_is_up_to_date(script):
    assert script.PAGE.read_text(encoding="utf-8") == script.page(script.measured()), f"run: python {script.__file__}"


def test_problems_of_the_page_are_those_of_the_tests(script):
    measured = script.measured()["problems"]
    assert {name: tuple(p["minima"]) for name, p in measured.items()} == {n: p.minima for n, p in PROBLEMS.items()}
    assert all("gdfx lbfgs" in p["runs"] for p in measured.values())


def problem(runs, m=None):
    solved = lambda n: {"points": n, "small_gradient": n + 1}
    failed = {"points": None, "tried": 7, "value": 1.5, "grad_norm": 1e-3}
    return {"n": 2, "m": m, "minima": [0.0], "runs": {name: solved(n) if n else failed for name, n in runs.items()}}


def test_lines(script, monkeypatch):
    ours, scipys = "gdfx lbfgs", "scipy L-BFGS-B"
    monkeypatch.setattr(script, "TARGETS", [("one", ours, scipys, 1.05), ("one", ours, None, 9)])
    problems = {
        "one": problem({ours: 9, scipys: 9}),
        "two": problem({ours: 36, scipys: 9}),
        "three": problem({ours: None, scipys: 9, "jaxopt LBFGS": 4}, m=3),
    }
    lines = script.page({"versions": {"jax": "1.2", "scipy": "3"}, "problems": problems}).splitlines()
    assert "| L-BFGS | **gdfx lbfgs** | 2 of 3 | 2.50 (2) |" in lines
    assert "|  | jaxopt LBFGS | 1 of 3 | 0.44 (1) |" in lines
    assert "- `gdfx lbfgs` does not solve `three`; it needs more than 1.5 times SciPy's points on `two` (4.0)." in lines
    numbers = "**gdfx lbfgs** 10, scipy L-BFGS-B 10"
    assert f"| `one` | {numbers} | at most 1.05 times scipy L-BFGS-B's: 1.00, met |" in lines
    assert f"| `one` | {numbers} | at most 9: 10, **missed** |" in lines
    assert "| three (2) | - | 9 | 4 |" in lines
    assert "- gdfx lbfgs: `three` (1.5, 1.0e-03)." in lines
    assert "Measured with jax 1.2, scipy 3." in lines


@pytest.mark.usefixtures("x64")
def test_a_run_is_judged_by_the_points_at_which_it_evaluated(measuring, monkeypatch):
    judge = measuring.Judge(PROBLEMS["rosenbrock"])

    def at(*points):
        def call(run):
            for x in points:
                jax.value_and_grad(run.fn)(jnp.asarray(x))
            jax.jacfwd(run.residual)(jnp.asarray(points[-1]))
            return len(points)

        return judge.run(call)

    start, minimum = PROBLEMS["rosenbrock"].start, np.ones(2)
    assert at(start, start, minimum) == {"iterations": 3, "points": 2, "small_gradient": 2}
    missed = at(start, minimum + 0.1)
    assert missed.items() > {"points": None, "tried": 2}.items()
    np.testing.assert_allclose(missed["value"], 0.5 * (10 * 0.11) ** 2 + 0.5 * 0.1**2, rtol=1e-12)

    monkeypatch.setattr(measuring, "POINTS", 1)
    assert at(start, minimum).items() > {"points": None, "tried": 1}.items()

    def fails(run):
        raise RuntimeError("no\nmore")

    assert judge.run(fails)["error"] == "RuntimeError: no"


@pytest.mark.usefixtures("x64")
def test_a_measurement_that_was_cut_off_goes_on(measuring, tmp_path, monkeypatch):
    ran, path = [], tmp_path / "solvers.json"
    monkeypatch.setattr(measuring, "FOUND", path)
    monkeypatch.setitem(measuring.PACKAGES, "gdfx", lambda name, run: ran.append(name) or 1)
    two = {name: PROBLEMS[name] for name in ("beale", "hilbert")}
    monkeypatch.setattr(importlib.import_module("problems"), "PROBLEMS", two)
    words = ["gdfx lbfgs", "gdfx dogleg"]
    measuring.measure(words, again=False)
    assert ran == ["lbfgs", "lbfgsb", "dogleg", "lbfgs", "lbfgsb"]  # the second is no sum of squares

    found = json.loads(path.read_text(encoding="utf-8"))
    del found["problems"]["beale"]["runs"]["gdfx lbfgsb"]
    found["problems"]["hilbert"]["minima"] = [1.0]  # was another problem
    path.write_text(json.dumps(found), encoding="utf-8")
    for again, expected in [
        (False, ["lbfgsb", "lbfgs", "lbfgsb"]),
        (True, ["lbfgs", "lbfgsb", "dogleg", "lbfgs", "lbfgsb"]),
    ]:
        ran.clear()
        measuring.measure(words, again)
        assert ran == expected
    assert [p.name for p in tmp_path.iterdir()] == ["solvers.json"]
