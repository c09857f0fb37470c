"""What all benchmarks share: command line, results, plots, limits of the machine, many models."""

from __future__ import annotations

import argparse
import json
import math
import os
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks.common import cli, copies, limits, model, plots, results
from benchmarks.common.model import ROOT, Assets
from gpt2serve.engine.sessions import share_thread_pool
from gpt2serve.package import MANIFEST_FILE

SAMPLE = ROOT / "samples" / "george-washington"

# -- the command line ---------------------------------------------------------------------


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("16", 16)])
def test_a_positive_number(text: str, number: int) -> None:
    assert cli.positive(text) == number


@pytest.mark.parametrize(
    ("text", "said"),
    [("0", "must be at least 1"), ("-3", "must be at least 1"), ("two", "invalid positive value")],
)
def test_other_numbers_of_threads_are_refused(
    capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.new_parser("decode", None, "").parse_args([f"--threads={text}"])
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_options_that_all_benchmarks_have() -> None:
    parser = cli.new_parser("decode", "What it measures: 50% of all.", "  an example")
    args = parser.parse_args([])
    assert (args.benchmark, args.quick) == ("decode", False)
    assert args.threads == len(os.sched_getaffinity(0))
    assert (args.output, args.cache) == (None, model.CACHE)
    given = ["--quick", "--threads", "3", "--output", "a.json", "--cache", "b"]
    args = parser.parse_args(given)
    assert (args.quick, args.threads) == (True, 3)
    assert (args.output, args.cache) == (Path("a.json"), Path("b"))
    text = parser.format_help()
    assert "What it measures: 50% of all." in text
    assert "examples:\n  an example" in text
    assert "python -m benchmarks.decode" in text


def test_results_begin_with_what_was_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.machine, "describe", lambda threads, command: {"command": command})
    args = argparse.Namespace(benchmark="decode", quick=True, threads=2)
    begun = cli.begin(args, ["--quick", "--threads", "2"])
    assert (begun["benchmark"], begun["quick"]) == ("decode", True)
    assert begun["header"]["command"] == "python -m benchmarks.decode --quick --threads 2"
    monkeypatch.setattr(cli.sys, "argv", ["/somewhere/__main__.py", "--quick"])
    assert cli.begin(args, None)["header"]["command"] == "python -m benchmarks.decode --quick"
    assert cli.begin(args, [])["header"]["command"] == "python -m benchmarks.decode"


@pytest.mark.parametrize(
    ("output", "quick", "written", "says_how"),
    [
        (None, False, "results/decode.json", True),
        (None, True, "results/quick/decode.json", False),
        ("other/mine.json", False, "other/mine.json", False),
    ],
)
def test_results_are_saved_and_reported(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    output: str | None,
    *,
    quick: bool,
    written: str,
    says_how: bool,
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    report = types.ModuleType("report")
    monkeypatch.setattr(
        report, "markdown", lambda measured: f"Speed: {measured['speed']}", raising=False
    )
    args = argparse.Namespace(benchmark="decode", quick=quick, output=output and tmp_path / output)
    cli.finish(args, {"speed": 7}, report)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / written]
    assert results.load(tmp_path / written) == {"speed": 7}
    said = capsys.readouterr()
    assert said.out == "Speed: 7\n"
    assert str(tmp_path / written) in said.err
    # Only results that may be published become a page.
    assert ("benchmarks.docs" in said.err) == says_how


# -- results ------------------------------------------------------------------------------

RESULTS = {
    "benchmark": "decode",
    "quick": False,
    "header": {"processor": "a \u201cprocessor\u201d", "versions": {"numpy": "2"}},
    "sizes": [1, 2],
    "none": None,
    "empty": [],
    "share": 0.1 + 0.2,
    "measurements": [{"round": 0, "ids": [1, 2]}, {"round": 1, "ids": []}],
}


