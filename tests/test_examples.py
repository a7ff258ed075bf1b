"""The examples run as scripts, do what they say, and refuse wrong flags."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from matplotlib.image import imread

import gdfx

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))

# One row for each flag and way of being wrong: the example, the flags, and the flag that the message names.
LONGER = {"image_classification": 140, "language_model": 115, "regression": 110}  # lines

WRONG = [
    ("compare_optimizers", "--optimizers adam nonesuch", "--optimizers"),
    ("compare_optimizers", "--optimizers clip", "--optimizers"),
    ("compare_optimizers", "--rates 1", "--rates"),
    ("compare_optimizers", "--seeds 0", "--seeds"),
    ("compare_optimizers", "--epochs 0", "--epochs"),
    ("compare_optimizers", "--output x.jpeg", "--output"),
    ("finetune", "--images 1", "--images"),
    ("finetune", "--epochs 0", "--epochs"),
    ("finetune", "--seeds 0", "--seeds"),
    ("gradient_descent", "--steps 0", "--steps"),
    ("gradient_descent", "--batch-size 151", "--batch-size"),
    ("gradient_descent", "--seed -1", "--seed"),
    ("gradient_descent", "--output missing/x.png", "--output"),
    ("hypergradient", "--learning-rate 0", "--learning-rate"),
    ("hypergradient", "--learning-rate nan", "--learning-rate"),
    ("hypergradient", "--steps -3", "--steps"),
    ("hypergradient", "--steps 2.5", "--steps"),
    ("hypergradient", "--outer-steps 0", "--outer-steps"),
    ("hypergradient", "--outer-rate inf", "--outer-rate"),
    ("image_classification", "--epochs 0", "--epochs"),
    ("image_classification", "--output x.jpeg", "--output"),
    ("language_model", "--epochs 0", "--epochs"),
    ("language_model", "--width 33", "--width"),
    ("lr_sweep", "--optimizer nonesuch", "--optimizer"),
    ("lr_sweep", "--min-rate 0", "--min-rate"),
    ("lr_sweep", "--min-rate 2 --max-rate 1", "--max-rate"),
    ("lr_sweep", "--max-rate inf", "--max-rate"),
    ("lr_sweep", "--rates 1", "--rates"),
    ("lr_sweep", "--rates many", "--rates"),
    ("lr_sweep", "--seeds 0", "--seeds"),
    ("lr_sweep", "--epochs 0", "--epochs"),
    ("lr_sweep", "--batch-size 2000", "--batch-size"),
    ("lr_sweep", "--output x.jpeg", "--output"),
    ("quickstart", "--learning-rate -1", "--learning-rate"),
    ("quickstart", "--epochs 0", "--epochs"),
    ("quickstart", "--nonesuch 1", "--nonesuch"),
    ("regression", "--data nonesuch", "--data"),
    ("regression", "--epochs 0", "--epochs"),
    ("carbon_dioxide", "--until 1950", "--until"),
    ("sweep_report", "--optimizers sgd", "--optimizers"),
    ("sweep_report", "--members 0", "--members"),
    ("sweep_report", "--steps 9", "--steps"),
    ("sweep_report", "--output x.htm", "--output"),
    ("with_equinox", "--epochs 0", "--epochs"),
    ("with_flax", "--epochs 0", "--epochs"),
]


def run(name, *flags):
    """What the example prints; it runs with this gdfx, this compilation cache, and as strictly as the tests."""
    path = [str(Path(gdfx.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "MPLBACKEND": "Agg",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": os.pathsep.join(path),
    }
    if jax.config.jax_compilation_cache_dir:
        environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    warnings = ["error", *(f"ignore:Error {verb} persistent compilation cache" for verb in ("reading", "writing"))]
    command = [sys.executable, *(f"-W{warning}" for warning in warnings), str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(
        [*command, *map(str, flags)], env=environment, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(name):
    """The example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_picture(path, width, height):
    pixels = imread(path)
    assert pixels.shape[0] > height
    assert pixels.shape[1] > width
    for part in (pixels[:, : width // 2, :3], pixels[:, width // 2 :, :3]):
        assert part.std() > 0.05, "the picture is blank"


def rows(text, header):
    """The lines of the table under the line that starts with `header`, cut into cells."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith(header))
    table = []
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        table.append(re.split(r"\s{2,}", line.strip()))
    return table


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_lr_sweep(optimizer, tmp_path):
    picture = tmp_path / "x.png"
    flags = ["--optimizer", optimizer, "--rates", 4, "--seeds", 2, "--epochs", 3, "--output", picture]
    text = run("lr_sweep", *flags)
    header, line, *table = text.splitlines()[:6]
    assert header.split() == ["member", "learning_rate", "train_loss", "test_accuracy", "status"]
    assert set(line) == {"-", " "}
    rates = [float(row.split()[1]) for row in table]
    assert sorted(rates) == pytest.approx([1e-4, 4.642e-3, 0.2154, 10], rel=1e-3)
    assert [row.endswith("  best") for row in table] == [True, False, False, False]
    found = re.search(r"^best optimizer: (.*)$", text, re.MULTILINE)
    assert found is not None
    best = eval(found[1], dict(vars(gdfx)))
    assert type(best) is vars(gdfx)[optimizer]
    assert repr(best) == found[1]
    assert best.learning_rate == pytest.approx(rates[0], rel=1e-3)

    found = re.search(r"^its mean test accuracy: (.*)%$", text, re.MULTILINE)
    assert found is not None
    assert 85 < float(found[1]) <= 100
    assert re.search(r"^[\d.]+ s to compile, [\d.]+ s to run, [\d.]+ s in total$", text, re.MULTILINE)
    assert f"wrote {picture}" in text
    check_picture(picture, width=1000, height=300)


def test_lr_sweep_knows_the_usual_optimizers():
    known = load("lr_sweep").OPTIMIZERS
    assert known.keys() >= {"sgd", "rmsprop", "adagrad", "adam", "adamw"}
    for name, optimizer in known.items():
        assert type(optimizer(learning_rate=0.1)).__name__ == name


def test_quickstart():
    text = run("quickstart", "--epochs", 5)
    assert text.startswith("FitResult(status='epochs', steps=220, loss=")
    found = re.search(r"^test accuracy: (.*)%$", text, re.MULTILINE)
    assert found is not None
    assert 90 < float(found[1]) <= 100


def test_compare_optimizers(tmp_path):
    picture = tmp_path / "x.png"
    flags = ["--rates", 4, "--seeds", 2, "--epochs", 3, "--output", picture]
    text = run("compare_optimizers", "--optimizers", "sgd", "adam", "adagrad", *flags)
    table = {name: numbers for name, *numbers in rows(text, "optimizer") if numbers}
    assert list(table) == ["sgd", "adam", "adagrad"]
    for name, (rate, loss, valid_loss, accuracy, size) in table.items():
        assert float(rate) in (1e-4, 3.2e-3, 0.1, 3.2)
        assert 0 < float(loss) < 1
        assert 0 < float(valid_loss) < 1
        assert 80 < float(accuracy.rstrip("%")) <= 100
        assert float(size) == {"sgd": 0, "adam": 8, "adagrad": 4}[name]
    assert f"wrote {picture}" in text
    check_picture(picture, width=1000, height=600)


def test_compare_optimizers_has_them_all():
    for name in load("compare_optimizers").OPTIMIZERS.split():
        assert issubclass(getattr(gdfx, name), gdfx.Optimizer), name


def test_sweep_report(tmp_path):
    page = tmp_path / "x.html"
    flags = ["--data", tmp_path, "--optimizers", "adamw", "lion", "--members", 2, "--steps", 90, "--output", page]
    text = run("sweep_report", *flags)
    told, header, _, first, *others = text.splitlines()[: 3 + 2 * 2]
    assert told.startswith(f"{tmp_path} has no Fashion-MNIST")
    names = header.split()
    assert {"optimizer", "learning_rate", "weight_decay", "accuracy", "loss", "status"} <= set(names)
    assert first.endswith("  best")
    assert len([row for row in others if re.search(r"culled at [1-9]\d*$", row)]) == 3

    found = re.search(r"^best optimizer: (.*)$", text, re.MULTILINE)
    assert found is not None
    best = eval(found[1], dict(vars(gdfx)))
    assert repr(best) == found[1]
    assert best.learning_rate == pytest.approx(float(first.split()[names.index("learning_rate")]), rel=1e-3)
    assert 0 < best.weight_decay <= 1
    found = re.search(r"^its accuracy on the test images: (.*)%$", text, re.MULTILINE)
    assert found is not None
    assert 60 < float(found[1]) <= 100
    assert f"wrote {page}" in text
    html = page.read_text(encoding="utf-8")
    assert html.count("<tr") == 1 + 2 * 2
    assert html.count("<svg") == 1


def test_sweep_report_compares_eight():
    names = load("sweep_report").NAMES
    assert len(set(names)) == 8
    for name in names:
        optimizer = getattr(gdfx, name)(learning_rate=0.1, weight_decay=0.2)
        assert type(optimizer).__name__ == name


def test_gradient_descent(tmp_path):
    picture = tmp_path / "x.png"
    text = run("gradient_descent", "--output", picture)
    table = {name: [float(n) for n in numbers] for name, *numbers in rows(text, "optimizer")[:-1]}
    (smallest,) = table.pop("least squares")
    assert len(table) == 6
    for name, (loss, above) in table.items():
        assert above == pytest.approx(loss - smallest, abs=2e-6)
        assert -1e-6 < above < 0.05, name
    for name in "Gradient descent", "Momentum":
        assert table[name][1] < 1e-4
    assert f"wrote {picture}" in text
    check_picture(picture, width=1200, height=700)


def test_hypergradient():
    text = run("hypergradient")
    _, shown, *_ = re.findall(r"^adam\(.*\)$", text, re.MULTILINE)
    derivatives = dict(item.split("=") for item in shown[len("adam(") : -1].split(", "))
    compared = rows(text, "hyperparameter")
    assert [name for name, *_ in compared] == ["learning_rate", "b1", "b2", "eps"]
    for name, derivative, difference in compared:
        assert float(derivative) == pytest.approx(float(derivatives[name]), abs=1e-8)
        assert float(derivative) == pytest.approx(float(difference), rel=1e-3)
        assert float(derivative) != 0

    steps = rows(text, "outer step")
    assert [int(i) for i, _, _ in steps] == list(range(11))
    losses = [float(loss) for _, _, loss in steps]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.85 * losses[0]


def test_finetune():
    text = run("finetune", "--seeds", 2, "--epochs", 60)
    scratch, frozen, along = ([cell.replace(",", "") for cell in row] for row in rows(text, "odd or even"))
    assert [row[0] for row in (scratch, frozen, along)] == ["from scratch", "frozen body", "layer-wise rates"]
    accuracy = {row[0]: float(row[1].rstrip("%")) for row in (scratch, frozen, along)}
    assert accuracy["frozen body"] > accuracy["from scratch"] > 60
    assert accuracy["layer-wise rates"] > accuracy["from scratch"]
    assert along[1] != along[2]  # the averaged params are others
    # Of the frozen body nothing is in the state: 2 moments of 2 * 65 numbers, and 2 counts.
    assert int(frozen[3]) == 4 * (2 * 2 * 65 + 2)
    table = [row for row in rows(text[text.index("frozen body") :], "path") if row[0] != "shared"]
    assert {row[0]: row[-1] for row in table if "frozen" in row} == {
        f"layer_{i}/{name}": "0" for i in (0, 1) for name in ("bias", "kernel")
    }


@pytest.mark.parametrize(("name", "flags", "named"), WRONG, ids=lambda value: str(value))
def test_wrong_flags(name, flags, named, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags.split()])
    with pytest.raises(SystemExit) as stopped:
        load(name).main()
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_the_defaults(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        load(name).main()
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert " ".join(text.split()).count("(default: ") == text.count("\n  --")


@pytest.mark.parametrize("name", NAMES)
def test_is_short_and_says_how_to_run_it(name):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGER.get(name, 100)
    assert f"    python examples/{name}.py\n" in (load(name).__doc__ or "")
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_examples*.py"))
    assert re.search(rf'^(def test_{name}|@pytest.*"{name}")', tests, re.MULTILINE)
