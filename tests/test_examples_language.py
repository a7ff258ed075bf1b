"""The language model runs as a script, learns, and shows what it writes."""

import re

import pytest
from test_examples import load, run

SMALL = ["--width", "32", "--depth", "1", "--length", "32", "--batch-size", "16", "--characters", "60000"]


def check(output, characters):
    """That it has learned; its two texts."""
    found = re.search(r"^([\d,]+) characters, \d+ different ones; (\d+) steps$", output, re.MULTILINE)
    assert found is not None
    assert found[1] == f"{characters:,}"
    losses = dict(re.findall(r"^step +(\d+): ([\d.]+) bits per character$", output, re.MULTILINE))
    assert next(iter(losses)) == "0"
    assert [*losses][-1] == found[2]
    before, after = (float(loss) for loss in re.findall(r"^held-out loss ([\d.]+) bits", output, re.MULTILINE))
    assert 5 < before < 8
    assert 2 < after < 4.5
    first, second = re.findall(r"it writes:\n-{72}\n(.*?)\n-{72}\n", output, re.DOTALL)
    assert len(first) == len(second) == 400
    assert second.count(" ") + second.count("e") > 1.5 * (first.count(" ") + first.count("e"))


def test_language_model():
    check(run("language_model", *SMALL, "--epochs", 2), 60_000)


def test_texts(tmp_path):
    load_text = load("language_model").load_text
    path = tmp_path / "x.txt"
    path.write_text("Il était une fois.\n", encoding="utf-8")
    assert load_text(path) == "Il était une fois.\n"
    assert len(load_text(None)) > 300_000


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--characters 0", "--characters"),
        ("--epochs 0", "--epochs"),
        ("--batch-size -1", "--batch-size"),
        ("--length 0", "--length"),
        ("--width 33", "--width"),
        ("--depth 0", "--depth"),
        ("--learning-rate nan", "--learning-rate"),
        ("--text missing.txt", "--text"),
    ],
)
def test_wrong_flags(flags, named, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["language_model.py", *flags.split()])
    with pytest.raises(SystemExit) as stopped:
        load("language_model").main()
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_too_short_a_text_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["language_model.py", "--characters", "500"])
    with pytest.raises(SystemExit, match="the text has 500 characters"):
        load("language_model").main()
