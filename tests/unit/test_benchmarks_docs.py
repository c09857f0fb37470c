"""docs/benchmarks.md and the README's figures: what is written, and whether it is up to date."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from benchmarks import docs
from benchmarks.common import plots, results
from benchmarks.common.model import ROOT

BEGIN = "<!-- figures: made by `python -m benchmarks.docs` -->"
END = "<!-- end of figures -->"
README = f"""\
# A project

Before.

{BEGIN}
old figures
{END}

After, with {END} once more.
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No results yet, and a page and a README that may be written."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(docs, "PAGE", tmp_path / "docs" / "benchmarks.md")
    monkeypatch.setattr(docs, "README", tmp_path / "README.md")
    docs.PAGE.parent.mkdir()
    docs.PAGE.write_text("an old page", encoding="utf-8")
    docs.README.write_text(README, encoding="utf-8")
    return tmp_path


class _Report(types.ModuleType):
    """A benchmark's `report`, whose results are {"speed": number}."""

    TITLE = "Made up"

    def markdown(self, measured: dict[str, Any]) -> str:
        return f"\nIts speed is {measured['speed']}.\n"

    def readme(self, measured: dict[str, Any]) -> str:
        return f"\n{measured['speed']} per second\n"

    def plots(self, measured: dict[str, Any]) -> dict[str, Any]:
        figure, (axes,) = plots.new("Speed", "x", "y")
        axes.plot([0, 1], [0, measured["speed"]], label="gpt2serve")
        axes.legend()
        return {"speed": figure}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """Results of one made-up benchmark, which the README shows; another has none."""
    monkeypatch.setattr(docs, "BENCHMARKS", ("made_up", "missing"))
    for name in (*docs.BENCHMARKS, "decode"):
        report = _Report(name)
        monkeypatch.setitem(sys.modules, f"benchmarks.{name}.report", report)
    made = {"speed": 7}
    for name in ("made_up", "decode"):
        results.save(made, results.path_of(name, quick=False))
    return made


# -- the page -----------------------------------------------------------------------------


def test_every_benchmark_has_a_section() -> None:
    packages = {path.parent.name for path in (ROOT / "benchmarks").glob("*/report.py")}
    assert sorted(docs.BENCHMARKS) == sorted(packages)
    for name in docs.BENCHMARKS:
        assert (ROOT / "benchmarks" / name / "__main__.py").is_file()


@pytest.mark.usefixtures("folder")
def test_a_benchmark_without_results_is_not_measured_yet() -> None:
    sections = docs.page_text().split("\n\n## ")
    assert sections[0].startswith("# What was measured\n\n")
    assert "Not measured yet: `python -m benchmarks.decode --device cuda`." in sections.pop()
    assert len(sections) == 1 + len(docs.BENCHMARKS)
    for name, section in zip(docs.BENCHMARKS, sections[1:], strict=True):
        title, _, body = section.partition("\n\n")
        assert title == docs._report(name).TITLE
        assert body.strip() == f"Not measured yet: `python -m benchmarks.{name}`."


@pytest.mark.usefixtures("folder")
def test_results_of_a_short_run_are_not_published() -> None:
    results.save({"never": "read"}, results.path_of("decode", quick=True))
    assert "Not measured yet: `python -m benchmarks.decode`." in docs.page_text()


@pytest.mark.usefixtures("measured")
def test_a_benchmark_with_results_has_what_its_report_says() -> None:
    assert (
        "\n\n## Made up\n\nIts speed is 7."
        "\n\n## Made up\n\nNot measured yet: `python -m benchmarks.missing`.\n"
    ) in docs.page_text()


@pytest.mark.usefixtures("measured")
def test_results_of_a_gpu_have_a_section_without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Report, "markdown", lambda _, made: f"![plot](x.svg)\n\nIt is {made}.")
    results.save({"speed": 9}, results.path_of("decode-cuda", quick=False))
    page = docs.page_text()
    assert page.endswith("## Decode and prefill on CUDA\n\n\nIt is {'speed': 9}.\n")


