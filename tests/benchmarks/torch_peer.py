"""The PyTorch contestants: a process of their own, in an environment without JAX; see `runner.Subprocess`."""

import importlib
import json
import sys
import time
from typing import Any

from .data import fashion


def main() -> None:
    """Trains once for each line that comes in."""
    request = json.loads(sys.argv[1])
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        print(json.dumps({"skipped": f"{sys.executable} has no PyTorch"}), flush=True)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(request["cores"])
    images, labels, _ = fashion(request["examples"])
    x, y = torch.tensor(images, device=device), torch.tensor(labels, device=device).long()
    if request["model"] == "cnn":
        x = x.reshape(-1, 1, 28, 28)
    torch.manual_seed(0)
    print(json.dumps({"torch": torch.__version__, "device": device}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(train(torch, request, x, y, device)), flush=True)


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


def train(torch: Any, request: dict[str, Any], x: Any, y: Any, device: str) -> dict[str, float]:
    """The seconds of a step and of all of it; the examples are gathered by a permutation of each epoch."""

    def done() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    batch_size, steps = request["batch_size"], len(x) // request["batch_size"]
    began = done()
    model = build(torch, request["model"]).to(device)
    rate, decay = request["options"]["learning_rate"], request["options"]["weight_decay"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    loss_fn = torch.nn.CrossEntropyLoss()
    losses = []
    started = done()
    for _ in range(request["epochs"]):
        order = torch.randperm(len(x), device=device)
        for rows in order[: steps * batch_size].split(batch_size):
            optimizer.zero_grad()
            loss = loss_fn(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    last = torch.stack(losses)[-1].item()
    ended = done()
    return {"run": (ended - started) / (request["epochs"] * steps), "total": ended - began, "loss": last}


if __name__ == "__main__":
    main()
