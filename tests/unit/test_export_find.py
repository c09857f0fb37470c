"""From the command line's words to checkpoints with ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2export.errors import UsageError
from gpt2export.exporter import Job
from gpt2export.find import Entry, find, read_list
from gpt2serve.package import InvalidModelId


def checkpoint(folder: Path, sign: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / sign).write_text("{}")
    return folder


def ids(jobs: list[Job]) -> list[str]:
    return [job.model for job in jobs]


def test_a_folder_of_checkpoints_is_those_in_it(tmp_path: Path) -> None:
    for name in ("b", "a", "org/y", "org/x", "a/inside", ".git/z", "org/.cache"):
        checkpoint(tmp_path / name)
    (tmp_path / "logs" / "monday").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("")
    found = find([Entry(str(tmp_path))])
    assert ids(found.jobs) == ["a", "b", "org/x", "org/y"]
    assert found.jobs[3].checkpoint == str(tmp_path / "org" / "y")
    assert found.without == [str(tmp_path / "logs")]
    assert found.wrong == []


def test_a_checkpoint_is_not_searched(tmp_path: Path) -> None:
    """A trainer leaves its steps beside the last state."""
    checkpoint(tmp_path / "run")
    checkpoint(tmp_path / "run" / "checkpoint-500")
    assert ids(find([Entry(str(tmp_path / "run"))]).jobs) == ["run"]
    assert ids(find([Entry(str(tmp_path))]).jobs) == ["run"]


def test_a_broken_checkpoint_is_not_left_out(tmp_path: Path) -> None:
    checkpoint(tmp_path / "no-config", "model.safetensors")
    checkpoint(tmp_path / "org" / "no-config", "pytorch_model.bin")
    checkpoint(tmp_path / "no-weights")
    found = find([Entry(str(tmp_path))])
    assert ids(found.jobs) == ["no-config", "no-weights", "org/no-config"]


def test_a_folder_whose_name_is_no_id_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("fine", "not fine", "org/generate", "org/cpu-int8"):
        checkpoint(tmp_path / name)
    found = find([Entry(str(tmp_path))])
    assert ids(found.jobs) == ["fine"]
    reasons = {job.model: reason for job, reason in found.wrong}
    assert list(reasons) == ["not fine", "org/cpu-int8", "org/generate"]
    assert "is not a model id" in reasons["not fine"]
    assert "--from-file" in reasons["not fine"]
    assert "a package's folder" in reasons["org/cpu-int8"]


def test_a_folder_without_any_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    checkpoint(tmp_path / "deep" / "er" / "than" / "two")
    found = find([Entry(str(tmp_path / "deep")), Entry("org/of-the-hub")])
    assert ids(found.jobs) == ["org/of-the-hub"]
    ((job, reason),) = found.wrong
    assert job.model == "deep"
    assert "holds no checkpoint" in reason
    assert "org/name/" in reason


def test_the_same_checkpoint_counts_once(tmp_path: Path) -> None:
    checkpoint(tmp_path / "all" / "a")
    words = [f"{tmp_path}/all", f"{tmp_path}/all/a", f"{tmp_path}/all/../all/a/"]
    assert ids(find([Entry(word) for word in words]).jobs) == ["a"]


def test_two_checkpoints_with_one_id_are_refused(tmp_path: Path) -> None:
    for place in ("one", "two"):
        for name in ("a", "org/b"):
            checkpoint(tmp_path / place / name)
    with pytest.raises(UsageError, match="would become a, org/b"):
        find([Entry(str(tmp_path / "one")), Entry(str(tmp_path / "two"))])


def test_an_id_of_ones_own(tmp_path: Path) -> None:
    place = str(checkpoint(tmp_path / "all" / "a name"))
    assert ids(find([Entry(place, "org/a")]).jobs) == ["org/a"]
    with pytest.raises(UsageError, match="names one model"):
        find([Entry(str(tmp_path / "all"), "org/a")])
    with pytest.raises(InvalidModelId):
        find([Entry(place)])


def test_a_list() -> None:
    lines = ["# made by hand\n", "\n", "some folder/a\torg/a\n", "b\r\n", " c \t \n"]
    assert list(read_list(lines)) == [
        Entry("some folder/a", "org/a"),
        Entry("b"),
        Entry("c"),
    ]
