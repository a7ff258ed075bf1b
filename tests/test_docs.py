"""The code in README.md and docs/ runs, each page from top to bottom."""

import re
import sys
import types
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_of_page_runs(page, tmp_path, monkeypatch, request):
    # A page may turn it on.
    request.addfinalizer(lambda x64=jax.config.jax_enable_x64: jax.config.update("jax_enable_x64", x64))
    monkeypatch.chdir(tmp_path)  # where it writes its pictures
    text = page.read_text()
    blocks = [(m.start(1), m[1]) for m in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # classes of the page can be pickled
    for start, block in blocks:
        # Blank lines in front, so that an error names the line of the page.
        source = "\n" * text.count("\n", 0, start) + block
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have it
            exec(compile(source, page, "exec"), module.__dict__)
    plt.close("all")


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
