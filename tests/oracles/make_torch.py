"""Writes tests/oracles/torch.npz: trajectories of torch.optim, the golden data of test_golden.py.

Run by hand, in an environment that has torch and NumPy (the tests need neither torch nor this):

    pip install torch==2.13.0 numpy
    python tests/oracles/make_torch.py

Everything is float64 on the CPU. The 100 gradients are drawn once and do not depend on the params,
so that rounding differences do not feed back and two right implementations agree to about 1e-14.

The file holds arrays, and one JSON string, `meta`:

    init/w (4, 3), init/b (3,)              params before the first step
    grads/w (100, 4, 3), grads/b (100, 3)   the gradient of each step
    0/w (6, 4, 3), 0/b (6, 3), 1/w ...      per case: params after each of meta["steps"] steps
    meta                                    {"torch": version, "steps": [...], "cases": [...]}

Each case names a gdfx constructor and its keyword arguments. They are optax's, and differ from
torch's so:

- names: lr is learning_rate, betas are b1 and b2, RMSprop's alpha is decay;
- SGD and RMSprop: torch's momentum=0 (none) is momentum=None;
- RMSprop: torch divides by sqrt(nu) + eps, which is eps_in_sqrt=False;
- Adagrad: torch divides by sqrt(sum) + eps, optax by sqrt(sum + eps). The cases have eps=0, where
  they agree (no gradient here is 0, so no denominator is either);
- AdamW: torch multiplies params by 1 - lr * weight_decay, optax adds weight_decay * params to the
  update before it is scaled by the learning rate: the same number, rounded differently.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

STEPS = [1, 2, 10, 25, 50, 100]

# (torch optimizer, its arguments, gdfx constructor, its arguments)
CASES: list[tuple[type[torch.optim.Optimizer], dict[str, Any], str, dict[str, Any]]] = []


def sgd(lr: float, momentum: float = 0.0, nesterov: bool = False) -> None:
    theirs = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
    ours = {"learning_rate": lr, "momentum": momentum or None, "nesterov": nesterov}
    CASES.append((torch.optim.SGD, theirs, "sgd", ours))


def rmsprop(lr: float, alpha: float, eps: float, centered: bool = False, momentum: float = 0.0) -> None:
    theirs = {"lr": lr, "alpha": alpha, "eps": eps, "centered": centered, "momentum": momentum}
    ours = {
        "learning_rate": lr,
        "decay": alpha,
        "eps": eps,
        "eps_in_sqrt": False,
        "centered": centered,
        "momentum": momentum or None,
    }
    CASES.append((torch.optim.RMSprop, theirs, "rmsprop", ours))


def adagrad(lr: float, initial_accumulator_value: float) -> None:
    same = {"initial_accumulator_value": initial_accumulator_value, "eps": 0.0}
    theirs = {"lr": lr, "lr_decay": 0.0, **same}
    CASES.append((torch.optim.Adagrad, theirs, "adagrad", {"learning_rate": lr, **same}))


def adam(lr: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> None:
    theirs = {"lr": lr, "betas": (b1, b2), "eps": eps}
    ours = {"learning_rate": lr, "b1": b1, "b2": b2, "eps": eps}
    CASES.append((torch.optim.Adam, theirs, "adam", ours))


def adamw(lr: float, weight_decay: float, b1: float = 0.9, b2: float = 0.999) -> None:
    eps = 1e-8
    theirs = {"lr": lr, "betas": (b1, b2), "eps": eps, "weight_decay": weight_decay}
    ours = {"learning_rate": lr, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}
    CASES.append((torch.optim.AdamW, theirs, "adamw", ours))


sgd(0.1)
sgd(0.01)
sgd(0.1, momentum=0.9)
sgd(0.01, momentum=0.5)
sgd(0.1, momentum=0.9, nesterov=True)
sgd(0.01, momentum=0.5, nesterov=True)
rmsprop(0.01, alpha=0.99, eps=1e-8)
rmsprop(0.1, alpha=0.9, eps=1e-3)
rmsprop(0.01, alpha=0.99, eps=1e-8, centered=True)
rmsprop(0.1, alpha=0.9, eps=1e-3, centered=True)
rmsprop(0.01, alpha=0.99, eps=1e-8, momentum=0.9)
rmsprop(0.1, alpha=0.9, eps=1e-3, centered=True, momentum=0.5)
adagrad(0.01, 0.0)
adagrad(0.5, 0.0)
adagrad(0.01, 0.1)
adagrad(0.5, 0.1)
adam(1e-3)
adam(0.1, b1=0.8, b2=0.95, eps=1e-6)
adamw(1e-3, weight_decay=1e-2)
adamw(0.1, weight_decay=0.1, b1=0.8, b2=0.95)


def trajectory(
    optimizer: type[torch.optim.Optimizer],
    kwargs: dict[str, Any],
    init: dict[str, np.ndarray],
    grads: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Params after each of STEPS steps, stacked."""
    params = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in init.items()}
    # The plain loop over params is torch's reference; foreach and fused are its fast paths.
    opt = optimizer(params.values(), foreach=False, **kwargs)  # pyright: ignore[reportCallIssue]
    kept: dict[str, list[np.ndarray]] = {k: [] for k in params}
    for step in range(max(STEPS)):
        for k, p in params.items():
            p.grad = torch.tensor(grads[k][step])
        opt.step()
        if step + 1 in STEPS:
            for k, p in params.items():
                kept[k].append(p.detach().numpy().copy())
    return {k: np.stack(v) for k, v in kept.items()}


def main() -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3), "b": (3,)}
    # Leaves of unlike scale: small gradients are where eps and its place count.
    scales = {"w": 1.0, "b": 1e-2}
    init = {k: rng.standard_normal(s) for k, s in shapes.items()}
    grads = {k: scales[k] * rng.standard_normal((max(STEPS), *s)) for k, s in shapes.items()}

    arrays = {f"init/{k}": v for k, v in init.items()}
    arrays |= {f"grads/{k}": v for k, v in grads.items()}
    for i, (optimizer, theirs, _, _) in enumerate(CASES):
        kept = trajectory(optimizer, theirs, init, grads)
        arrays |= {f"{i}/{k}": v for k, v in kept.items()}

    cases = [{"name": name, "kwargs": ours} for _, _, name, ours in CASES]
    meta = {"torch": torch.__version__, "steps": STEPS, "cases": cases}
    path = Path(__file__).with_name("torch.npz")
    np.savez_compressed(path, **arrays, meta=np.array(json.dumps(meta)))
    print(f"{path}: {len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
