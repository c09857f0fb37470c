"""One checkpoint, from its folder to the store: load, write, verify, publish."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt2export import portable, sources, writer
from gpt2export.calibration import read_calibration, windows
from gpt2export.errors import CheckpointError, ExportError
from gpt2export.hub import Located, locate
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

if TYPE_CHECKING:
    from gpt2export.checkpoint import Checkpoint
    from gpt2export.reference import Reading, Reference
    from gpt2export.smooth import Ranges

Say = Callable[[str], None]
Variant = tuple[Target, Precision]

#: Errors after which no other package could be written either.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Options:
    """What holds for every checkpoint of a run.

    calibration: the text that packages are compared on.
    """

    store: Path
    variants: tuple[Variant, ...] = (("cpu", "int8"),)
    force: bool = False
    portable: bool = False
    verify: bool = True
    calibration: str = field(default_factory=partial(read_calibration, None))
    threads: int = 1

    @cached_property
    def digest(self) -> str | None:
        """Names the calibration text; None if there is no comparing."""
        return hashlib.sha256(self.calibration.encode()).hexdigest() if self.verify else None

    @property
    def names(self) -> list[str]:
        """Of all packages that a checkpoint becomes."""
        names = [variant_name(target, precision) for target, precision in self.variants]
        return [*names, portable.FOLDER] if self.portable else names


@dataclass(frozen=True)
class Job:
    """A folder or hub id, and the id of its packages."""

    checkpoint: str
    model: str


@dataclass(frozen=True)
class Outcome:
    """What became of one package. Sizes in bytes, times in seconds.

    fatal: the store can take no other package either.
    """

    model: str
    variant: str
    status: Literal["exported", "unchanged", "failed"]
    size: int = 0
    seconds: float = 0.0
    perplexity_change: float | None = None
    message: str = ""
    checkpoint: str = ""
    fatal: bool = False


def failures(job: Job, options: Options, message: str) -> list[Outcome]:
    """All packages of a job that cannot be done."""
    return [
        Outcome(job.model, name, "failed", message=message, checkpoint=job.checkpoint)
        for name in options.names
    ]


def unchanged(job: Job, options: Options) -> list[Outcome] | None:
    """The outcomes of a job with nothing to do, found out without reading a weight.

    None if there is something to do, and if only hashing could tell.
    """
    folder = Path(job.checkpoint).expanduser()
    if options.force or not folder.is_dir():
        return None
    try:
        located = locate(job.checkpoint)
        sha256 = sources.remembered_hash(options.store / job.model, sources.stat_files(folder))
    except ExportError:
        return None  # the export itself will say it
    if sha256 is None:
        return None
    found = [_found(job, options, _source(located, sha256), name) for name in options.names]
    present = [outcome for outcome in found if outcome is not None]
    return present if len(present) == len(found) else None


class Exporter:
    """Exports one job. Reads the checkpoint at most once, and only if something is to be made."""

    def __init__(self, job: Job, options: Options, say: Say) -> None:
        self._job = job
        self._options = options
        self._say = say
        self._loaded: _Loaded | None = None

    def run(self) -> Iterator[Outcome]:
        """Raises nothing for what is wrong with the job: that becomes an outcome."""
        options, job = self._options, self._job
        model_folder = options.store / job.model
        try:
            located = locate(job.checkpoint)
            read_at, files = time.time_ns(), sources.stat_files(located.folder)
            known = None if options.force else sources.remembered_hash(model_folder, files)
            source = _source(located, known or sources.source_hash(located.folder))
        except (ExportError, OSError) as error:
            yield from failures(job, options, str(error))
            return
        making = _Making(located.folder, files, source)
        for target, precision in options.variants:
            name = variant_name(target, precision)
            yield self._timed(name, partial(self._package, making, target, precision))
        if options.portable:
            yield self._timed(portable.FOLDER, partial(self._portable, making))
        if known is None and model_folder.is_dir():
            sources.remember_hash(model_folder, files, source.sha256, hashed_at=read_at)

    def _timed(self, variant: str, make: Callable[[], Outcome]) -> Outcome:
        begin = time.perf_counter()
        try:
            made = make()
        except (ExportError, PackageError, OSError, MemoryError) as error:
            message = str(error) or type(error).__name__
            made = Outcome(
                self._job.model, variant, "failed", message=message, fatal=_is_full(error)
            )
        seconds = time.perf_counter() - begin
        return replace(made, seconds=seconds, checkpoint=self._job.checkpoint)

    def _package(self, making: _Making, target: Target, precision: Precision) -> Outcome:
        from gpt2export.package_files import write_manifest, write_model

        options, job = self._options, self._job
        name = variant_name(target, precision)
        old = None if options.force else _found(job, options, making.source, name)
        if old is not None:
            return old
        loaded = self._load(making.folder)
        with writer.staging(options.store) as temporary:
            folder = temporary / name
            folder.mkdir()
            self._say(f"{job.model}: writing {name}")
            write_model(folder, loaded.checkpoint, precision, self._ranges(loaded, precision))
            report = self._verify(folder, loaded, precision)
            making.check()
            manifest = write_manifest(
                folder,
                loaded.checkpoint,
                model=job.model,
                target=target,
                precision=precision,
                source=making.source,
                verification=report,
            )
            destination = package_path(options.store, job.model, target, precision)
            writer.publish(folder, destination)
        self._say(f"{job.model}: published {destination}")
        return _outcome("exported", manifest)

    def _verify(self, folder: Path, loaded: _Loaded, precision: Precision) -> dict[str, Any]:
        from gpt2export.verify import verify

        options = self._options
        if not options.verify:
            return {}
        self._say(f"{self._job.model}: comparing with PyTorch on calibration text")
        report = verify(
            folder, loaded.reference, loaded.reading, precision, threads=options.threads
        )
        self._say(f"{self._job.model}: {_summary(report)}")
        return {"calibration_sha256": options.digest} | report

    def _ranges(self, loaded: _Loaded, precision: Precision) -> Ranges | None:
        return loaded.reading.ranges if precision == "int8" else None

    def _portable(self, making: _Making) -> Outcome:
        options, job = self._options, self._job
        old = None if options.force else _found(job, options, making.source, portable.FOLDER)
        if old is not None:
            return old
        self._say(f"{job.model}: writing the portable folder with optimum")
        folder = portable.export_portable(
            making.folder, options.store, job.model, making.source.sha256
        )
        return Outcome(job.model, portable.FOLDER, "exported", _size(folder))

    def _load(self, folder: Path) -> _Loaded:
        from gpt2export.checkpoint import load_checkpoint

        if self._loaded is None:
            self._say(f"{self._job.model}: reading {folder}")
            self._loaded = _Loaded(load_checkpoint(folder), self._options.calibration)
        return self._loaded


@dataclass(frozen=True)
class _Making:
    """The checkpoint's folder as it was when it was hashed."""

    folder: Path
    files: sources.SourceFiles
    source: Source

    def check(self) -> None:
        if not sources.same_content(self.files, sources.stat_files(self.folder)):
            raise CheckpointError(f"{self.folder} changed while it was exported: export it again.")