def test_results_are_read_as_they_were_saved(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "decode.json"
    results.save(RESULTS, path)
    assert results.load(path) == RESULTS
    assert list(results.load(path)) == list(RESULTS)
    assert json.loads(path.read_text(encoding="utf-8")) == RESULTS
    assert [file.name for file in path.parent.iterdir()] == ["decode.json"]


def test_a_measurement_has_a_line_of_its_own() -> None:
    lines = results.dumps(RESULTS).splitlines()
    assert '  {"round": 0, "ids": [1, 2]},' in lines
    assert '  {"round": 1, "ids": []}' in lines
    assert ' "sizes": [1, 2],' in lines


def test_results_that_cannot_be_written_leave_the_former_ones(tmp_path: Path) -> None:
    path = tmp_path / "decode.json"
    results.save({"speed": 7}, path)
    with pytest.raises(TypeError):
        results.save({"speed": 8, "at": Path("nowhere")}, path)
    assert results.load(path) == {"speed": 7}


def test_a_run_that_is_interrupted_leaves_the_former_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "decode.json"
    results.save({"speed": 7}, path)
    write = Path.write_text

    def write_half(self: Path, text: str, **options: Any) -> int:
        write(self, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_half)
        with pytest.raises(KeyboardInterrupt):
            results.save({"speed": 8}, path)
    assert results.load(path) == {"speed": 7}
    results.save({"speed": 9}, path)
    assert results.load(path) == {"speed": 9}
    assert list(tmp_path.iterdir()) == [path]


def test_short_runs_have_a_place_that_git_ignores() -> None:
    assert results.path_of("decode", quick=False) == ROOT / "benchmarks/results/decode.json"
    quick = results.relative(results.path_of("decode", quick=True))
    assert quick == "benchmarks/results/quick/decode.json"
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert f"{Path(quick).parent}/" in ignored


def test_a_path_outside_of_the_repository_is_told_in_full(tmp_path: Path) -> None:
    assert results.relative(tmp_path / "a.json") == str(tmp_path / "a.json")


# -- plots --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("gpt2serve int8", "gpt2serve"),
        ("gpt2serve fp32", "gpt2serve fp32"),
        ("gpt2serve fp32, B=1", "gpt2serve fp32"),
        ("ctranslate2 fp32", "ctranslate2 fp32"),
        ("ctranslate2 int8", "ctranslate2"),
        ("transformers fp32", "transformers"),
        ("Ray Serve", "ray"),
        ("FastAPI", "fastapi"),
    ],
)
def test_the_longest_name_that_begins_a_label_gives_its_colour(label: str, name: str) -> None:
    assert plots.colour(label) == plots.COLOURS[name]


def test_other_labels_have_a_colour_of_their_own() -> None:
    assert plots.colour("limit of memory, gpt2serve") == plots.colour("x")
    assert plots.colour("x") not in plots.COLOURS.values()
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)


def test_panels_and_logarithms() -> None:
    figure, axes = plots.new("Title", "batch", "tokens", panels=2, log="x")
    assert figure.get_axes() == axes
    assert len(axes) == 2
    for one in axes:
        assert (one.get_xlabel(), one.get_ylabel()) == ("batch", "tokens")
        assert (one.get_xscale(), one.get_yscale()) == ("log", "linear")
        # The style holds, whatever matplotlib's own is.
        assert not one.spines["top"].get_visible()


def test_a_figure_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    def drawn(name: str, height: float) -> bytes:
        figure, (axes,) = plots.new("Title", "batch", "tokens")
        axes.plot([0, 1], [0, height], color=plots.colour("gpt2serve"), label="gpt2serve")
        axes.legend()
        path = tmp_path / "new" / f"{name}.svg"
        plots.save(figure, path)
        return path.read_bytes()

    first = drawn("first", 1.0)
    assert drawn("second", 1.0) == first
    assert drawn("third", 2.0) != first
    assert b">tokens</text>" in first  # text stays text, which a page can show in its own font
    assert b"dc:date" not in first


# -- limits of the machine ----------------------------------------------------------------


