"""The PyTorch contestants: a process of their own, in an environment without JAX; see `runner.Subprocess`."""

import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from .data import fashion, normal


def main() -> None:
    """Runs once for each line that comes in."""
    request = json.loads(sys.argv[1])
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        print(json.dumps({"skipped": f"{sys.executable} has no PyTorch"}), flush=True)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(request["cores"])
    torch.manual_seed(0)
    task = train if "model" in request else update
    repeat = task(torch, request, device)
    print(json.dumps({"torch": torch.__version__, "device": device}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(repeat()), flush=True)


def clock(torch: Any, device: str) -> float:
    """The time, when all is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def build(torch: Any, name: str) -> Any:
    """The model, initialized as in `gdfx.models`."""
    nn = torch.nn
    if name == "mlp":
        layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)]
    else:
        first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers = [*first, *second, nn.Flatten(), nn.Linear(32 * 7 * 7, 10)]
    *hidden, last = (layer for layer in layers if hasattr(layer, "weight"))
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    nn.init.xavier_normal_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers)


def train(torch: Any, request: dict[str, Any], device: str) -> Callable[[], dict[str, float]]:
    """Trains; tells the seconds of a step and of all. The examples are gathered by a permutation of each epoch."""
    images, labels, _ = fashion(request["examples"])
    x, y = torch.tensor(images, device=device), torch.tensor(labels, device=device).long()
    if request["model"] == "cnn":
        x = x.reshape(-1, 1, 28, 28)
    batch_size, steps = request["batch_size"], len(x) // request["batch_size"]
    rate, decay = request["options"]["learning_rate"], request["options"]["weight_decay"]

    def repeat() -> dict[str, float]:
        began = clock(torch, device)
        model = build(torch, request["model"]).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
        loss_fn = torch.nn.CrossEntropyLoss()
        losses = []
        started = clock(torch, device)
        for _ in range(request["epochs"]):
            order = torch.randperm(len(x), device=device)
            for rows in order[: steps * batch_size].split(batch_size):
                optimizer.zero_grad()
                loss = loss_fn(model(x[rows]), y[rows])
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        last = torch.stack(losses)[-1].item()
        ended = clock(torch, device)
        return {"run": (ended - started) / (request["epochs"] * steps), "total": ended - began, "loss": last}

    return repeat


def update(torch: Any, request: dict[str, Any], device: str) -> Callable[[], dict[str, float]]:
    """Updates params by gradients that stay the same; tells the seconds of the first step and of those that follow."""

    def repeat() -> dict[str, float]:
        copied = lambda seed: [torch.tensor(x, device=device) for x in normal(request["shapes"], seed)]
        params, grads = copied(0), copied(1)  # in memory of PyTorch, not of NumPy, which asks for huge pages
        before = params[0].clone()
        for param, grad in zip(params, grads, strict=True):
            param.requires_grad_().grad = grad
        times = [clock(torch, device)]
        step = updater(torch, request["optimizer"], params)
        times.append(clock(torch, device))
        for queued in (1, *[request["queued"]] * request["samples"]):
            for _ in range(queued):
                step()
            times.append(clock(torch, device))
        began, started, first, *_ = times
        run = statistics.median(b - a for a, b in pairwise(times[2:])) / request["queued"]
        moved = (params[0].detach() - before).norm().item()
        seconds = {"init": started - began, "first_step": first - started, "first": first - started, "run": run}
        return seconds | {"total": times[-1] - began, "moved": moved}

    return repeat


def updater(torch: Any, name: str, params: list[Any]) -> Callable[[], None]:
    """The step of an optimizer of `updates.py`."""
    clip = lambda: torch.nn.utils.clip_grad_norm_(params, 1.0)
    if name == "sgd":
        return torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True).step
    if name == "adam":
        return torch.optim.Adam(params, lr=1e-3, fused=True).step
    if name == "adamw":
        return torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4, fused=True).step
    if name == "clip_adamw":
        optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4, fused=True)

        def step() -> None:
            clip()
            optimizer.step()

        return step
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-3, fused=True)
    rate = lambda t: (t + 1) / 101 if t < 100 else 0.5 + 0.5 * math.cos(math.pi * (t - 100) / 9900)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    averages = [p.detach().clone() for p in params]
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)

    def recipe() -> None:
        if torch.isfinite(clip()):
            optimizer.step()
            schedule.step()
            average(averages, params, None)

    return recipe


if __name__ == "__main__":
    main()