class _Loaded:
    """A checkpoint, and what it says to the calibration text: read once for all packages."""

    def __init__(self, checkpoint: Checkpoint, text: str) -> None:
        self.checkpoint = checkpoint
        self._text = text

    @cached_property
    def reference(self) -> Reference:
        from gpt2export.reference import Reference

        return Reference(self.checkpoint)

    @cached_property
    def reading(self) -> Reading:
        return self.reference.read(windows(self.checkpoint, self._text))


def _source(located: Located, sha256: str) -> Source:
    from gpt2export import __version__

    return Source(name=located.name, sha256=sha256, exporter_version=__version__)


def _found(job: Job, options: Options, source: Source, name: str) -> Outcome | None:
    """What is there already, if the same export would only make it again."""
    begin = time.perf_counter()
    if name == portable.FOLDER:
        if not portable.is_current(options.store, job.model, source.sha256):
            return None
        size = _size(portable.portable_path(options.store, job.model))
        found = Outcome(job.model, name, "unchanged", size)
    else:
        manifest = _current(options.store / job.model / name, job.model, source, options.digest)
        if manifest is None:
            return None
        found = _outcome("unchanged", manifest)
    return replace(found, checkpoint=job.checkpoint, seconds=time.perf_counter() - begin)


def _current(destination: Path, model: str, source: Source, digest: str | None) -> Manifest | None:
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


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False


def _summary(report: dict[str, Any]) -> str:
    return (
        f"perplexity {report['perplexity']:.4g}, original {report['perplexity_reference']:.4g} "
        f"({report['perplexity_change']:+.3%}); same best token {report['top1_agreement']:.1%}; "
        f"mean KL {report['mean_kl']:.2g}; largest logit error {report['max_logit_error']:.2g}"
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
