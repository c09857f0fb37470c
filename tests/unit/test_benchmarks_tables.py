"""Ratios, verdicts and tables of the benchmarks, from made-up measurements."""

from __future__ import annotations

import pytest

from benchmarks.common import tables
from benchmarks.common.tables import Bound, Line, Measured


def test_a_ratio_pairs_values_of_the_same_round() -> None:
    # The second round ran on a machine half as fast: the quotient does not notice.
    assert tables.ratio(Measured((10.0, 20.0, 11.0)), Measured((5.0, 10.0, 5.0))).values == (
        2.0,
        2.0,
        2.2,
    )


def test_a_ratio_of_unequal_numbers_of_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        tables.ratio(Measured((1.0, 2.0)), Measured((1.0,)))


@pytest.mark.parametrize(
    ("bound", "measured", "verdict"),
    [
        (Bound(4.5), 4.5, "PASS"),
        (Bound(4.5), 4.4999, "MISS"),
        (Bound(0.1, at_least=False), 0.1, "PASS"),
        (Bound(0.1, at_least=False), 0.1001, "MISS"),
        (None, 1.0, "-"),
    ],
)
def test_a_verdict_is_about_the_median(bound: Bound | None, measured: float, verdict: str) -> None:
    assert Line("x", Measured((0.0, measured, 100.0)), bound).verdict == verdict


def test_a_line_shows_median_spread_and_target() -> None:
    line = Line("a / b", Measured((2.0, 1.0, 4.0)), Bound(1.8))
    assert line.cells() == ("a / b", "2.00x (1.00x - 4.00x)", ">= 1.80x", "PASS")
    share = Line("share", Measured((0.05,)), Bound(0.1, at_least=False), percent=True)
    assert share.cells() == ("share", "5.0% (5.0% - 5.0%)", "<= 10.0%", "PASS")


def test_a_table_is_markdown_with_aligned_columns() -> None:
    text = tables.table(("name", "n"), [("a", "10"), ("longer", "2")])
    assert text.splitlines() == [
        "| name   | n   |",
        "|--------|-----|",
        "| a      | 10  |",
        "| longer | 2   |",
    ]


def test_paragraphs_leave_out_what_is_empty() -> None:
    assert tables.paragraphs("a\n", "", "\nb") == "a\n\nb"
