"""`csv_logger` and `json_lines_logger`: whole rows, once each, whatever happens to the run."""

import csv
import json
import math
import subprocess
import sys
import time

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import gdfx
from gdfx.training.loggers import csv_logger, json_lines_logger

LOGGERS = pytest.mark.parametrize("logger", [csv_logger, json_lines_logger])


def told(step, history=None, evaluation=None):
    return gdfx.Report(step, 0, history or {}, evaluation, gdfx.sgd(0.1), 0.0)


def part(first, last, evaluation=None, **more):
    """A report of the steps from `first` to `last`, whose loss is 1 / step."""
    steps = np.arange(first, last + 1)
    return told(last, {"loss": (1 / steps).astype(np.float32), "grad_norm": 2.0 * steps, **more}, evaluation)


def read(logger):
    """The rows of a log, with numbers for all that is there."""
    with open(logger.path, newline="") as file:
        if isinstance(logger, json_lines_logger):
            return [json.loads(line) for line in file]
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        return [{**row, "step": int(row["step"])} for row in rows]


def steps(logger):
    return [row["step"] for row in read(logger)]


@LOGGERS
def test_a_row_a_step_with_the_evaluation_on_its_own(logger, tmp_path):
    log = logger(tmp_path / "new" / "run.log")
    log(told(0, evaluation={"val_loss": 3.0}))
    log(part(1, 3))
    assert steps(log) == [0, 1, 2, 3]  # flushed
    log(part(4, 5, {"val_loss": 0.25}))
    rows = read(log)
    assert rows[0] == {"step": 0, "val_loss": 3.0}
    assert rows[3] == {"step": 3, "loss": 0.33333334, "grad_norm": 6.0}  # the shortest number that is this float32
    assert rows[5] == {"step": 5, "loss": 0.2, "grad_norm": 10.0, "val_loss": 0.25}
    assert len(rows) == 6


@LOGGERS
def test_an_evaluation_that_comes_after_its_row(logger, tmp_path):
    log = logger(tmp_path / "run.log")
    log(told(0, evaluation={"val_loss": 3.0}))
    for first, last in (1, 3), (4, 4):
        log(part(first, last))
        log(told(last, evaluation={"val_loss": 1.0}))
        assert read(log)[-1] == {"step": last, "loss": pytest.approx(1 / last), "grad_norm": 2.0 * last, "val_loss": 1}
    log(part(5, 6))
    assert steps(log) == list(range(7))


@LOGGERS
def test_without_evaluations_there_is_no_row_of_step_0(logger, tmp_path):
    log = logger(tmp_path / "run.log")
    log(told(0))
    log(part(1, 2))
    assert steps(log) == [1, 2]


def test_the_text_of_a_csv_file(tmp_path):
    log = csv_logger(tmp_path / "run.csv")
    log(told(0, {"loss": np.zeros(0, np.float32)}, {"val_loss": math.nan, "val, accuracy": 0.5}))
    log(part(1, 2, done=np.array([False, True]), count=np.array([1, 2], np.int32)))
    text = """step,count,done,grad_norm,loss,val_loss,"val, accuracy"
0,,,,,nan,0.5
1,1,False,2.0,1.0,,
2,2,True,4.0,0.5,,
"""
    assert log.path.read_bytes().decode() == text


def test_the_text_of_json_lines(tmp_path):
    log = json_lines_logger(tmp_path / "run.jsonl")
    log(told(2, {"loss": np.array([np.inf, np.nan]), "done": np.array([False, True])}, {"val_loss": -math.inf}))
    assert log.path.read_bytes().decode() == (
        '{"step": 1, "done": false, "loss": null}\n{"step": 2, "done": true, "loss": null, "val_loss": null}\n'
    )


@LOGGERS
def test_scalars_in_trees_go_by_path_and_what_is_no_real_scalar_is_left_out(logger, tmp_path):
    aux = {
        "accuracy": np.array([0.5, 0.75], ml_dtypes.bfloat16),
        "layers": [{"norm": np.array([1, 2], np.float16)}, None],
        "logits": np.zeros((2, 3)),
        "phase": np.zeros(2, np.complex64),
    }
    log = logger(tmp_path / "run.log")
    log(part(1, 2, aux=aux))
    assert read(log)[1] == {"step": 2, "loss": 0.5, "grad_norm": 4.0, "aux/accuracy": 0.75, "aux/layers/0/norm": 2.0}