def _clock(monkeypatch: pytest.MonkeyPatch, *tries: float) -> None:
    """Each try takes as many seconds as it says here."""
    moments = iter([moment for seconds in tries for moment in (10.0, 10.0 + seconds)])
    clock = types.SimpleNamespace(perf_counter=lambda: next(moments))
    monkeypatch.setattr(limits, "time", clock)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_BANDWIDTH_BYTES", 2**20)
    monkeypatch.setattr(limits, "_BANDWIDTH_TRIES", 3)
    monkeypatch.setattr(limits, "_INT8_SHAPE", (4, 32, 8))
    monkeypatch.setattr(limits, "_INT8_TRIES", 3)
    monkeypatch.setattr(limits, "_INT8_REPEATS", 5)
    _share_threads(monkeypatch)


def _share_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines in other tests of this process make onnxruntime refuse threads of a session's own.

    The benchmark has a process to itself.
    """
    share_thread_pool(1)
    original = onnxruntime.SessionOptions

    def options() -> onnxruntime.SessionOptions:
        made = original()
        made.use_per_session_threads = False
        return made

    monkeypatch.setattr(onnxruntime, "SessionOptions", options)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("measure", [limits.read_bandwidth, limits.int8_rate])
@pytest.mark.parametrize("threads", [1, 2])
def test_limits_are_numbers_that_a_machine_can_have(
    measure: Callable[[int], float], threads: int
) -> None:
    rate = measure(threads)
    assert math.isfinite(rate)
    # Small sizes are mostly overhead; no machine reads or multiplies more than this.
    assert 1e3 < rate < 1e14


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("threads", [1, 3])
def test_bandwidth_is_the_bytes_of_the_fastest_try(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    _clock(monkeypatch, 4.0, 0.5, 2.0)
    read: list[int] = []
    monkeypatch.setattr(limits.np, "max", lambda part: read.append(part.nbytes))
    assert limits.read_bandwidth(threads) == 2**20 / 0.5
    # All of the bytes in each try, split between the threads.
    assert len(read) == 3 * threads
    assert sum(read) == 3 * 2**20


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_rate_counts_the_products_of_all_threads(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    _clock(monkeypatch, 4.0, 0.5, 2.0)
    made: list[str] = []
    monkeypatch.setattr(limits, "_product", lambda: lambda: made.append("product"))
    assert limits.int8_rate(threads) == threads * 5 * (4 * 32 * 8) / 0.5
    assert len(made) == 3 * threads * 5


@pytest.mark.usefixtures("small")
def test_the_product_that_is_timed_is_really_made() -> None:
    from onnx import load_from_string, numpy_helper

    product: Any = limits._product()
    # It keeps its arrays as a default, the only way to see what it has written.
    ((left, made),) = product.__defaults__
    made[:] = 0
    product()
    (weights, middle) = map(
        numpy_helper.to_array, load_from_string(limits._int8_graph()).graph.initializer
    )
    assert (left.dtype, weights.dtype, made.dtype) == (np.uint8, np.int8, np.int32)
    expected = (left.astype(np.int32) - int(middle)) @ weights.astype(np.int32)
    assert made.shape == (4, 8)
    np.testing.assert_array_equal(made, expected)
    assert np.any(made)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_multiplications_are_those_with_the_matrices_of_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, sample_store: Path, precision: str
) -> None:
    from safetensors.numpy import load_file

    monkeypatch.setattr(limits, "MODEL", SAMPLE.name)
    tensors = load_file(SAMPLE / "model.safetensors")
    matrices = sum(
        tensor.size for name, tensor in tensors.items() if tensor.ndim == 2 and "wpe" not in name
    )
    assert limits.macs_per_token(sample_store, precision) == matrices


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_weights_that_a_step_reads_are_all_but_positions(
    monkeypatch: pytest.MonkeyPatch, sample_store: Path, precision: str
) -> None:
    """Counted once more, from the tensors that the package's graph names, in their own types."""
    import onnx

    monkeypatch.setattr(limits, "MODEL", SAMPLE.name)
    graph = sample_store / SAMPLE.name / f"cpu-{precision}" / "model.onnx"
    tensors = {
        tensor.name: math.prod(tensor.dims) * _item_bytes(tensor.data_type)
        for tensor in onnx.load(graph, load_external_data=False).graph.initializer
        if tensor.external_data
    }
    del tensors["wpe.weight"]
    read = sum(tensors.values())
    # Between tensors the file has gaps, since each begins at a round offset.
    assert read <= limits.weight_bytes_per_token(sample_store, precision) <= 1.01 * read


