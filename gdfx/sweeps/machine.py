"""What a sweep runs on: the threads, the memory and the processes that its members are divided over."""

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")

CHUNK = 2**26
"""The most bytes that a process tells the others at once, as they pass through the memory of the devices."""
SETTINGS = (
    "enable_x64",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
    "default_matmul_precision",
    "default_prng_impl",
    "debug_nans",
    "log_compiles",
)
"""What users set by `with jax.enable_x64(True):` and such: JAX forgets it in other threads."""


@dataclass(frozen=True)
class Machine:
    """What there is to train on; all processes see the same numbers."""

    devices: list[Any]  # of this process: the device of each thread
    threads: int  # of all processes
    side: int  # threads that share a device, at most
    limit: int | None  # bytes of each device that may be taken; None where nothing is known of it

    @classmethod
    def here(cls, memory: int | None = None) -> "Machine":
        """A thread for each local device, or on a single CPU device one for each core.

        Without `memory`, of each device 80 % may be taken of what it has for JAX, or, where it does not tell, as CPUs,
        half of what is free, divided by the devices that share it.
        """
        if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int | float) or memory < 1):
            raise ValueError(f"memory is {memory!r}, expected a number of bytes for each device, at least 1")
        devices = jax.local_devices()
        limit = _default_limit(devices) if memory is None else int(memory)
        if len(devices) == 1 and devices[0].platform == "cpu":
            devices = devices * (
                len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            )
        told = together((len(devices), devices.count(devices[0]), limit))
        limits = [limit for *_, limit in told if limit is not None]
        return cls(devices, sum(n for n, *_ in told), max(side for _, side, _ in told), min(limits, default=None))


def _default_limit(devices: list[Any]) -> int | None:
    told = (devices[0].memory_stats() or {}).get("bytes_limit")
    if told:
        return int(0.8 * told)
    free = _free()
    return None if free is None else free // 2 // len(devices)


def _free() -> int | None:
    """The bytes of memory that this process could still take."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    try:  # a container may have less than the machine
        most, used = ((Path("/sys/fs/cgroup") / f"memory.{name}").read_text() for name in ("max", "current"))
        return free if most.strip() == "max" else min(free, max(0, int(most) - int(used)))
    except OSError:
        return free


def fitting(size: int, machine: Machine, need: Callable[[int], int], shared: int) -> tuple[int, list[Any]]:
    """How many members, of up to `size`, fit into the memory if each thread has so many; and the threads, all or fewer.

    `need(members)` is the bytes that a thread takes, `shared` of them those that all on a device have together. Raises
    `MemoryError` where not even one member fits.
    """
    devices, limit = machine.devices, machine.limit
    while limit is not None:
        taken = need(size)
        fit = (limit - shared) // max(taken - shared, 1)
        if fit >= machine.side:
            break
        if size == 1 and fit >= 1:
            devices = [device for i, device in enumerate(devices) if devices[:i].count(device) < fit]
            break
        if size == 1:
            raise MemoryError(
                f"sweep: one member needs {_told(taken)} of memory, for its params, the state of its optimizer, the "
                f"data and what a step computes, but memory is {_told(limit)}: give more, or make the model, "
                "the batches or the number of seeds smaller"
            )
        size //= 2
    return size, devices


def _told(size: int) -> str:
    units = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
    return next((f"{size / scale:.3g} {unit}" for unit, scale in units.items() if size >= scale), f"{size} bytes")


def together(value: T) -> list[T]:
    """What each process gives here, by process: all of them have to call this, in the same order."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    mine = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = np.asarray(process_allgather(np.array([len(mine)], np.int32))).reshape(-1)
    mine = np.pad(mine, (0, sizes.max() - len(mine)))
    # As bytes: exactly what was there, and one program for leaves of any shapes.
    parts = [np.asarray(process_allgather(mine[i : i + CHUNK])) for i in range(0, len(mine), CHUNK)]
    told = np.concatenate(parts, axis=1)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(told, sizes, strict=True)]


def inherited() -> Callable[[], ExitStack]:
    """Gives the settings of JAX that are in force here to the thread that enters what it returns."""
    values = {name: getattr(jax.config, f"jax_{name}") for name in SETTINGS}

    def settings() -> ExitStack:
        with ExitStack() as entered:
            for name, value in values.items():
                entered.enter_context(getattr(jax, name)(value))
            return entered.pop_all()

    return settings


def spread(jobs: list[T], do: Callable[[T, Any], Any], devices: list[Any]) -> list[Any]:
    """`do(job, device)` of each job, made side by side by a thread for each of `devices`, and by all processes.

    All processes are to call this with the same jobs. An error in one of them is raised in all.
    """
    free: SimpleQueue[Any] = SimpleQueue()
    for device in devices:
        free.put(device)

    settings = inherited()

    def turn(job: T) -> Any:
        device = free.get()
        try:
            with settings():
                return do(job, device)
        finally:
            free.put(device)

    processes = jax.process_count()
    done, error = [], None
    with ThreadPoolExecutor(len(devices)) as pool:
        try:
            done = list(pool.map(turn, jobs[jax.process_index() :: processes]))
        except Exception as raised:
            if processes == 1:
                raise
            error = raised
    told = together((done, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for process, (_, message) in enumerate(told):
        if message is not None:
            raise RuntimeError(f"sweep: in process {process}: {message}")
    return [told[i % processes][0][i // processes] for i in range(len(jobs))]