@LOGGERS
@pytest.mark.parametrize(
    "history", [{"a/b": np.zeros(1), "a": {"b": np.zeros(1)}}, {"step": np.zeros(1)}], ids=["paths", "step"]
)
def test_two_entries_of_one_name(logger, history, tmp_path):
    with pytest.raises(ValueError, match=r"two entries of the history would be called (a/b|step) in a log"):
        logger(tmp_path / "run.log")(part(1, 1, **history))


@LOGGERS
@pytest.mark.parametrize("name", ["loss", "step"])
def test_an_evaluation_that_is_called_as_the_history_is(logger, name, tmp_path):
    log = logger(tmp_path / "run.log")
    log(told(0, evaluation={name: 1.0}))
    with pytest.raises(ValueError, match=f"evaluate returned {name}, which each step has too: call it val_{name}"):
        log(part(1, 2))
    assert not log.path.exists()


def test_a_new_column(tmp_path):
    log = csv_logger(tmp_path / "run.csv")
    log(part(1, 2))
    before = log.path.read_bytes()
    for each in log, csv_logger(log.path), csv_logger(log.path):  # the last two are of a run that resumes
        with pytest.raises(
            ValueError, match=r"run.csv has no column for val_loss, which step \d has: .* json_lines_log"
        ):
            each(part(3 if each is log else 2, 3, {"val_loss": 1.0}))
        assert log.path.read_bytes() == before
    other = json_lines_logger(tmp_path / "run.jsonl")
    other(part(1, 2))
    other(part(3, 3, {"val_loss": 1.0}))
    assert read(other)[2]["val_loss"] == 1.0


# Resuming.


@pytest.fixture
def old(request, tmp_path):
    """The path of a log of steps 0 to 10, evaluated at 0, 5 and 10."""

    def write(logger):
        log = logger(tmp_path / "run.log")
        log(told(0, evaluation={"val_loss": 3.0}))
        log(part(1, 5, {"val_loss": 2.0}))
        log(part(6, 10, {"val_loss": 1.0}))
        return log.path

    return write


@LOGGERS
@pytest.mark.parametrize("half", ["", "11,0.0", '{"step": 11, "lo'])
@pytest.mark.parametrize("first", [2, 6, 9, 11])
def test_a_run_that_resumes_goes_on_with_the_file(logger, first, half, old, tmp_path):
    path = old(logger)
    whole = path.read_bytes()
    with open(path, "a") as file:
        file.write(half)
    log = logger(path)
    if first == 6:
        log(told(5, evaluation={"val_loss": 2.0}))  # is in the file
    log(part(first, 10, {"val_loss": 1.0}) if first < 11 else part(11, 12))
    log(part(11, 12) if first < 11 else part(13, 13))
    assert steps(log) == list(range(13 if first < 11 else 14))
    if first != 2:
        assert path.read_bytes().startswith(whole)  # the numbers are the same


@LOGGERS
def test_a_run_that_begins_anew_begins_the_file_anew(logger, old):
    path = old(logger)
    before = path.read_bytes()
    log = logger(path)
    log(told(0, evaluation={"other": 1.0}))
    assert path.read_bytes() == before  # until there is something to put in its place
    log(part(1, 2))
    assert [row.get("other") for row in read(log)] == [1.0, None, None]
    log(told(0, evaluation={"third": 1.0}))  # a second run of the same logger
    log(part(1, 1))
    assert [row.get("third") for row in read(log)] == [1.0, None]


@LOGGERS
def test_a_run_that_resumes_may_begin_a_log(logger, tmp_path):
    log = logger(tmp_path / "run.log")
    log(told(7, evaluation={"val_loss": 2.0}))
    log(part(8, 9))
    log(part(10, 10))
    assert steps(log) == [7, 8, 9, 10]
    again = logger(log.path)
    again(part(9, 11))
    assert steps(again) == [7, 8, 9, 10, 11]


@LOGGERS
def test_lost_rows_are_an_error(logger, old):
    path = old(logger)
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"run.log ends with step 10, but the run goes on with step 12: .* lost its end"
    ):
        logger(path)(part(12, 13))
    assert path.read_bytes() == before