def _item_bytes(data_type: int) -> int:
    from onnx import helper

    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


# -- many models of one: tests/unit/test_benchmarks_model.py has more ------------------------


@pytest.fixture
def one(tmp_path: Path) -> Assets:
    """A made-up file wherever a system has one."""
    folder = tmp_path / "one"
    made = replace(model.assets_in(folder), model="org/name")
    for variant in ("cpu-int8", "cuda-fp16"):
        package = made.store / made.model / variant
        package.mkdir(parents=True)
        (package / MANIFEST_FILE).write_text(json.dumps({"id": "org/name", "precision": variant}))
        (package / "weights").write_text(variant)
    for path in (made.onnx / "model.onnx", made.ct2 / "int8" / "model.bin", made.gguf):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    return made


@pytest.mark.parametrize("copy", [False, True])
def test_a_manifest_names_its_own_model_and_the_first_stays(
    one: Assets, tmp_path: Path, *, copy: bool
) -> None:
    kinds = ["package-int8", "package-fp16"]
    for _ in range(2):  # what is there already is not what is written through
        made = copies.many(one, 3, kinds, tmp_path / "many", copy=copy)
    for assets in (one, *made):
        for variant in ("cpu-int8", "cuda-fp16"):
            package = assets.store / assets.model / variant
            manifest = json.loads((package / MANIFEST_FILE).read_text())
            assert manifest == {"id": assets.model, "precision": variant}
            assert (package / "weights").read_text() == variant
    inodes = {
        (assets.store / assets.model / "cpu-int8" / "weights").stat().st_ino
        for assets in (one, *made)
    }
    assert len(inodes) == (4 if copy else 1)


@pytest.mark.parametrize("copy", [False, True])
def test_every_format_has_its_place(one: Assets, tmp_path: Path, *, copy: bool) -> None:
    folder = tmp_path / "many"
    copies.many(one, 1, ["onnx-fp32", "ct2-int8", "gguf-q8_0"], folder, copy=copy)
    there = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in there.items()} == {
        "onnx/bench/m000/model.onnx": "model.onnx",
        "ct2/bench/m000/int8/model.bin": "model.bin",
        "gguf/bench/m000.gguf": one.gguf.name,
    }
    assert {path.stat().st_nlink for path in there.values()} == {1 if copy else 2}


def test_a_package_that_was_exported_anew_replaces_its_links(one: Assets, tmp_path: Path) -> None:
    (made,) = copies.many(one, 1, ["package-int8"], tmp_path / "many")
    weights = one.store / one.model / "cpu-int8" / "weights"
    weights.unlink()  # the exporter makes a new folder
    weights.write_text("new weights")
    copies.many(one, 1, ["package-int8"], tmp_path / "many")
    linked = made.store / made.model / "cpu-int8" / "weights"
    assert linked.samefile(weights)
    assert linked.read_text() == "new weights"


def test_ids_of_many_models_sort_by_number() -> None:
    made = copies.model_ids(1000)
    assert sorted(set(made)) == made
    assert (made[0], made[999]) == ("bench/m000", "bench/m999")


def test_formats_that_cannot_be_copied_are_refused(one: Assets, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no format safetensors"):
        copies.many(one, 1, ["safetensors"], tmp_path / "many")
    with pytest.raises(FileNotFoundError):
        copies.many(one, 1, ["ct2-fp32"], tmp_path / "many")
