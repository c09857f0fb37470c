"""Write docs/benchmarks.md, its plots and the README's figures from benchmarks/results/*.json.

    python -m benchmarks.docs
    python -m benchmarks.docs --check    # exit status 1 if a page is not what would be written

No number in those pages is typed by hand. Each benchmark is a package with a module `report`:

    TITLE                  heading of its section
    markdown(results)      the section, from the raw results
    plots(results)         {name: figure}; the section shows docs/benchmarks/<benchmark>-<name>.svg
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import plots, results
from benchmarks.common.model import ROOT

BENCHMARKS = (
    "decode",
    "load",
    "models",
    "coldstart",
    "isolation",
    "determinism",
    "fleet",
    "policies",
    "profile",
)
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
_BEGIN, _END = "<!-- figures: made by `python -m benchmarks.docs` -->\n", "<!-- end of figures -->"

_INTRODUCTION = """\
# What was measured

This page is made by `python -m benchmarks.docs` from the raw results in
[benchmarks/results](../benchmarks/results). No number on it is typed by hand.

```sh
make bench         # a short version of everything, about ten minutes on two cores
make bench-full    # everything, as below
python -m benchmarks.decode --help
```

Every comparison is made in one run on one machine: each system in a process of its own, which
sleeps while another one is measured, in turn, in several rounds. A ratio is taken within a
round, so that what slowed the machine slowed both; what is given is the median of the ratios,
with the least and the greatest. While a measurement runs, the time that other work takes of the
cores is watched; disturbed measurements are repeated, and the least disturbed one counts, never
the fastest.

[benchmarks/gpu.md](../benchmarks/gpu.md) says how to measure on CUDA."""
_CUDA = "decode-cuda"


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    page = page_text()
    readme = readme_text(README.read_text(encoding="utf-8"))
    if args.check:
        stale = [
            path.name
            for path, text in ((PAGE, page), (README, readme))
            if path.read_text(encoding="utf-8") != text
        ]
        if stale:
            print(f"Not up to date: {', '.join(stale)}. Run: python -m benchmarks.docs")
        return 1 if stale else 0
    PAGE.write_text(page, encoding="utf-8")
    README.write_text(readme, encoding="utf-8")
    for name in BENCHMARKS:
        _write_plots(name, PAGE.with_suffix(""))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.docs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    return parser


def page_text() -> str:
    sections = [_section(name) for name in BENCHMARKS]
    return "\n\n".join([_INTRODUCTION, *sections, _cuda_section()]) + "\n"


def _cuda_section() -> str:
    """Decoding on a GPU, if someone has measured it. Its plots would be those of the processor."""
    title = "## Decode and prefill on CUDA\n\n"
    measured = _results(_CUDA)
    if measured is None:
        return f"{title}Not measured yet: `python -m benchmarks.decode --device cuda`."
    text: str = _report("decode").markdown(measured)
    lines = text.strip("\n").splitlines()
    return title + "\n".join(line for line in lines if not line.startswith("!["))


def _section(name: str) -> str:
    report = _report(name)
    measured = _results(name)
    if measured is None:
        body = f"Not measured yet: `python -m benchmarks.{name}`."
    else:
        body = report.markdown(measured).strip("\n")
    return f"## {report.TITLE}\n\n{body}"


def readme_text(readme: str) -> str:
    """The README with the figures between its two marks made anew."""
    measured = _results("decode")
    before, _, rest = readme.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if measured is None or not end:  # which is there only after a begin
        return readme
    figures = str(_report("decode").readme(measured)).strip("\n")
    return f"{before}{_BEGIN}{figures}\n{_END}{after}"


def _write_plots(name: str, folder: Path) -> None:
    measured = _results(name)
    if measured is not None:
        for plot, figure in _report(name).plots(measured).items():
            plots.save(figure, folder / f"{name}-{plot}.svg")


def _report(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}.report")


def _results(name: str) -> dict[str, Any] | None:
    path = results.path_of(name, quick=False)
    return results.load(path) if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