@pytest.mark.usefixtures("folder")
def test_the_real_report_of_real_results() -> None:
    """One of the reports that need no plot; their own tests have the rest."""
    passes = {name: {"identical": 3, "of": 4} for name in ("together", "restarted", "again")}
    entry = {"system": "gpt2serve int8", "different_texts": 4} | passes
    header = dict.fromkeys(("command", "commit", "date", "processor", "system"), "x")
    numbers = dict.fromkeys(("cores", "threads", "memory_bytes", "load_average"), 1)
    made = {
        "header": {**header, **numbers, "extensions": [], "versions": {}},
        "requests": 4,
        "batch": 2,
        "tokens": 3,
        "top_k": 50,
        "failed": {},
        "systems": [entry | {"greedy": {"identical": 4, "of": 4}}],
    }
    results.save(made, results.path_of("determinism", quick=False))
    page = docs.page_text()
    assert "75.0%" in page
    assert "Not measured yet: `python -m benchmarks.determinism`." not in page
    assert "Not measured yet: `python -m benchmarks.decode`." in page


# -- the README ---------------------------------------------------------------------------


@pytest.mark.usefixtures("measured")
def test_only_what_is_between_the_marks_is_replaced() -> None:
    made = docs.readme_text(README)
    assert made == README.replace("old figures", "7 per second")
    assert docs.readme_text(made) == made


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    "readme",
    ["", "# A project\n\nold figures\n", README.replace(BEGIN, ""), README.replace(END, "")],
    ids=["empty", "no marks", "no begin", "no end"],
)
def test_a_readme_without_both_marks_is_left_alone(readme: str) -> None:
    assert docs.readme_text(readme) == readme


@pytest.mark.usefixtures("folder")
def test_a_readme_keeps_its_figures_where_there_are_no_results() -> None:
    assert docs.readme_text(README) == README


# -- writing and checking -----------------------------------------------------------------


@pytest.mark.usefixtures("measured")
def test_a_check_says_which_page_is_stale_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check() -> tuple[int, str]:
        before = _content(folder)
        status = docs.main(["--check"])
        assert _content(folder) == before
        return status, capsys.readouterr().out

    status, said = check()
    assert (status, said.split(".")[0]) == (1, "Not up to date: benchmarks")
    assert "benchmarks.md, README.md. Run: python -m benchmarks.docs" in said
    assert docs.main([]) == 0
    assert capsys.readouterr().out == ""
    assert check() == (0, "")
    # New results make both stale again; the README has figures of one benchmark only.
    results.save({"speed": 8}, results.path_of("made_up", quick=False))
    status, said = check()
    assert status == 1
    assert "README.md" not in said
    results.save({"speed": 8}, results.path_of("decode", quick=False))
    status, said = check()
    assert status == 1
    assert "benchmarks.md, README.md" in said


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("name", ["PAGE", "README"])
def test_a_number_that_was_typed_by_hand_is_noticed(name: str) -> None:
    docs.main([])
    path: Path = getattr(docs, name)
    path.write_text(path.read_text().replace("7", "9"))
    assert docs.main(["--check"]) == 1


@pytest.mark.usefixtures("measured")
def test_plots_lie_where_pages_look_for_them_and_do_not_change_by_themselves(folder: Path) -> None:
    docs.main([])
    plot = folder / "docs" / "benchmarks" / "made_up-speed.svg"
    assert list(plot.parent.iterdir()) == [plot]
    before = plot.read_bytes()
    plot.unlink()
    docs.main([])
    assert plot.read_bytes() == before
    results.save({"speed": 8}, results.path_of("made_up", quick=False))
    docs.main([])
    assert plot.read_bytes() != before


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# -- the pages of this repository ---------------------------------------------------------


@pytest.fixture
def published() -> None:
    if not any(results.path_of(name, quick=False).is_file() for name in docs.BENCHMARKS):
        pytest.skip("benchmarks/results holds no results to make pages from")


@pytest.mark.usefixtures("published")
def test_the_pages_are_made_from_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    status = docs.main(["--check"])
    assert (status, capsys.readouterr().out) == (0, "")


@pytest.mark.usefixtures("published")
def test_every_picture_of_the_page_is_there_and_no_other() -> None:
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", docs.PAGE.read_text(encoding="utf-8"))
    there = docs.PAGE.with_suffix("").glob("*.svg")
    assert sorted(shown) == sorted(f"benchmarks/{path.name}" for path in there)
