"""Checkpoints out of a bucket and packages into one: `python -m gpt2export.bucket`.

The exporter works on folders. Where checkpoints and packages lie in buckets, this goes before and
after it. Credentials, region and endpoint come from the environment variables that obstore reads.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2export.errors import ExportError, StoreError, UsageError
from gpt2export.hub import patterns
from gpt2export.share import Share, parse_share
from gpt2export.sources import CONFIG_FILE
from gpt2serve.package import MANIFEST_FILE, VARIANTS, allows_http, variant_name

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_DESCRIPTION = """\
Brings checkpoints from a bucket to a folder, and packages from a folder to a bucket.
"""

_EXAMPLES = """\
examples:
  python -m gpt2export.bucket fetch s3://bucket/checkpoints checkpoints/ me/poems
  python -m gpt2export.bucket fetch s3://bucket/checkpoints checkpoints/ --share 0/20
  gpt2export checkpoints/ --store models/
  python -m gpt2export.bucket publish models/ s3://bucket/packages

A checkpoint is a prefix name/ or org/name/ with a config.json in it, and has that id. Of a package,
manifest.json is uploaded last, for it is what makes the other files count; packages that are in the
bucket already, with the same manifest, are left alone."""

#: For one request; obstore's own 30 s are too few for gigabytes.
_TIMEOUT = timedelta(hours=1)
_CONNECT_TIMEOUT = timedelta(seconds=10)
_CHUNK = 1024**2


def connect(url: str) -> ObjectStore:
    """Raises `UsageError` for what is no bucket, or if obstore is missing."""
    try:
        import obstore.store
    except ModuleNotFoundError as error:
        raise UsageError(f"{url} needs obstore: pip install 'gpt2serve[export]'.") from error
    options: Any = {
        "timeout": _TIMEOUT,
        "connect_timeout": _CONNECT_TIMEOUT,
        "allow_http": allows_http(url, os.environ),
    }
    try:
        return obstore.store.from_url(url, client_options=options)
    except Exception as error:  # obstore raises many kinds for what is no store
        raise UsageError(f"{url} is no bucket: {_first_line(error)}") from error


@contextlib.contextmanager
def _about(what: str) -> Iterator[None]:
    """What goes wrong within it, at the bucket or the disk, becomes a `StoreError` that says so."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        raise StoreError(f"{what}: {_first_line(error)}") from error


# -- checkpoints ------------------------------------------------------------------------------


def checkpoints_in(bucket: ObjectStore) -> dict[str, dict[str, int]]:
    """Of each checkpoint, by id and in their order: its files that an export reads, with sizes."""
    import obstore

    found: dict[str, dict[str, int]] = {}
    with _about("the bucket cannot be listed"):
        for page in obstore.list(bucket):
            for meta in page:
                *folder, name = meta["path"].split("/")
                if 1 <= len(folder) <= 2 and not any(part.startswith(".") for part in folder):
                    found.setdefault("/".join(folder), {})[name] = meta["size"]
    models = {model for model, files in found.items() if CONFIG_FILE in files}
    return {
        model: {name: found[model][name] for name in _needed(found[model])}
        for model in sorted(models)
        # What lies inside a checkpoint is a trainer's, not another model.
        if model.rpartition("/")[0] not in models
    }


def _needed(names: Collection[str]) -> list[str]:
    wanted = patterns(names)
    return sorted(name for name in names if any(fnmatch(name, each) for each in wanted))


def fetch(bucket: ObjectStore, folder: Path, models: Sequence[str], share: Share) -> Iterator[str]:
    """Downloads checkpoints to `folder`/<id>/; yields a line about each.

    models: only these. Raises `UsageError` if one is not there, or if there is none at all.
    """
    found = checkpoints_in(bucket)
    missing = [model for model in models if model not in found]
    if missing or not found:
        raise UsageError(
            f"there is no checkpoint {', '.join(missing)}".rstrip() + " in the bucket."
        )
    for model in share.of(list(models or found)):
        for name, size in found[model].items():
            _download(bucket, f"{model}/{name}", folder / model / name, size)
        yield f"{model}: {len(found[model])} files, {sum(found[model].values()):,} bytes"


def _download(bucket: ObjectStore, key: str, path: Path, size: int) -> None:
    """Whole or not at all."""
    import obstore

    with _about(key):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as file:
            for chunk in obstore.get(bucket, key).stream(min_chunk_size=_CHUNK):
                file.write(chunk)
            if file.tell() != size:
                raise StoreError(f"{key}: {file.tell():,} bytes came of {size:,}.")
        part.replace(path)


# -- packages ---------------------------------------------------------------------------------


def packages_in(store: Path) -> list[Path]:
    """Folders of the complete packages in a store, below it."""
    variants = {variant_name(*variant) for variant in VARIANTS}
    return sorted(
        folder
        for manifest in store.rglob(MANIFEST_FILE)
        if (folder := manifest.parent.relative_to(store)).name in variants
        and not any(part.startswith(".") for part in folder.parts)
    )


def publish(store: Path, bucket: ObjectStore) -> Iterator[str]:
    """Uploads the packages of a store; yields a line about each."""
    for package in packages_in(store):
        manifest = store / package / MANIFEST_FILE
        key = f"{package.as_posix()}/{MANIFEST_FILE}"
        if _content(bucket, key) == manifest.read_bytes():
            yield f"{package}: unchanged"
            continue
        files = [path for path in (store / package).iterdir() if path != manifest]
        for path in (*sorted(files), manifest):
            _upload(bucket, f"{package.as_posix()}/{path.name}", path)
        yield f"{package}: published"


def _content(bucket: ObjectStore, key: str) -> bytes | None:
    import obstore
    from obstore.exceptions import NotFoundError

    with _about(key):
        try:
            return bytes(obstore.get(bucket, key).bytes())
        except (NotFoundError, FileNotFoundError):
            return None


def _upload(bucket: ObjectStore, key: str, path: Path) -> None:
    import obstore

    with _about(key):
        obstore.put(bucket, key, path)


# -- the command ------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    count = 0
    try:
        for line in _lines(args):
            print(line, flush=True)
            count += 1
    except UsageError as error:
        parser.error(str(error))
    except ExportError as error:
        print(f"gpt2export.bucket: {error}", file=sys.stderr)
        return 1
    print(f"{count:,} in all", flush=True)
    return 0


def _lines(args: argparse.Namespace) -> Iterator[str]:
    bucket = connect(args.url)
    if args.command == "fetch":
        return fetch(bucket, args.folder, args.models, args.share)
    return publish(args.folder, bucket)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpt2export.bucket",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    get = commands.add_parser("fetch", help="download checkpoints")
    get.add_argument("url", metavar="URL", help="s3://bucket/prefix")
    get.add_argument("folder", type=Path, metavar="DIR", help="where they go, in DIR/<id>/")
    get.add_argument("models", nargs="*", metavar="ID", help="only these (default: all)")
    get.add_argument(
        "--share",
        type=parse_share,
        default=Share(),
        metavar="I/N",
        help="only every N-th, from number I on, which begins with 0",
    )
    put = commands.add_parser("publish", help="upload packages")
    put.add_argument("folder", type=Path, metavar="STORE", help="what gpt2export wrote")
    put.add_argument("url", metavar="URL", help="s3://bucket/prefix")
    return parser


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
