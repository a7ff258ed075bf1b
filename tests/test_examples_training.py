"""The examples of training run as scripts and do what they say."""

import gzip
import re

import numpy as np
import pytest
from test_examples import check_picture, load, run


def percentage(text, label):
    found = re.search(rf"{label}:? +([\d.]+)%$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1])


def test_image_classification_of_digits(tmp_path):
    picture = tmp_path / "x.png"
    text = run("image_classification", "--data", tmp_path / "missing", "--epochs", 4, "--output", picture)
    assert "scikit-learn's digits instead" in text
    assert "stopped after 80 steps: all epochs were run" in text
    by_class = [percentage(text, f"^{digit}") for digit in range(10)]
    assert min(by_class) <= percentage(text, "test accuracy") <= max(by_class)
    assert percentage(text, "test accuracy") > 88
    assert f"wrote {picture}" in text
    check_picture(picture, width=1500, height=900)


@pytest.fixture
def clothes(tmp_path):
    """Files like those of Fashion-MNIST, whose classes are easily told apart: each lights up a row of its own."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 800), ("t10k", 60)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = rng.integers(0, 60, (n, 28, 28), np.uint8)
        images[np.arange(n), 2 * labels + 4] = 255
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes(), 1))
    return tmp_path


def test_image_classification_of_clothes(clothes):
    picture = clothes / "x.png"
    text = run("image_classification", "--data", clothes, "--epochs", 3, "--output", picture)
    assert "digits" not in text
    assert "stopped after 33 steps: all epochs were run" in text
    assert percentage(text, "^trousers") > 50
    assert percentage(text, "test accuracy") > 80
    check_picture(picture, width=1500, height=900)


def test_image_classification_reads_idx_files(clothes):
    train, test, names = load("image_classification").load(clothes)
    for (x, y), n in ((train, 800), (test, 60)):
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((n, 28, 28, 1), np.uint8, (n,), np.int32)
        np.testing.assert_array_equal(x[..., 0].mean(2).argmax(1), 2 * y + 4)
    assert len(names) == 10


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"\x89PNG", "expected 0, 0, 8"), (bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2]), "cannot reshape")],
    ids=["another kind", "cut short"],
)
def test_image_classification_refuses_other_files(content, complaint, tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=complaint):
        load("image_classification").read_idx(tmp_path / "x.gz")


def test_regression(tmp_path):
    picture = tmp_path / "x.png"
    text = run("regression", "--data", "wine", "--epochs", 40, "--output", picture)
    errors = {name: float(re.search(rf"^{name} +([\d.]+)$", text, re.M)[1]) for name in ("mean", "ridge", "networks")}
    assert 0 < errors["networks"] < errors["mean"]
    assert errors["ridge"] == pytest.approx(1.11, abs=0.05)
    verdict = re.search(r"^(.*): the networks' error is ([\d.]+) (less|more), give or take ([\d.]+)$", text, re.M)
    assert verdict is not None
    said, difference, more, margin = verdict.groups()
    gain = errors["ridge"] - errors["networks"]
    assert float(difference) * (1 if more == "less" else -1) == pytest.approx(gain, abs=2e-3)
    clear = "the networks are better" if gain > 0 else "ridge regression is better"
    assert said == (clear if float(difference) > float(margin) else "too close to call")
    check_picture(picture, width=900, height=450)


def test_carbon_dioxide(tmp_path):
    picture = tmp_path / "x.png"
    text = run("carbon_dioxide", "--output", picture)
    numbers = re.findall(r"^ *(excess|growth|swing_growth) +([-\d.]+) \+- ([\d.]+)$", text, re.M)
    values, errors = ({row[0]: float(row[i]) for row in numbers} for i in (1, 2))
    # What scipy.optimize.least_squares finds.
    assert values == pytest.approx({"excess": 56.3487, "growth": 0.0224, "swing_growth": 0.0002}, abs=1e-4)
    assert all(0 < errors[name] < abs(values[name]) for name in ("excess", "growth"))
    off = [float(found) for found in re.findall(r"by ([\d.]+) ppm$", text, re.M)]
    assert len(off) == 7
    assert max(off) < 4
    check_picture(picture, width=1300, height=700)


@pytest.mark.parametrize("name", ["with_flax", "with_equinox"])
def test_other_libraries(name):
    text = run(name, "--epochs", 5)
    assert "gdfx.fit: stopped after 220 steps: all epochs were run" in text
    fitted, own = (float(found) for found in re.findall(r"test accuracy ([\d.]+)%$", text, re.MULTILINE))
    assert 90 < fitted <= 100
    assert 90 < own <= 100
