"""The command line: what it refuses before it starts, and what it says."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2export import cli, hub
from gpt2export.errors import HubError
from gpt2export.exporter import Outcome
from gpt2export.table import render


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "--store", "store"])
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "--precision", "fp16"], "fp16 is for --target cuda"),
        (["a", "--target", "cuda", "--precision", "int8"], "int8 is for --target cpu"),
        (["a", "--target", "cuda", "--precision", "fp32"], "fp32 is for --target cpu"),
        (["a", "--target", "cpu", "--target", "cuda", "--precision", "int8"], "--target cpu"),
        (["a", "b", "--id", "x"], "--id names one model"),
        (["a", "--id", "../x"], "is not a model id"),
        (["a", "--id", "a/b/c"], "is not a model id"),
        (["a", "--id", "org/generate"], "reserved"),
        (["a", "--id", "org/cpu-int8"], "a package's folder"),
        (["a", "--id", "org/portable"], "a package's folder"),
        (["x/a/m", "y/a/m"], "several checkpoints would become m"),
        (["a", "--no-verify", "--calibration", "c"], "no use with --no-verify"),
        (["a", "--calibration", "missing.txt"], "missing.txt cannot be read"),
        (["a", "--jobs", "0"], "at least 1"),
        (["a", "--jobs", "two"], "invalid"),
        (["a", "--share", "2/2"], "the first is 0/20"),
        (["/"], "is not a model id"),
        ([], "name a CHECKPOINT"),
        (["--from-file", "missing.txt"], "missing.txt cannot be read"),
        (["a", "--report", "missing/report.jsonl"], "cannot be written"),
    ],
)
def test_options_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert words in refusal(capsys, *arguments)


def test_the_id_is_the_folders_name_or_the_hub_id(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert hub.default_id(f"{tmp_path}/my-model/") == "my-model"
    assert hub.default_id("huggingtweets/bestmusiclyric-bygpt3") == (
        "huggingtweets/bestmusiclyric-bygpt3"
    )


def test_a_list_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in it is a checkpoint; each is listed, and the report has them too."""
    for name in ("x", "a name"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    lines = f"# two\n{tmp_path}/x\n{tmp_path}/a name\torg/y\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    report = tmp_path / "report.jsonl"
    arguments = ["--from-file", "-", "--store", str(tmp_path / "store"), "--report", str(report)]
    assert cli.main(arguments) == 1
    out = capsys.readouterr().out
    assert "2 packages in" in out
    assert "0 exported, 0 unchanged, 2 failed." in out
    assert "2 failed: ... holds no weights" in out
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert sorted((row["id"], row["status"]) for row in rows) == [
        ("org/y", "failed"),
        ("x", "failed"),
    ]


def test_a_folder_of_none_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nothing").mkdir()
    assert cli.main([str(tmp_path / "nothing"), "--store", str(tmp_path / "store")]) == 1
    assert "nothing holds no checkpoint" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()


def test_a_hub_id_without_a_network_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"cannot be reached.*needs a network"):
        hub.locate("huggingtweets/nobody-at-all")


def test_help_teaches_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from gpt2export import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_the_table() -> None:
    outcomes = [
        Outcome("a/long-name", "cpu-int8", "exported", 127_800_000, 9.04, 0.00112),
        Outcome("b", "cpu-fp32", "failed", seconds=0.3, message="It has no config.json."),
        Outcome("c", "portable", "unchanged", 1_000_000),
    ]
    assert render(outcomes).splitlines() == [
        "id           variant       size   time  perplexity  status",
        "a/long-name  cpu-int8  127.8 MB  9.0 s     +0.112%  exported",
        "b            cpu-fp32         -  0.3 s           -  failed",
        "c            portable    1.0 MB  0.0 s           -  unchanged",
        "",
        "b (cpu-fp32): It has no config.json.",
    ]


def test_shares_of_a_list_are_all_of_it(tmp_path: Path) -> None:
    """Failures too: one that every machine reported would fail them all."""
    listed = tmp_path / "list.txt"
    (tmp_path / "empty").mkdir()
    listed.write_text("".join(f"me/m{number}\n" for number in range(5)) + f"{tmp_path}/empty\n")
    words = ["--from-file", str(listed), "--store", "store", "--share"]
    shares = [cli._found(cli._parser().parse_args([*words, f"{n}/2"])) for n in range(2)]
    assert [[job.model for job in found.jobs] for found in shares] == [
        ["me/m0", "me/m2", "me/m4"],
        ["me/m1", "me/m3"],
    ]
    assert [len(found.wrong) for found in shares] == [1, 0]


def test_a_share_without_anything_in_it_is_no_failure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["me/m", "--store", str(tmp_path), "--share", "1/2"]) == 0
    assert "nothing to do" in capsys.readouterr().out
