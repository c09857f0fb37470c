"""One checkpoint, from its folder to the store: load, write, verify, publish."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gpt2export import portable, writer
from gpt2export.calibration import read_calibration, windows
from gpt2export.checkpoint import Checkpoint, load_checkpoint, source_hash
from gpt2export.errors import ExportError
from gpt2export.hub import Located, locate
from gpt2export.package_files import source_of, write_manifest, write_model
from gpt2export.reference import Reference
from gpt2export.smooth import Ranges
from gpt2export.verify import verify
from gpt2serve.package import (
    Manifest,
    PackageError,
    Precision,
    Source,
    Target,
    package_path,
    read_manifest,
    variant_name,
)

Say = Callable[[str], None]
Variant = tuple[Target, Precision]


@dataclass(frozen=True)
class Options:
    """What holds for every checkpoint of a run. `calibration` None is the text that ships."""

    store: Path
    variants: tuple[Variant, ...] = (("cpu", "int8"),)
    force: bool = False
    portable: bool = False
    verify: bool = True
    calibration: Path | None = None
    threads: int = 1


@dataclass(frozen=True)
class Job:
    """A folder or hub id, and the id of its packages."""

    checkpoint: str
    model: str


@dataclass(frozen=True)
class Outcome:
    """One row of the table at the end. Sizes in bytes, times in seconds."""

    model: str
    variant: str
    status: Literal["exported", "unchanged", "failed"]
    size: int = 0
    seconds: float = 0.0
    perplexity_change: float | None = None
    message: str = ""


class Exporter:
    """Exports one job. Reads the checkpoint at most once, and only if something is to be made."""

    def __init__(self, job: Job, options: Options, say: Say) -> None:
        self._job = job
        self._options = options
        self._say = say
        self._loaded: Checkpoint | None = None

    def run(self) -> Iterator[Outcome]:
        """Raises nothing for what is wrong with the job: that becomes an outcome."""
        options, model = self._options, self._job.model
        try:
            text = read_calibration(options.calibration)
            located = locate(self._job.checkpoint)
            source = source_of(located.name, source_hash(located.folder))
        except ExportError as error:
            for name in _names(options):
                yield Outcome(model, name, "failed", message=str(error))
            return
        for target, precision in options.variants:
            name = variant_name(target, precision)
            yield self._timed(
                name, partial(self._package, located, source, target, precision, text)
            )
        if options.portable:
            yield self._timed(portable.FOLDER, partial(self._portable, located, source))

    def _timed(self, variant: str, make: Callable[[], Outcome]) -> Outcome:
        begin = time.perf_counter()
        try:
            made = make()
        except (ExportError, PackageError, OSError, MemoryError) as error:
            message = str(error) or type(error).__name__
            made = Outcome(self._job.model, variant, "failed", message=message)
        return replace(made, seconds=time.perf_counter() - begin)

    def _package(
        self, located: Located, source: Source, target: Target, precision: Precision, text: str
    ) -> Outcome:
        options, model = self._options, self._job.model
        destination = package_path(options.store, model, target, precision)
        digest = _digest(text) if options.verify else None
        old = None if options.force else _current(destination, model, source, digest)
        if old is not None:
            return _outcome("unchanged", old)
        checkpoint = self._checkpoint(located)
        with writer.staging(options.store) as temporary:
            folder = temporary / variant_name(target, precision)
            folder.mkdir()
            self._say(f"{model}: writing {folder.name}")
            write_model(folder, checkpoint, precision, self._ranges(checkpoint, precision, text))
            report = self._verify(folder, checkpoint, precision, text)
            manifest = write_manifest(
                folder,
                checkpoint,
                model=model,
                target=target,
                precision=precision,
                source=source,
                verification=report,
            )
            writer.publish(folder, destination)
        self._say(f"{model}: published {destination}")
        return _outcome("exported", manifest)

    def _verify(
        self, folder: Path, checkpoint: Checkpoint, precision: Precision, text: str
    ) -> dict[str, Any]:
        if not self._options.verify:
            return {}
        self._say(f"{self._job.model}: comparing with PyTorch on calibration text")
        report = verify(folder, checkpoint, precision, text, threads=self._options.threads)
        self._say(f"{self._job.model}: {_summary(report)}")
        return {"calibration_sha256": _digest(text)} | report

    def _ranges(self, checkpoint: Checkpoint, precision: Precision, text: str) -> Ranges | None:
        if precision != "int8":
            return None
        return Reference(checkpoint).ranges(windows(checkpoint, text))

    def _portable(self, located: Located, source: Source) -> Outcome:
        store, model, name = self._options.store, self._job.model, portable.FOLDER
        if not self._options.force and portable.is_current(store, model, source.sha256):
            return Outcome(model, name, "unchanged", _size(portable.portable_path(store, model)))
        self._say(f"{model}: writing the portable folder with optimum")
        path = portable.export_portable(located.folder, store, model, source.sha256)
        self._say(f"{model}: published {path}")
        return Outcome(model, name, "exported", _size(path))

    def _checkpoint(self, located: Located) -> Checkpoint:
        import torch

        if self._loaded is None:
            torch.set_num_threads(self._options.threads)
            self._say(f"{self._job.model}: reading {located.folder}")
            self._loaded = load_checkpoint(located.folder)
        return self._loaded


def _current(destination: Path, model: str, source: Source, digest: str | None) -> Manifest | None:
    """The manifest of a package that the same export would only make again."""
    try:
        manifest = read_manifest(destination)
    except PackageError:
        return None
    if manifest.id != model or manifest.source != source:
        return None
    verified = manifest.verification.get("calibration_sha256")
    return manifest if digest in (None, verified) else None


def _outcome(status: Literal["exported", "unchanged"], manifest: Manifest) -> Outcome:
    return Outcome(
        manifest.id,
        variant_name(manifest.target, manifest.precision),
        status,
        size=sum(entry.bytes for entry in manifest.files.values()),
        perplexity_change=manifest.verification.get("perplexity_change"),
    )


def _names(options: Options) -> list[str]:
    names = [variant_name(target, precision) for target, precision in options.variants]
    return [*names, portable.FOLDER] if options.portable else names


def _summary(report: dict[str, Any]) -> str:
    return (
        f"perplexity {report['perplexity']:.4g}, original {report['perplexity_reference']:.4g} "
        f"({report['perplexity_change']:+.3%}); same best token {report['top1_agreement']:.1%}; "
        f"mean KL {report['mean_kl']:.2g}; largest logit error {report['max_logit_error']:.2g}"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
