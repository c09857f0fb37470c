"""Sizes as people write them, and shares of what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2serve.errors import SettingsError
from gpt2serve.sizes import cpu_count, memory_limit, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1048576),
        ("1B", 1),
        ("512MiB", 512 * 1024**2),
        ("8GiB", 8 * 1024**3),
        ("1.5KiB", 1536),
        ("2TiB", 2 * 1024**4),
        ("2GB", 2 * 1000**3),
        ("3kB", 3000),
        (" 4 MiB ", 4 * 1024**2),
        ("50%", 500),
        ("0.5%", 5),
        ("100%", 1000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, whole=1000) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "abc", "-1", "1 2", "0", "0MiB", "0%", "101%", "-5%", "5 apples", "1e9", "MiB"),
        *("1mib", "nan", "inf", "1GiBB", "%", "1,5GiB", "0.1B"),
    ],
)
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_size(text, whole=1000)
    assert repr(text) in str(caught.value)
    assert "512MiB" in str(caught.value)


def test_shares_are_of_the_memory_there_is() -> None:
    limit = memory_limit()
    assert 2**20 < limit < 2**50
    assert parse_size("50%") == limit // 2


def test_container_limits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = memory_limit()
    monkeypatch.setattr(Path, "read_text", lambda _: "4096\n")
    assert memory_limit() == 4096
    monkeypatch.setattr(Path, "read_text", lambda _: "max\n")
    assert memory_limit() >= machine
    monkeypatch.setattr(Path, "read_text", lambda _: str(2**63))  # "no limit" of cgroup v1
    assert memory_limit() >= machine


def test_cpu_count_is_what_this_process_may_use() -> None:
    assert cpu_count() >= 1
