"""What `benchmarks.coldstart` measures and says; its models, processes and results are made up.

The page cache is the real one, with small files, in temporary folders.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.coldstart import __main__ as command
from benchmarks.coldstart import (
    another_file,
    cooling,
    disk,
    figures,
    measure,
    opening,
    page_cache,
    peer,
    report,
    service,
)
from benchmarks.coldstart.cooling import ANOTHER_FILE, DROPPED
from benchmarks.coldstart.eviction import EVICTORS, evict
from benchmarks.coldstart.measure import COLD, WARM
from benchmarks.coldstart.names import CHECKED, HTTP, NAMES, PACKED_FIRST
from benchmarks.coldstart.phases import PHASES, REST, Span, split
from benchmarks.coldstart.subjects import ColdEngine
from benchmarks.common import cli, machine, model, plots, servers
from benchmarks.common import results as saved
from benchmarks.common.servers import ServerFailed
from benchmarks.common.worker import WorkerFailed
from benchmarks.peers import CT2_INT8, ENGINE_FP32, ENGINE_INT8, SYSTEMS, TRANSFORMERS


@pytest.fixture(autouse=True)
def drop_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /proc/sys/vm/drop_caches: no test empties the page cache of the whole machine."""
    path = tmp_path / "drop_caches"
    monkeypatch.setattr(page_cache, "_DROP_ALL", path)
    return path


# -- phases -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], {REST: 10.0}),
        ([("session", 2.0, 5.0)], {REST: 7.0, "session": 3.0}),
        # Where they overlap, the earlier phase has the time, whichever span came first.
        ([("prefill", 0.0, 6.0), ("check", 4.0, 10.0)], {"prefill": 4.0, "check": 6.0}),
        ([("warm-up", 1.0, 9.0), ("prefill", 2.0, 3.0)], {REST: 2.0, "warm-up": 8.0}),
        # What happened before and after is not counted.
        ([("session", -5.0, 1.0), ("prefill", 8.0, 20.0)], {"session": 1, REST: 7, "prefill": 2}),
        ([("load", -9.0, -1.0), ("load", 11.0, 12.0)], {REST: 10.0}),
        # Two of one phase that overlap, as in two threads, are not counted twice.
        ([("load", 0.0, 6.0), ("load", 3.0, 10.0)], {"load": 10.0}),
    ],
)
def test_time_is_split_into_phases(spans: list[Span], expected: dict[str, float]) -> None:
    assert split(spans, 0.0, 10.0) == expected


def test_no_time_has_no_phases() -> None:
    assert split([("load", 0.0, 9.0)], 4.0, 4.0) == {}


_SPANS = st.lists(
    st.tuples(st.sampled_from(PHASES[:-1]), st.integers(0, 20), st.integers(0, 8)).map(
        lambda span: (span[0], float(span[1]), float(span[1] + span[2]))
    ),
    max_size=6,
)


@given(_SPANS, st.integers(0, 20), st.integers(0, 20))
def test_every_moment_belongs_to_one_phase(spans: list[Span], begin: int, length: int) -> None:
    expected: dict[str, float] = {}
    for second in range(begin, begin + length):
        covering = {name for name, since, until in spans if since <= second and second + 1 <= until}
        phase = next((name for name in PHASES if name in covering), REST)
        expected[phase] = expected.get(phase, 0.0) + 1
    assert split(spans, float(begin), float(begin + length)) == expected


_MOMENTS = st.floats(-10, 10)


@given(
    st.lists(
        st.tuples(st.sampled_from(PHASES[:-1]), _MOMENTS, _MOMENTS).map(
            lambda span: (span[0], *sorted(span[1:]))
        )
    ),
    _MOMENTS,
    st.floats(0, 10),
)
def test_phases_add_up(spans: list[Any], begin: float, length: float) -> None:
    seconds = split(spans, begin, begin + length)
    assert sum(seconds.values()) == pytest.approx(length, abs=1e-9)
    assert all(value > 0 for value in seconds.values())


# -- eviction -----------------------------------------------------------------------------


class Cache:
    """Holds the model until `lasts` others were loaded."""

    def __init__(self, lasts: int) -> None:
        self.lasts = lasts
        self.loaded: list[str] = []

    def state(self, model: str) -> str:
        assert model == "large"
        return "resident" if len(self.loaded) < self.lasts else "cold"

    def load(self, model: str) -> None:
        self.loaded.append(model)


@pytest.mark.parametrize("lasts", [0, 1, 3, len(EVICTORS)])
def test_others_are_loaded_until_the_model_is_gone(lasts: int) -> None:
    cache = Cache(lasts)
    evict("large", cache.state, cache.load)
    assert cache.loaded == list(EVICTORS[:lasts])


def test_a_model_that_stays_is_an_error() -> None:
    cache = Cache(lasts=len(EVICTORS) + 1)
    with pytest.raises(RuntimeError, match="large is resident after 40 other loads"):
        evict("large", cache.state, cache.load)