@LOGGERS
@pytest.mark.parametrize(
    "content",
    [
        b"my thesis",
        b"my\nthesis\n",
        b"\n",
        b"\xff\xfe\n",
        b"step,loss\n1,2,3\n",
        b"step,loss\n1,2\n1,2\n",
        b"step,loss\n1,2\n\n",
        b"step,loss\na,b\n",
        b"stepping\n",
        b'{"step": 1}\n{"loss": 2}\n',
        b'{"step": 1}\n{"step": 3}\n',
        b'{"step": 1}\n7\n',
        b'{"step": "a"}\n',
        b'[{"step": 1}]\n',
    ],
)
@pytest.mark.parametrize("first", [1, 5])
def test_other_files_are_left_as_they_are(logger, content, first, tmp_path):
    path = tmp_path / "run.log"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"run.log is not a file that {logger.__name__} has written, and is left as it"
    ):
        logger(path)(part(first, first + 1))
    assert path.read_bytes() == content


@pytest.mark.parametrize(("logger", "other"), [(csv_logger, json_lines_logger), (json_lines_logger, csv_logger)])
def test_a_log_of_the_other_kind(logger, other, old):
    with pytest.raises(ValueError, match=f"is not a file that {logger.__name__} has written"):
        logger(old(other))(part(11, 12))


@LOGGERS
@pytest.mark.parametrize("content", ["", "st", "step,lo", '{"st', '{"step": 1, "lo'])
def test_a_file_without_a_whole_line(logger, content, tmp_path):
    start = "step," if logger is csv_logger else '{"step": '
    log = logger(tmp_path / "run.log")
    log.path.write_text(content)
    if content and content[0] != start[0]:
        return
    log(part(1, 2))
    assert steps(log) == [1, 2]


@LOGGERS
def test_a_full_disk_is_told_and_the_next_run_mends_the_file(logger, old, monkeypatch):
    path = old(logger)
    log = logger(path)
    log(part(11, 12))

    def write(*args, **kwargs):
        with path.open("a") as file:
            file.write("13,0.")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", write)
        with pytest.raises(OSError, match="No space left"):
            log(part(13, 14))
    log(part(13, 14))
    assert steps(log) == list(range(15))


KILLED = """
import sys
import numpy as np
from gdfx.training import loggers
from types import SimpleNamespace

log = getattr(loggers, sys.argv[1])(sys.argv[2])
for step in range(1, 10**9, 50):
    steps = np.arange(step, step + 50)
    history = {"loss": 1 / steps, "grad_norm": 2.0 * steps}
    log(SimpleNamespace(step=step + 49, history=history, evaluation=None))
"""


@LOGGERS
def test_a_killed_process_loses_no_row_that_was_reported(logger, tmp_path):
    path = tmp_path / "run.log"
    process = subprocess.Popen([sys.executable, "-c", KILLED, logger.__name__, str(path)])
    while not (path.exists() and path.stat().st_size > 10_000):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    at = path.read_bytes().count(b"\n") // 50 * 50 - 120
    log = logger(path)
    log(part(at, at + 9))
    assert steps(log) == list(range(1, at + 10))


@LOGGERS
def test_repr_and_relative_paths(logger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = logger("run.log")
    monkeypatch.chdir("/")
    log(part(1, 1))
    assert steps(logger(tmp_path / "run.log")) == [1]
    assert repr(log) == f"{logger.__name__}({str(tmp_path / 'run.log')!r})"


@LOGGERS
def test_with_fit_and_its_checkpoints(logger, tmp_path):
    def fit(steps, folder):
        return gdfx.fit(
            lambda params, batch: jnp.mean((batch - params) ** 2),
            jnp.zeros(()),
            gdfx.sgd(0.1),
            np.arange(7, dtype=np.float32),
            batch_size=2,
            evaluate=lambda params: {"size": abs(params)},
            stop=gdfx.stopping.max_steps(steps),
            watch=logger(tmp_path / folder / "run.log"),
            watch_every=2,
            progress=False,
            checkpoint=tmp_path / folder / "checkpoints",
        )

    for steps in 4, 8:  # the first ends within an epoch
        fit(steps, "parts")
    whole = fit(8, "whole")
    rows, parts = (read(logger(tmp_path / folder / "run.log")) for folder in ("whole", "parts"))
    assert [row["step"] for row in rows] == list(range(9))
    assert [row["loss"] for row in rows[1:]] == [float(str(loss)) for loss in whole.history["loss"]]
    assert [row["step"] for row in rows if "size" in row] == whole.evaluations["step"].tolist() == [0, 3, 6, 8]
    assert [row | {"size": 0} for row in parts] == [row | {"size": 0} for row in rows]
    assert [row["step"] for row in parts if "size" in row] == [0, 3, 4, 6, 8]
