"""The benchmarks run, at tiny sizes, and record what they should; their ratios are measured elsewhere."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PEERS = {
    "mlp_digits": {"jitted step, NumPy batches": 10, "jitted scan": None},
    "mlp_fashion": {"jitted scan": 0.97, "jitted step": 0.97, "PyTorch": 1.5},
    "cnn_fashion": {"jitted scan": 0.97, "jitted step": 0.97, "PyTorch": None},
}


def run(*flags):
    command = [sys.executable, "-m", "tests.benchmarks", *map(str, flags)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300)


def test_every_workload(tmp_path):
    path = tmp_path / "measured.json"
    done = run("--quick", "--json", path, "--torch-python", sys.executable)
    assert done.returncode == 0, done.stderr
    if importlib.util.find_spec("torch") is None:
        assert f"skipped: {sys.executable} has no PyTorch" in done.stdout
    assert [path.name] == os.listdir(tmp_path)
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["quick"] is True
    about = report["environment"]
    assert about["cores"] >= 1
    assert {"python", "processor", "platform", "device"} <= about.keys()
    assert {"jax", "jaxlib", "numpy", "optax"} <= about["versions"].keys()
    assert list(report["workloads"]) == list(PEERS)
    for name, targets in PEERS.items():
        record = report["workloads"][name]
        assert f"\n{name}: {record['about']}\n" in done.stdout
        assert record["sizes"]["data"]
        ours = record["contestants"].pop("gdfx")
        check_seconds(ours)
        assert record["contestants"].keys() == targets.keys()
        for who, peer in record["contestants"].items():
            if "skipped" in peer:
                assert who == "PyTorch"
                assert f"  {who:<28} skipped: {peer['skipped']}\n" in done.stdout
                continue
            check_seconds(peer)
            assert peer.get("target") == targets[who]
            for kind in ("run", "total"):
                assert peer["ratio"][kind]["median"] == pytest.approx(peer["median"][kind] / ours["median"][kind])
            assert peer["median"]["loss"] == pytest.approx(ours["median"]["loss"], abs=0.5)


def check_seconds(contestant):
    (seconds,) = contestant["repetitions"]
    assert seconds == contestant["median"]
    assert 0 < seconds["run"] < seconds["total"]
    if "compile" in seconds:
        assert 0 < seconds["trace"] + seconds["lower"] + seconds["backend"] < 2 * seconds["total"]


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
