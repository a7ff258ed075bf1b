"""The benchmarks run, at tiny sizes, and record what they should; their ratios are measured elsewhere."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.__main__ import WORKLOADS, table

ROOT = Path(__file__).parents[1]
PARTS = 5  # processes that share the workloads
OF_EQUAL_WORK = {"loss": {"abs": 0.5}, "moved": {"rel": 1e-3}}  # what contestants should reach alike


def run(*flags):
    command = [sys.executable, "-m", "tests.benchmarks", *map(str, flags)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_workload(part, tmp_path):
    names = list(WORKLOADS)[part::PARTS]
    path = tmp_path / "measured.json"
    done = run(*names, "--quick", "--json", path, "--torch-python", sys.executable)
    assert done.returncode == 0, done.stderr
    assert [path.name] == os.listdir(tmp_path)
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["quick"] is True
    about = report["environment"]
    assert about["cores"] >= 1
    assert {"python", "processor", "platform", "device"} <= about.keys()
    assert {"jax", "jaxlib", "numpy", "optax"} <= about["versions"].keys()
    assert list(report["workloads"]) == names
    for name, record in report["workloads"].items():
        assert f"\n{name}: {record['about']}\n" in done.stdout
        check(name, record, done.stdout)


def check(name, record, printed):
    ours, *peers = (record["contestants"][who] for who in sorted(record["contestants"], key=lambda who: who != "gdfx"))
    check_seconds(ours)
    assert peers
    aimed = len(ours.get("limits", {}))
    assert ours.get("limits", {}).keys() <= ours["median"].keys()
    for who, peer in record["contestants"].items():
        if who == "gdfx":
            continue
        if "skipped" in peer:
            assert who == "PyTorch"
            assert importlib.util.find_spec("torch") or f"{sys.executable} has no PyTorch" == peer["skipped"]
            assert f"  {who:<28} skipped: {peer['skipped']}\n" in printed
            continue
        check_seconds(peer)
        target = peer.get("target", {})
        target = target if isinstance(target, dict) else {"run": target}
        aimed += len(target)
        for kind in {"run", "total", *target}:
            assert peer["ratio"][kind]["median"] == pytest.approx(peer["median"][kind] / ours["median"][kind])
        for what, within in OF_EQUAL_WORK.items():
            if what in peer["median"]:
                assert peer["median"][what] == pytest.approx(ours["median"][what], **within)
    told = table(name, record, verdicts=True, times=True)
    assert told.count(": met") + told.count(": MISSED") == aimed
    assert told.count("GB/s") == sum("bandwidth" in c.get("median", {}) for c in record["contestants"].values())


def check_seconds(contestant):
    (seconds,) = contestant["repetitions"]
    assert seconds == contestant["median"]
    assert 0 < seconds["run"] <= seconds["total"]
    if "compile" in seconds:
        assert 0 < seconds["trace"] + seconds["lower"] + seconds["backend"] < 2 * seconds["total"]
    if "memory" in seconds:
        assert seconds["memory"] > 0
        assert seconds["memory_over"] >= 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["nonesuch"], "names"),
        (["--repetitions", "0"], "--repetitions"),
        (["--json", "missing/x.json"], "--json"),
    ],
)
def test_wrong_flags(flags, named):
    done = run(*flags)
    assert done.returncode == 2
    assert named in done.stderr.splitlines()[-1]
