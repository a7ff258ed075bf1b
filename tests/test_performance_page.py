"""The page of performance is what its script makes of what was measured, and the script tells what was missed."""

import json
import re

import pytest


@pytest.fixture
def script(docs_script):
    return docs_script("make_performance")


def ran(run, **more):
    """A contestant whose repetitions all took as long."""
    return {"repetitions": [{"run": run}] * 2, "median": {"run": run}, **more}


def ratio(median):
    return {"low": median * 0.9, "median": median, "high": median * 1.1}


def report(platform="cpu", versions=None, **contestants):
    told = {"platform": platform, "device": "NVIDIA X" if platform == "gpu" else "cpu", "processor": "Fast 9000"}
    task = {"about": "a task", "unit": "step", "sizes": {"data": "random"}}
    return {
        "quick": False,
        "environment": told
        | {"system": "here", "cores": 2, "python": "3.11.7", "versions": versions or {"jax": "1.2"}},
        "workloads": {"mlp_toy": task | {"contestants": {"gdfx": ran(2e-3)} | contestants}},
    }


PEERS = {
    "scan": ran(1e-3, ratio={"run": ratio(0.5), "other": ratio(3.0)}, target=0.97),
    "loop": ran(50e-3, ratio={"run": ratio(25.0), "first": None}, target={"run": 10, "first": 2}),
    "copy": ran(1e-3, ratio={"run": ratio(0.9), "first": ratio(3.0)}, target={"first": 4}),
    "PyTorch": {"skipped": "there is none"},
}


def test_page_is_up_to_date(script):
    assert script.PAGE.read_text(encoding="utf-8") == script.page(script.measured()), f"run: python {script.__file__}"


def test_plots_are_those_of_the_page(script):
    plots = re.findall(r"!\[.*\]\(performance/(.*)\)", script.PAGE.read_text(encoding="utf-8"))
    assert plots
    assert sorted(plots) == sorted(path.name for path in script.FOLDER.glob("*.svg"))


def test_lines_of_a_cpu(script):
    page = script.page({"cpu": report(**PEERS)})
    lines = page.splitlines()
    assert "[cpu.json](performance/cpu.json)" in page
    assert "Fast 9000, 2 cores. Python 3.11.7, jax 1.2." in lines
    assert "- `mlp_toy`: a task, on random numbers of these shapes; 2 repetitions." in lines
    assert "| Workload | Peer | per step | start to first step | other | Target |" in lines
    assert "| `mlp_toy` | scan | 0.50 (0.45 to 0.55) |  | 3.00 | 0.97: **missed** |" in lines
    assert "| `mlp_toy` | loop | 25.0 (22.5 to 27.5) |  |  | 10: met, start to first step 2: not measured |" in lines
    assert "| `mlp_toy` | copy | 0.90 (0.81 to 0.99) | 3.00 |  | start to first step 3.00 of 4: **missed** |" in lines
    assert "| `mlp_toy` | PyTorch |  |  |  | skipped: there is none |" in lines
    assert "| `mlp_toy` | gdfx |" not in page
    reached = "0.50 of 0.97 (`scan`), 3.00 of 4 (`copy, start to first step`)"
    assert lines[-1] == f"- `mlp_toy` on a CPU reached {reached}: why is not known yet."
    assert " ms" not in page


def test_limits_of_gdfx(script, monkeypatch):
    monkeypatch.setitem(script.WHY, "mlp_toy", "it has to be so")
    told = report()
    ours = told["workloads"]["mlp_toy"]["contestants"]["gdfx"]
    ours |= {"median": {"memory_over": 1.02, "beyond_jax": 0.2}, "limits": {"memory_over": 1.05, "beyond_jax": 0.15}}
    lines = script.page({"cpu": told}).splitlines()
    memory = "memory over params, state and gradients at most 1.05: 1.02, met"
    assert f"| `mlp_toy` | gdfx | {memory}, seconds at most 0.15: 0.20, **missed** |" in lines
    assert lines[-1] == "- `mlp_toy` on a CPU reached seconds at most 0.15: 0.20: it has to be so."


def test_a_gpu_has_times(script):
    gpu = report("gpu", loop=PEERS["loop"] | {"torch": "2.0"})
    gpu["workloads"]["mlp_toy"]["contestants"]["gdfx"]["median"]["bandwidth"] = 2.5e12
    page = script.page({"cpu": report(), "gpu": gpu})
    lines = page.splitlines()
    assert lines.index("## On a CPU") < lines.index("## On a GPU")
    assert "NVIDIA X (Fast 9000), 2 cores. Python 3.11.7, jax 1.2, PyTorch 2.0." in lines
    assert "| Workload | Peer | per step | time | bandwidth | Target |" in lines
    assert "| `mlp_toy` | gdfx |  | 2.00 ms | 2500 GB/s |  |" in lines
    target = "10: met, start to first step 2: not measured"
    assert f"| `mlp_toy` | loop | 25.0 (22.5 to 27.5) | 50.0 ms |  | {target} |" in lines
    assert "![Training: time of the peers over that of gdfx](performance/gpu-training.svg)" in lines
    assert "performance/cpu-training.svg" not in page  # there is nobody to compare with
    assert lines[-1] == "No target was missed."


@pytest.mark.parametrize("peers", [["scan"], ["loop", "PyTorch"]])
def test_plot(script, tmp_path, peers):
    workloads = report(**{who: PEERS[who] for who in peers})["workloads"]
    for name in ("1.svg", "2.svg"):
        script.plot(workloads, tmp_path / name)
    drawn = (tmp_path / "1.svg").read_bytes()
    assert drawn == (tmp_path / "2.svg").read_bytes()
    for who in peers:
        assert (who.encode() in drawn) == ("skipped" not in PEERS[who])


def test_measurements_are_merged_by_workload(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "FOLDER", tmp_path / "performance")

    def take_over(told):
        path = tmp_path / "measured.json"
        path.write_text(json.dumps(told), encoding="utf-8")
        script.take_over(path)

    new, other = report(scan=PEERS["scan"]), report()
    other["workloads"] = {"sweep_toy": other["workloads"]["mlp_toy"]}
    for told in (report(), other, new, report("gpu")):
        take_over(told)
    merged = script.measured()
    assert list(merged) == ["cpu", "gpu"]
    assert list(merged["cpu"]["workloads"]) == ["mlp_toy", "sweep_toy"]
    assert merged["cpu"]["workloads"]["mlp_toy"] == new["workloads"]["mlp_toy"]
    assert "system" not in merged["cpu"]["environment"]

    with pytest.raises(SystemExit, match=r"measured\.json was measured on .*'jax': '9'.*cpu\.json on .*: delete that"):
        take_over(report(versions={"jax": "9"}))
    with pytest.raises(SystemExit, match=r"measured\.json is of a --quick run"):
        take_over(new | {"quick": True})
    assert script.measured() == merged