# -- the page cache -----------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three on a disk: one of several pieces, the last of them not whole, a small and an empty."""
    if (kind := _file_system(tmp_path)) in ("tmpfs", "ramfs"):
        pytest.skip(f"temporary folders are on {kind}, which is nothing but page cache")
    folder = tmp_path / "files"
    (folder / "below").mkdir(parents=True)
    sizes = {"large": 2_500_123, "below/small": 100, "empty": 0}
    for name, size in sizes.items():
        (folder / name).write_bytes(os.urandom(size))
    return [folder / name for name in sizes]


def _file_system(path: Path) -> str:
    """Of the longest mount point above it; the later of two that are mounted over each other."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [(point, kind) for point, kind in mounts if path.resolve().is_relative_to(point)]
    return max(reversed(above), key=lambda mount: len(mount[0]))[1]


def test_files_are_found(files: list[Path]) -> None:
    large, small, empty = files
    assert page_cache.files_in(large) == [large]
    assert page_cache.files_in(large.parent) == [small, empty, large]
    assert page_cache.size_of(files) == 2_500_223


def test_files_leave_the_page_cache_and_come_back(files: list[Path], drop_all: Path) -> None:
    page_cache.drop(files)
    assert page_cache.resident_bytes(files) == 0
    assert page_cache.read(files) > 0
    assert page_cache.resident_bytes(files) == page_cache.size_of(files)
    page_cache.drop(files[1:])
    assert page_cache.resident_bytes(files) == files[0].stat().st_size
    assert not drop_all.exists()


def test_looking_reads_nothing(files: list[Path]) -> None:
    page_cache.drop(files)
    with files[0].open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        os.pread(stream.fileno(), 1, 5 * mmap.PAGESIZE)
    found = page_cache.resident_bytes(files)
    assert mmap.PAGESIZE <= found < page_cache.size_of(files)
    assert page_cache.resident_bytes(files) == found


def test_files_that_are_in_use_cannot_be_dropped(
    files: list[Path], drop_all: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_cache, "_PATIENCE", 0.02)
    page_cache.read(files)
    with (
        files[0].open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        assert len(bytes(mapped)) == 2_500_123  # touches all of it
        with pytest.raises(
            page_cache.NotDropped,
            match=r"2,500,123 of 2,500,223 bytes stay in the page cache.* Use --cache",
        ):
            page_cache.drop(files)
    assert drop_all.read_text() == "3"
    page_cache.drop(files)


def test_the_whole_page_cache_goes_if_that_is_what_it_takes(
    files: list[Path], drop_all: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_cache, "_PATIENCE", 0.02)
    monkeypatch.setattr(
        page_cache, "resident_bytes", lambda files: 0 if drop_all.exists() else len(files)
    )
    page_cache.drop(files)
    assert drop_all.read_text() == "3"


def test_not_every_user_may_empty_the_page_cache(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_cache, "_PATIENCE", 0.02)
    monkeypatch.setattr(page_cache, "_DROP_ALL", tmp_path)  # a folder cannot be written
    monkeypatch.setattr(page_cache, "resident_bytes", lambda _: 1)
    with pytest.raises(page_cache.NotDropped, match="1 of 2,500,223"):
        page_cache.drop(files)


# -- other files, and the disk ------------------------------------------------------------


def test_another_file_has_the_same_bytes_and_is_not_in_the_page_cache(files: list[Path]) -> None:
    page_cache.read(files)
    files[0].chmod(0o640)
    before = [(file.read_bytes(), file.stat()) for file in files]
    another_file.replace(files)
    assert page_cache.resident_bytes(files) == 0
    for file, (content, old) in zip(files, before, strict=True):
        new = file.stat()
        assert file.read_bytes() == content
        assert new.st_ino != old.st_ino
        assert (new.st_mode, new.st_mtime_ns) == (old.st_mode, old.st_mtime_ns)
    assert set(page_cache.files_in(files[0].parent)) == set(files)


def test_files_that_are_in_use_can_be_replaced(files: list[Path]) -> None:
    with (
        files[0].open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        content = bytes(mapped)
        another_file.replace(files)
        assert page_cache.resident_bytes(files) == 0
        assert bytes(mapped) == content == files[0].read_bytes()


@contextmanager
def _no_direct(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file system that refuses O_DIRECT."""
    original = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return original(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        yield


def test_without_direct_writes_another_file_is_dropped(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = files[0].read_bytes()
    with _no_direct(monkeypatch):
        another_file.replace(files)
    assert page_cache.resident_bytes(files) == 0
    assert files[0].read_bytes() == content


def test_a_full_disk_leaves_the_file(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    before = files[0].stat().st_ino
    monkeypatch.setattr(os, "pwrite", lambda *_: 4096)
    with pytest.raises(OSError, match="No space left"):
        another_file.replace(files)
    assert files[0].stat().st_ino == before
    assert set(page_cache.files_in(files[0].parent)) == set(files)


def test_direct_readers_read_all_past_the_page_cache(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    page_cache.drop(files)
    original, counts = os.preadv, []

    def count(opened: int, buffers: Any, at: int) -> int:
        counts.append(original(opened, buffers, at))
        return counts[-1]

    monkeypatch.setattr(os, "preadv", count)
    rate = disk.direct_rate(files)
    assert rate is not None
    assert rate > 1e6
    assert sum(counts) == 3 * page_cache.size_of(files)
    assert page_cache.resident_bytes(files) == 0


def test_a_disk_may_refuse_direct_readers(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _no_direct(monkeypatch):
        assert disk.direct_rate(files) is None


def _keep(files: list[Path]) -> None:
    raise page_cache.NotDropped(f"{files[0].name} stays.")


def test_files_are_dropped_where_they_can_be(files: list[Path]) -> None:
    before = files[0].stat().st_ino
    assert cooling.choose([files]) == (DROPPED, "")
    assert files[0].stat().st_ino == before


def test_other_files_are_taken_where_they_cannot_be_dropped(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_cache, "drop", _keep)
    assert cooling.choose([files]) == (ANOTHER_FILE, "large stays.")
    cooling.cool(files, ANOTHER_FILE)
    assert page_cache.resident_bytes(files) == 0


def test_nothing_is_cold_if_copies_are_in_the_page_cache_too(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_cache, "drop", _keep)
    monkeypatch.setattr(page_cache, "resident_bytes", lambda _: 4096)
    way, reason = cooling.choose([files])
    assert way == ""
    assert reason.startswith("large stays. Of copies just made, 4,096 of 2,500,223 bytes are in ")
    assert "--another-file" in reason


def test_nothing_is_cold_if_copies_cannot_be_made(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(page_cache, "drop", _keep)
    monkeypatch.setattr(another_file, "replace", refuse)
    assert cooling.choose([files]) == ("", "large stays. [Errno 30] Read-only file system")


# -- rounds -------------------------------------------------------------------------------


class World:
    """The subjects' memory, and what happened in which order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.memory: dict[int, int] = {}


class FakeSubject:
    """Takes 1,000 bytes with each start, of which 10 are kept. last: of its starts; then it
    fails."""

    def __init__(self, name: str, pid: int, world: World, last: int = 99) -> None:
        self.name, self.pid, self.files = name, pid, [Path(name)]
        self._world = world
        self._left = last
        world.memory.setdefault(pid, 500)

    def start(self) -> dict[str, Any]:
        if not self._left:
            raise WorkerFailed("Traceback\nKeyError: 'weights'")
        self._left -= 1
        self._world.log.append(("start", self.name))
        self._world.memory[self.pid] += 1000
        return {"first": 0.0500004, "done": 0.2, "phases": {"load": 0.04, "rest": 0.01}}

    def stop(self) -> None:
        self._world.log.append(("stop", self.name))
        self._world.memory[self.pid] -= 990


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    def drop(files: list[Path]) -> None:
        made.log.append(("drop", files[0].name))

    def replace(files: list[Path]) -> None:
        made.log.append(("replace", files[0].name))

    def read(files: list[Path]) -> float:
        made.log.append(("read", files[0].name))
        return 0.125

    def resident(_: list[Path]) -> int:
        return {"drop": 0, "replace": 4, "read": 99, "start": 77}[made.log[-1][0]]

    monkeypatch.setattr(page_cache, "drop", drop)
    monkeypatch.setattr(page_cache, "read", read)
    monkeypatch.setattr(page_cache, "resident_bytes", resident)
    monkeypatch.setattr(page_cache, "size_of", lambda files: len(files) * 99)
    monkeypatch.setattr(another_file, "replace", replace)
    monkeypatch.setattr(disk, "direct_rate", lambda _: 1e9)
    monkeypatch.setattr(measure.memory, "resident", lambda pid: made.memory[pid])
    monkeypatch.setattr(measure, "undisturbed", lambda work, _: {**work(), "others": 0.25})
    return made


def _rounds(
    subjects: list[FakeSubject], count: int, cold_by: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The starts, and what failed."""
    entries: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    measure.Rounds(subjects, cold_by, entries, failed).measure(count)
    return entries, failed


def test_every_system_starts_in_turn(world: World) -> None:
    subjects = [FakeSubject("a", 1, world), FakeSubject("b", 2, world)]
    entries, failed = _rounds(subjects, 2, DROPPED)
    assert failed == {}
    assert [(entry["system"], entry["cache"]) for entry in entries] == 2 * [
        ("a", WARM),
        ("a", COLD),
        ("b", WARM),
        ("b", COLD),
    ]
    once = [(what, name) for name in "ab" for what in ("start", "stop")]
    warm = ("read", "start", "stop")
    # Reading alone comes after the model was let go, for what is mapped cannot be dropped.
    cold = ("drop", "start", "stop", "drop", "read")
    in_turn = [(what, name) for name in "ab" for what in warm + cold]
    assert world.log == once + in_turn + in_turn


def test_other_files_are_made_for_a_start_and_for_reading_alone(world: World) -> None:
    """Those of the start stay for the next one, which is warm: no new hashes are compared there."""
    (_, cold), _ = _rounds([FakeSubject("a", 1, world)], 1, ANOTHER_FILE)
    assert [what for what, _ in world.log[-5:]] == ["replace", "read", "replace", "start", "stop"]
    # What was in the page cache before was not read.
    assert (cold["resident_bytes"], cold["read_bytes"]) == (4, 73)


@pytest.mark.parametrize("last", [0, 1, 2, 3, 4])
def test_a_system_that_fails_is_left_out_and_the_others_are_measured_on(
    world: World, last: int
) -> None:
    subjects = [FakeSubject("a", 1, world), FakeSubject("b", 2, world, last)]
    entries, failed = _rounds(subjects, 3, DROPPED)
    assert failed == {"b": "KeyError: 'weights'"}
    assert [(entry["system"], entry["cache"]) for entry in entries] == 3 * [
        ("a", WARM),
        ("a", COLD),
    ]


def test_files_that_stay_in_the_middle_take_only_their_system_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = page_cache.drop

    def keep(files: list[Path]) -> None:
        drop(files)
        if files == [Path("a")] and world.log.count(("drop", "a")) == 3:
            _keep(files)

    monkeypatch.setattr(page_cache, "drop", keep)
    subjects = [FakeSubject("a", 1, world), FakeSubject("b", 2, world)]
    entries, failed = _rounds(subjects, 2, DROPPED)
    assert failed == {"a": "a stays."}
    assert [entry["system"] for entry in entries] == 4 * ["b"]


def test_what_a_start_tells(world: World) -> None:
    (warm, cold), _ = _rounds([FakeSubject("a", 1, world)], 1, DROPPED)
    assert cold == {
        "system": "a",
        "cache": COLD,
        "first_ms": 50.0,
        "done_ms": 200.0,
        "phases_ms": {"load": 40.0, "rest": 10.0},
        "resident_bytes": 0,
        "read_bytes": 77,
        "loaded_bytes": 1020,
        "kept_bytes": 30,
        "reading_ms": 125.0,
        "others": 0.25,
    }
    assert (warm["loaded_bytes"], warm["kept_bytes"]) == (1010, 20)
    assert "reading_ms" not in warm


def test_memory_counts_from_before_the_first_model_of_a_process(world: World) -> None:
    # Two subjects in one process: the first has left 10 bytes when the second starts.
    subjects = [FakeSubject("usual", 1, world), FakeSubject("checked", 1, world)]
    (usual, checked), _ = _rounds(subjects, 1, "")
    assert (usual["loaded_bytes"], usual["kept_bytes"]) == (1020, 30)
    assert (checked["loaded_bytes"], checked["kept_bytes"]) == (1030, 40)


def test_no_process_counts_twice_as_own_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def note(work: Any, processes: list[int]) -> dict[str, Any]:
        counted.extend(member for one in processes for member in machine.family(one))
        made: dict[str, Any] = work()
        return made

    monkeypatch.setattr(measure, "undisturbed", note)
    measure.once(FakeSubject("a", os.getpid(), world), "", empty=0)
    assert os.getpid() in counted
    assert len(counted) == len(set(counted))


def _run(subject: FakeSubject, count: int, *, another_file: bool = False) -> dict[str, Any]:
    made: dict[str, Any] = {"failed": {}, "file_bytes": {}, "direct_rates": {}, "starts": []}
    command.run([subject], count, made, another_file=another_file)
    return made


@pytest.mark.parametrize(("asked", "way"), [(False, DROPPED), (True, ANOTHER_FILE)])
def test_the_results_say_how_starts_were_cold(world: World, asked: bool, way: str) -> None:
    made = _run(FakeSubject("a", 1, world), 1, another_file=asked)
    assert (made["cold_by"], made["not_dropped"]) == (way, "")
    assert (made["file_bytes"], made["direct_rates"]) == ({"a": 99}, {"a": 1e9})
    assert [entry["cache"] for entry in made["starts"]] == [WARM, COLD]
    assert (("drop", "a") in world.log) == (not asked)


def test_without_a_cold_page_cache_starts_are_warm(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_cache, "drop", _keep)  # and copies have 4 bytes in it
    made = _run(FakeSubject("a", 1, world), 2)
    assert made["cold_by"] == ""
    assert made["not_dropped"].startswith("a stays. Of copies just made, 4 of 99 bytes")
    assert made["direct_rates"] == {"a": None}
    assert [entry["cache"] for entry in made["starts"]] == [WARM, WARM]


@pytest.fixture
def no_models(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For `command.main`: everything around the subjects is made up. Returns where results go."""
    del world
    monkeypatch.setattr(command, "installed", list)
    monkeypatch.setattr(command, "versions", lambda _: {})
    monkeypatch.setattr(model, "prepare", lambda *_: model.assets_in(tmp_path))
    monkeypatch.setattr(model, "prompts", lambda *_: [{"text": "the", "ids": [1]}])
    monkeypatch.setattr(
        cli, "begin", lambda *_: {"benchmark": "coldstart", "header": _HEADER.copy()}
    )
    return tmp_path / "results.json"


def _main(output: Path, *others: str) -> int:
    return command.main(
        ["--quick", "--cache", str(output.parent), "--output", str(output), *others]
    )


def _opening(monkeypatch: pytest.MonkeyPatch, **subjects: FakeSubject) -> None:
    """Only these systems can be started."""

    def opened(_: Any, system: Any, prompt: Any) -> Iterator[FakeSubject]:
        assert prompt == {"text": "the", "ids": [1]}
        yield from (one for one in subjects.values() if one.name == system.name)

    monkeypatch.setattr(command.Opener, "open", opened)


def test_a_failure_is_told_and_does_not_lose_the_run(
    no_models: Path,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, theirs = FakeSubject(ENGINE_INT8, 1, world), FakeSubject(TRANSFORMERS, 2, world, last=3)
    _opening(monkeypatch, ours=ours, theirs=theirs)
    assert _main(no_models) == 1
    made = saved.load(no_models)
    assert made["failed"] == {TRANSFORMERS: "KeyError: 'weights'"}
    assert [one["system"] for one in made["starts"]] == 4 * [ENGINE_INT8]
    assert "**Failed, and left out:** transformers fp32 (KeyError" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_it_has(
    no_models: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = FakeSubject(ENGINE_INT8, 1, world), FakeSubject(TRANSFORMERS, 2, world)
    _opening(monkeypatch, ours=ours, theirs=theirs)
    start = FakeSubject.start

    def interrupted(self: FakeSubject) -> dict[str, Any]:
        if sum(what == "start" for what, _ in world.log) == 6:
            raise KeyboardInterrupt
        return start(self)

    monkeypatch.setattr(FakeSubject, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _main(no_models)
    assert not no_models.exists()
    made = saved.load(no_models.with_suffix(".incomplete.json"))
    assert made["incomplete"] == "KeyboardInterrupt"
    kept = [(one["system"], one["cache"]) for one in made["starts"]]
    assert kept == [(name, cache) for name in (ENGINE_INT8, TRANSFORMERS) for cache in (WARM, COLD)]


def test_nothing_to_measure(no_models: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _opening(monkeypatch, ours=FakeSubject(ENGINE_INT8, 1, world, last=0))
    assert _main(no_models) == 1
    assert _main(no_models, *(text for name in NAMES for text in ("--skip", name))) == 2
    assert not no_models.exists()


# -- what is started ----------------------------------------------------------------------


def test_an_engine_tells_the_files_of_the_model_that_is_next() -> None:
    class Far:
        pid = 7
        calls: ClassVar[list[str]] = []

        def call(self, method: str, model: str, **_: Any) -> dict[str, Any]:
            self.calls.append(f"{method} {model}")
            return {}

    models = iter(["m0", "m1", "m2"])
    engine = ColdEngine("a", lambda model: [Path(model)], cast(Any, Far()), models, {"text": "the"})
    for number in (0, 1):
        assert engine.files == [Path(f"m{number}")]
        engine.start()
        assert engine.files == [Path(f"m{number}")]
        engine.stop()
    assert Far.calls == ["start m0", "stop m0", "start m1", "stop m1"]


def test_the_server_and_the_engine_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are replaced for a cold start of one must not be new to the other."""

    def build(_: Any, folder: Path, __: str, models: list[str]) -> int:
        for one in models:
            (folder / one / "cpu-int8").mkdir(parents=True)
            (folder / one / "cpu-int8" / "weights").touch()
        return 1000

    started = nullcontext(SimpleNamespace(pid=7, url=""))
    monkeypatch.setattr(opening, "Worker", lambda *_: started)
    monkeypatch.setattr(servers, "gpt2serve", lambda *_, **__: started)
    monkeypatch.setattr(opening.store, "build", build)
    (system,) = (one for one in SYSTEMS if one.name == ENGINE_INT8)
    with ExitStack() as stack:
        opener = opening.Opener(
            stack, model.assets_in(tmp_path), tmp_path, 2, new_models=3, failed={}
        )
        opened = list(opener.open(system, {"text": "the", "ids": [1]}))
    assert [one.name for one in opened] == [ENGINE_INT8, CHECKED, PACKED_FIRST, HTTP]
    assert len({one.files[0] for one in opened}) == 3


def test_what_cannot_be_started_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_worker(target: str, *_: Any) -> Any:
        if "peer" in target:
            raise WorkerFailed("ImportError: no torch")
        return nullcontext(SimpleNamespace(pid=7))

    def no_server(*_: Any, **__: Any) -> Any:
        raise ServerFailed("The port is in use.")

    monkeypatch.setattr(opening, "Worker", no_worker)
    monkeypatch.setattr(servers, "gpt2serve", no_server)
    monkeypatch.setattr(opening.store, "build", lambda *_: 1000)
    failed: dict[str, str] = {}
    prompt = {"text": "the", "ids": [1]}
    with ExitStack() as stack:
        opener = opening.Opener(
            stack, model.assets_in(tmp_path), tmp_path, 2, new_models=3, failed=failed
        )
        systems = [one for one in SYSTEMS if one.name in (ENGINE_INT8, TRANSFORMERS)]
        opened = [one.name for system in systems for one in opener.open(system, prompt)]
    assert opened == [ENGINE_INT8, CHECKED, PACKED_FIRST]
    assert failed == {HTTP: "The port is in use.", TRANSFORMERS: "ImportError: no torch"}


@pytest.mark.parametrize(
    ("parts", "phases"),
    [
        ({}, {"load": 0.5}),
        ({"model": 0.25, "context": 0.125}, {"model": 0.25, "context": 0.125, "load": 0.125}),
    ],
)
def test_a_peer_loads_and_generates(
    parts: dict[str, float], phases: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Peer:
        def __init__(self, precision: str, threads: int) -> None:
            assert (precision, threads) == ("fp32", 2)

        def load(self, assets: dict[str, Any]) -> dict[str, float]:
            assert assets == {"checkpoint": "c"}
            return {"seconds": 0.5, **parts}

        def generate(self, prompts: list[dict[str, Any]], tokens: int) -> dict[str, float]:
            assert (prompts, tokens) == ([{"text": "the"}], 30)
            return {"first_seconds": 0.25, "seconds": 1.0}

    module = ModuleType("a_peer")
    module.Peer = Peer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_peer", module)
    cold = peer.Cold("a_peer:Peer", "fp32", 2)
    assert cold.start({"checkpoint": "c"}, {"text": "the"}, 30) == {
        "first": 0.75,
        "done": 1.5,
        "phases": {**phases, "prefill": 0.25},
    }
    assert set(phases) <= set(PHASES)


@contextmanager
def _answering(lines: list[str], status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """The URL of a server that gives `lines` as events, and what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            self.wfile.write("".join(f"data: {line}\n\n" for line in lines).encode())

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


_TOKENS = ['{"token": {"text": "a"}}', '{"token": {"text": "b"}}']
_END = '{"timing": {"load_ms": 0.002, "prefill_ms": 0.001}}'


def test_an_answer_of_a_server_is_timed() -> None:
    with _answering([*_TOKENS, _END, "[DONE]"]) as (url, asked):
        told = service.generate(url, "m", "the", 2)
    (body,) = asked
    assert (body["model"], body["prompt"], body["stream"]) == ("m", "the", True)
    assert body["min_new_tokens"] == body["max_new_tokens"] == 2
    assert 0 < told["first"] <= told["done"]
    assert told["phases"]["load"] == pytest.approx(2e-6)
    assert told["phases"]["prefill"] == pytest.approx(1e-6)
    assert sum(told["phases"].values()) == pytest.approx(told["first"])


@pytest.mark.parametrize(
    ("lines", "status", "message"),
    [
        ([*_TOKENS, _END], 200, "broke off"),
        ([_TOKENS[0], _END, "[DONE]"], 200, "Asked for 2 tokens, got 1"),
        (["no such model"], 404, "404: data: no such model"),
    ],
)
def test_another_answer_is_an_error(lines: list[str], status: int, message: str) -> None:
    with _answering(lines, status) as (url, _), pytest.raises(RuntimeError, match=message):
        service.generate(url, "m", "the", 2)


def test_a_system_is_started_for_its_variants() -> None:
    def needed(*names: str) -> list[str]:
        return [system.name for system in SYSTEMS if command.is_needed(system, names)]

    assert needed(HTTP) == needed(CHECKED) == needed(ENGINE_INT8) == [ENGINE_INT8]
    assert needed(ENGINE_FP32, CT2_INT8) == [ENGINE_FP32, CT2_INT8]
    assert needed(*NAMES) == [system.name for system in SYSTEMS]
    assert set(command.QUICK_NAMES) <= set(NAMES)


# -- figures and the report ---------------------------------------------------------------


_HEADER = {
    "date": "2026-01-01",
    "command": "python -m benchmarks.coldstart",
    "commit": "abc",
    "processor": "a processor",
    "extensions": ["avx2"],
    "cores": 2,
    "threads": 2,
    "memory_bytes": 2**34,
    "system": "Linux",
    "load_average": 0.1,
    "versions": {"numpy": "2"},
}


def _start(system: str, cache: str, first: float, **changes: Any) -> dict[str, Any]:
    ours = system.startswith("gpt2serve")
    session = {"session": first - 15, "prefill": 10.0, "rest": 5.0}
    return (
        {
            "system": system,
            "cache": cache,
            "first_ms": first,
            "done_ms": first + 300,
            "phases_ms": session if ours else {"load": first - 10, "prefill": 10.0},
            "resident_bytes": 0,
            "read_bytes": 120_000_000,
            "loaded_bytes": 250_000_000,
            "kept_bytes": 30_000_000 if ours else 90_000_000,
            "others": 0.0,
        }
        | ({"reading_ms": 100.0} if cache == COLD else {})
        | changes
    )


_WARM = {HTTP: (58.0, 70.0), ENGINE_INT8: (50.0, 54.0), TRANSFORMERS: (100.0, 162.0)}
_COLD = {HTTP: (218.0, 250.0), ENGINE_INT8: (150.0, 174.0), TRANSFORMERS: (300.0, 870.0)}


def _results(
    by_cache: dict[str, dict[str, tuple[float, float]]],
    cold_by: str = DROPPED,
    not_dropped: str = "",
) -> dict[str, Any]:
    """As two rounds give them."""
    return {
        "benchmark": "coldstart",
        "quick": False,
        "header": _HEADER,
        "rounds": 2,
        "tokens": 30,
        "prompt_tokens": 8,
        "file_bytes": {HTTP: 125_000_000, ENGINE_INT8: 125_000_000, TRANSFORMERS: 500_000_000},
        "direct_rates": {HTTP: 1e9, ENGINE_INT8: 2e9, TRANSFORMERS: None},
        "cold_by": cold_by,
        "not_dropped": not_dropped,
        "failed": {},
        "starts": [
            _start(system, cache, by_cache[cache][system][number])
            for number in range(2)
            for system in _WARM
            for cache in by_cache
        ],
    }


@pytest.fixture
def results() -> dict[str, Any]:
    return _results({WARM: _WARM, COLD: _COLD})


@pytest.fixture
def warm_results() -> dict[str, Any]:
    return _results({WARM: _WARM}, "", "All bytes stay.")


def _lines(text: str) -> list[str]:
    return [" ".join(line.strip("| ").split()) for line in text.splitlines()]


def test_figures_are_in_order_of_rounds(results: dict[str, Any]) -> None:
    assert figures.systems(results) == [HTTP, ENGINE_INT8, TRANSFORMERS]
    cold = figures.starts(results, ENGINE_INT8, COLD)
    assert figures.measured(cold, "first_ms").values == (150.0, 174.0)
    # One reader gets 125 MB in 100 ms from the disk, several get 2 GB in a second.
    sequential = figures.measured(cold, figures.sequential_rate(results, ENGINE_INT8))
    assert sequential.values == (1.25e9,) * 2
    assert figures.measured(cold, figures.disk_rate(results, ENGINE_INT8)).values == (2e9,) * 2
    assert figures.measured(cold, figures.disk_rate(results, HTTP)).values == (1.25e9,) * 2
    # Where direct readers are refused, there is only the one.
    assert figures.measured(cold, figures.disk_rate(results, TRANSFORMERS)).values == (5e9,) * 2
    # It gives the 120 MB that were read in 60 ms, of 150 and of 174.
    shares = figures.measured(cold, figures.share(results, ENGINE_INT8)).values
    assert shares == pytest.approx((0.4, 60 / 174))
    assert figures.starts(results, CHECKED, WARM) == []


def test_phases_are_medians_in_order_of_time() -> None:
    chosen = [
        {"phases_ms": {"prefill": 9.0, "check": 3.0, "rest": 1.0}},
        {"phases_ms": {"prefill": 5.0, "session": 30.0, "rest": 2.0}},
        {"phases_ms": {"prefill": 7.0, "check": 1.0, "session": 40.0, "rest": 6.0}},
    ]
    # A phase that a round did not have took no time in it.
    expected = {"check": 1.0, "session": 30.0, "prefill": 7.0, "rest": 2.0}
    assert list(figures.phases(chosen).items()) == list(expected.items())


def test_the_report_has_both_page_caches(results: dict[str, Any]) -> None:
    text = report.markdown(results)
    lines = _lines(text)
    ours = "session 37.0, prefill 10.0, rest 5.0"
    assert f"{ENGINE_INT8} | 52.0 (50.0-54.0) | 352.0 (350.0-354.0) | {ours}" in lines
    theirs = "load 575.0, prefill 10.0"
    assert f"{TRANSFORMERS} | 585.0 (300.0-870.0) | 885.0 (600.0-1170.0) | {theirs}" in lines
    assert "read by token 30, MB" in text
    speeds = "100 (100-100) | 1250 (1250-1250) | 2000 | 37%"
    assert f"{ENGINE_INT8} | 0 | 120 of 125 | {speeds}" in lines
    assert [line for line in lines if "| 5000 (5000-5000) | refused |" in line]
    assert "showed no page of them in it" in text
    assert f"{ENGINE_INT8} | 250 (250-250) | 30 (30-30)" in lines
    assert f"{TRANSFORMERS} | 250 (250-250) | 90 (90-90)" in lines
    assert "in 0 of 12 measurements" in text
    assert "Not measured" not in text


def test_ratios_are_of_the_same_round(results: dict[str, Any]) -> None:
    lines = _lines(report.markdown(results))
    warm, cold = (f"first token, {cache}: {TRANSFORMERS} / {ENGINE_INT8}" for cache in (WARM, COLD))
    # Ratios of the medians would be 2.52 and 3.61.
    assert f"{warm} | 2.50x (2.00x - 3.00x) | - | -" in lines
    assert f"{cold} | 3.50x (2.00x - 5.00x) | - | -" in lines
    # Its own variants are not compared with it.
    assert not [line for line in lines if f"{HTTP} / " in line]


def test_targets_are_passed_or_missed(results: dict[str, Any]) -> None:
    lines = _lines(report.markdown(results))
    assert f"{ENGINE_INT8}, page cache warm | 52.0 (50.0-54.0) ms | <= 60 ms | PASS" in lines
    assert f"{HTTP}, page cache warm | 64.0 (58.0-70.0) ms | <= 60 ms | MISS" in lines
    added = "(cold - warm) / reading alone"
    assert f"{ENGINE_INT8}: {added} | 1.10x (1.00x - 1.20x) | <= 1.50x | PASS" in lines
    assert f"{HTTP}: {added} | 1.70x (1.60x - 1.80x) | <= 1.50x | MISS" in lines


def test_a_report_without_a_cold_page_cache_says_why(warm_results: dict[str, Any]) -> None:
    text = report.markdown(warm_results)
    assert "could not be emptied. All bytes stay." in text
    assert "reading alone" not in text
    lines = _lines(text)
    assert f"{ENGINE_INT8}, page cache warm | 52.0 (50.0-54.0) ms | <= 60 ms | PASS" in lines
    compared = [line for line in lines if line.startswith("first token, ")]
    name = f"first token, {WARM}: {TRANSFORMERS} / {ENGINE_INT8}"
    assert compared == [f"{name} | 2.50x (2.00x - 3.00x) | - | -"]


def test_systems_that_were_left_out_have_no_targets(results: dict[str, Any]) -> None:
    results["starts"] = [one for one in results["starts"] if one["system"] == TRANSFORMERS]
    text = report.markdown(results)
    assert "PASS" not in text
    assert "MISS" not in text
    assert f" / {ENGINE_INT8}" not in text
    assert "target" not in text.lower()


def test_a_report_of_other_files_says_how_cold_they_were() -> None:
    results = _results({WARM: _WARM, COLD: _COLD}, ANOTHER_FILE, "All bytes stay.")
    for one in results["starts"]:
        if one["system"] == HTTP and one["cache"] == COLD:
            one["resident_bytes"] = 7_000_000
    text = report.markdown(results)
    assert "All bytes stay. The files were not dropped" in text
    assert "showed no page" not in text
    lines = _lines(text)
    assert [line for line in lines if line.startswith(f"{HTTP} | 7 | 120 of 125 | ")]
    # Comparing hashes is not what the target is about.
    added = "(cold - warm) / reading alone"
    assert f"{ENGINE_INT8}: {added} | 1.10x (1.00x - 1.20x) | - | -" in lines


def test_a_report_tells_what_failed(results: dict[str, Any]) -> None:
    assert "Failed" not in report.markdown(results)
    results["failed"] = {CT2_INT8: "no file"}
    assert "**Failed, and left out:** ctranslate2 int8 (no file)." in report.markdown(results)


def test_the_plot_shows_phases_one_after_the_other(results: dict[str, Any], tmp_path: Path) -> None:
    figure = report.plots(results)["phases"]
    plots.save(figure, tmp_path / "phases.svg")  # some warnings come when it is drawn
    warm, cold = figure.get_axes()
    assert [axes.get_title() for axes in (warm, cold)] == ["page cache warm", "page cache cold"]
    assert [label.get_text() for label in warm.get_yticklabels()] == figures.systems(results)
    assert [label.get_text() for label in cold.get_yticklabels() if label.get_text()] == []
    bars = {bar.get_label(): [(p.get_x(), p.get_width()) for p in bar] for bar in warm.containers}
    # One pair for each system: HTTP, the engine, transformers.
    assert bars == {
        "session": [(0, 49), (0, 37), (0, 0)],
        "load": [(49, 0), (37, 0), (0, 121)],
        "prefill": [(49, 10), (37, 10), (121, 10)],
        "rest": [(59, 5), (47, 5), (131, 0)],
    }
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "session",
        "load",
        "prefill",
        "rest",
    ]


def test_the_plot_has_one_panel_without_a_cold_page_cache(warm_results: dict[str, Any]) -> None:
    (axes,) = report.plots(warm_results)["phases"].get_axes()
    assert axes.get_title() == "page cache warm"
