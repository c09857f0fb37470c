"""`--portable`: the standard ONNX folder, written by optimum.

Standard inputs and outputs; loads anywhere with `ORTModelForCausalLM`. Larger and slower than a
package, and made by other code than the package's graph: the tests compare the two.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2export import __version__, writer
from gpt2export.errors import ExportError

FOLDER = "portable"

#: Says what the folder was made from, so that an unchanged one is not made again.
_MARK = "gpt2export.json"


def portable_path(store: Path, model: str) -> Path:
    return store / model / FOLDER


def is_current(store: Path, model: str, sha256: str) -> bool:
    try:
        return (portable_path(store, model) / _MARK).read_text("utf-8") == _mark(sha256)
    except (OSError, ValueError):
        return False


def export_portable(checkpoint: Path, store: Path, model: str, sha256: str) -> Path:
    """Write and publish `STORE/<id>/portable`. Raises `ExportError`."""
    destination = portable_path(store, model)
    with writer.staging(store) as temporary:
        output = temporary / FOLDER
        _run_optimum(checkpoint, output)
        (output / _MARK).write_text(_mark(sha256), encoding="utf-8")
        writer.publish(output, destination)
    return destination


def _run_optimum(checkpoint: Path, output: Path) -> None:
    with _quiet():
        from optimum.exporters.onnx import main_export

        try:
            main_export(
                str(checkpoint),
                output=output,
                task="text-generation-with-past",
                framework="pt",
                do_validation=False,
            )
        except Exception as error:  # optimum lets through what torch and onnx raise
            raise ExportError(f"optimum could not export {checkpoint.name} ({error}).") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns about every Python branch that it passes; nobody can act on that."""
    logger = logging.getLogger("optimum")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _mark(sha256: str) -> str:
    return json.dumps({"source_sha256": sha256, "exporter_version": __version__}) + "\n"
