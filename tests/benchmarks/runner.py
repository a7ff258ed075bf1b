"""The runner: workloads, their contestants, and the ratios between them.

Machines differ and speeds drift, so what counts is the ratio of a peer's time to that of gdfx in the same repetition:
in each, all contestants run once, in turn, and each time another is the first.
"""

import gc
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

GDFX = "gdfx"
"""The contestant that the others are compared with."""

Repeat = Callable[[], dict[str, float]]
"""Runs a contestant once. Returns its seconds: "run", steady, for one unit of work; "compile", once, where it compiles;
and "total", of a whole repetition from nothing; and what else there is to record. All results are blocked on."""

Targets = dict[str, float | dict[str, float]]
"""By peer: the ratio to reach, of "run", or one for each kind that is named."""


class Skipped(Exception):  # noqa: N818 - it is no error
    """Raised by a contestant that cannot run here, with the reason."""


@dataclass(frozen=True)
class Setting:
    """How the workloads are to be run."""

    quick: bool = False  # tiny sizes: shows that all works, and measures nothing
    torch_python: str | None = None  # the interpreter that has PyTorch
    closing: ExitStack = field(default_factory=ExitStack)  # what ends with the workload


@dataclass(frozen=True)
class Workload:
    """A task, and those who do it."""

    about: str  # the task in a phrase
    unit: str  # what one unit of work is
    sizes: dict[str, Any]  # of the task, and where its data are from, for the record
    contestants: dict[str, Callable[[], Repeat]]  # each builds what it can before the clock starts, or raises Skipped
    targets: Targets = field(default_factory=dict)
    kinds: Sequence[str] = ("run", "compile", "total")  # what there are ratios of
    limits: dict[str, float] = field(default_factory=dict)  # by kind: the most that it may be in gdfx itself


WORKLOADS: dict[str, Callable[[Setting], Workload]] = {}


def workload(build: Callable[[Setting], Workload]) -> Callable[[Setting], Workload]:
    """Registers a workload under the name of the function that builds it."""
    WORKLOADS[build.__name__] = build
    return build


# Of every program that JAX compiles it tells how long each stage took, also inside of `gdfx.fit`.
_STAGES = {"jaxpr_trace": "trace", "jaxpr_to_mlir_module": "lower", "backend_compile": "backend"}
_spent: dict[str, float] = {}


def _listen(event: str, duration_secs: float, **_: Any) -> None:
    stage = _STAGES.get(event.removeprefix("/jax/core/compile/").removesuffix("_duration"))
    if stage:
        _spent[stage] = _spent.get(stage, 0.0) + duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


def measure(name: str, setting: Setting, repetitions: int) -> dict[str, Any]:
    """The record of one workload: its contestants' repetitions, medians and ratios, as JSON can hold it."""
    with setting.closing:
        task = WORKLOADS[name](setting)
        repeats: dict[str, Repeat] = {}
        contestants: dict[str, dict[str, Any]] = {}
        for who, start in task.contestants.items():
            try:
                repeats[who] = start()
                contestants[who] = {"repetitions": [], **getattr(repeats[who], "about", {})}
            except Skipped as reason:
                contestants[who] = {"skipped": str(reason)}
        warm_up = 0 if setting.quick else 1
        for i in range(warm_up + repetitions):
            for who in _rotated(list(repeats), i):
                seconds = _once(repeats[who])
                if i >= warm_up:
                    contestants[who]["repetitions"].append(seconds)
    ours = contestants[GDFX]["repetitions"]
    for who in repeats:
        record = contestants[who]
        theirs = record["repetitions"]
        always = [kind for kind in theirs[0] if all(kind in seconds for seconds in theirs)]
        record["median"] = {kind: float(np.median([seconds[kind] for seconds in theirs])) for kind in always}
        if who != GDFX:
            record["ratio"] = {kind: _ratio(theirs, ours, kind) for kind in task.kinds}
        elif task.limits:
            record["limits"] = task.limits
        if who in task.targets:
            record["target"] = task.targets[who]
    return {"about": task.about, "unit": task.unit, "sizes": task.sizes, "contestants": contestants}


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def _once(repeat: Repeat) -> dict[str, float]:
    gc.unfreeze()
    gc.collect()
    _spent.clear()
    seconds = repeat()
    return _spent | seconds  # what a contestant timed itself leaves out what was around it


def _ratio(theirs: list[dict[str, float]], ours: list[dict[str, float]], kind: str) -> dict[str, float] | None:
    """Theirs to ours, paired by repetition: the median and the quartiles."""
    if any(kind not in seconds for seconds in (*theirs, *ours)):
        return None
    ratios = [t[kind] / o[kind] for t, o in zip(theirs, ours, strict=True)]
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """The machine and the versions, for the record; packages that are not installed are left out."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "platform": device.platform,
        "device": device.device_kind,
        "versions": versions,
    }


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


class Subprocess:
    """A contestant in a process of its own, which lives on between repetitions.

    It writes a line of JSON unasked, what there is to record of it or `{"skipped": reason}`, and then, for each line
    that it reads, one with the seconds of a repetition. It ends when there is no more to read.
    """

    def __init__(self, command: Sequence[str]):
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", bufsize=1
            )
        except OSError as error:
            raise Skipped(f"{command[0]} does not start: {error.strerror}") from error
        try:
            self.about = self._read()
            if "skipped" in self.about:
                raise Skipped(self.about["skipped"])
        except BaseException:
            self.close()
            raise

    def __call__(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with status {self._process.wait()}; see its errors above")
        return json.loads(line)
