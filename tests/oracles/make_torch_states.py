"""Writes tests/oracles/states/torch.npz: `state_dict()`s of PyTorch's optimizers in the middle of a run, and its end.

Run by hand, where make_golden.py runs: `python tests/oracles/make_torch_states.py`. Params and gradients are those of
make_golden.py, in float64. Of each case there are the params after step 50, `0/50/w`, and after step 100, `0/100/w`,
and the state after step 50, `0/state/1/exp_avg` for the param number 1, in the order w, b. The JSON string `meta` has
the expressions for the optimizer in both libraries, and the learning rate.
"""

import json
from pathlib import Path

import numpy as np
import torch
from make_golden import inputs

CASES = [
    ("SGD", {"lr": 0.1, "momentum": 0.9}, "sgd(0.1, 0.9)"),
    ("SGD", {"lr": 0.1}, "sgd(0.1)"),
    (
        "SGD",
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        "chain(add_decayed_weights(0.1, mode='coupled'), sgd(0.05, 0.9, nesterov=True))",
    ),
    ("Adam", {"lr": 0.01}, "adam(0.01)"),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}, "adamw(0.01, weight_decay=0.1)"),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9}, "rmsprop(0.01, eps_in_sqrt=False)"),
    (
        "RMSprop",
        {"lr": 0.01, "alpha": 0.9, "centered": True, "momentum": 0.9},
        "rmsprop(0.01, eps_in_sqrt=False, centered=True, momentum=0.9)",
    ),
    ("Adagrad", {"lr": 0.1, "eps": 0.0}, "adagrad(0.1, 0.0, 0.0)"),
]


def main() -> None:
    torch.set_default_dtype(torch.float64)
    data = inputs()
    arrays: dict[str, np.ndarray] = {}
    for i, (name, options, _) in enumerate(CASES):
        params = {k: torch.nn.Parameter(torch.tensor(data[f"params/{k}"])) for k in ("w", "b")}
        opt = getattr(torch.optim, name)(list(params.values()), **options, foreach=False)
        for step in range(1, 101):
            for k, p in params.items():
                p.grad = torch.tensor(data[f"grads/{k}"][step - 1])
            opt.step()
            if step in (50, 100):
                arrays |= {f"{i}/{step}/{k}": p.detach().numpy().copy() for k, p in params.items()}
            if step == 50:
                for number, slots in opt.state_dict()["state"].items():
                    arrays |= {
                        f"{i}/state/{number}/{k}": torch.as_tensor(v).numpy().copy()
                        for k, v in slots.items()
                        if v is not None
                    }
    cases = [{"theirs": name, "options": options, "optimizer": ours} for name, options, ours in CASES]
    path = Path(__file__).with_name("states") / "torch.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays, meta=np.array(json.dumps({"version": torch.__version__, "cases": cases})))
    print(f"{path}: {len(CASES)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
