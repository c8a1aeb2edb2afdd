"""A set of named byte strings as one directory or zip, sealed by SHA-256, written whole or not at all.

``manifest.json`` lists the size and hash of every other file, ``manifest.sha256`` holds its own. The seal finds
damage; it is no signature, so whoever can change all files can seal them again. What is read is therefore also
limited in size and number, never named by a path, and never run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autometa.exceptions import ArtefactError

MANIFEST, SEAL = "manifest.json", "manifest.sha256"
MAX_FILES = 10_000
MAX_MANIFEST_BYTES = 64 * 1024**2
MAX_BYTES = 4 * 1024**3

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*(\.[A-Za-z0-9_\-]+)+")
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Source:
    """A directory or an open zip: the names in it and a bounded read."""

    names: frozenset[str] | None
    read: Callable[[str, int], bytes]


def write_sealed(path: Path, manifest: Mapping[str, Any], files: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Write files and manifest beside ``path``, then move them there in one step.

    Raises
    ------
    ArtefactError
        The path exists and ``overwrite`` is false, or what is there is no artefact and so is not deleted.
    """
    path = Path(os.path.abspath(path))
    check_target(path, overwrite=overwrite)
    sizes = {name: {"bytes": len(data), "sha256": _digest(data)} for name, data in files.items()}
    text = json.dumps({**manifest, "files": sizes}, ensure_ascii=False, allow_nan=False, indent=1).encode()
    everything = {**files, MANIFEST: text, SEAL: f"{_digest(text)}\n".encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    is_zip = path.suffix.lower() == ".zip"
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        if is_zip:
            _write_zip(scratch / "new", everything)
            check_target(path, overwrite=overwrite)
            os.replace(scratch / "new", path)
        else:
            _write_directory(scratch / "new", everything)
            check_target(path, overwrite=overwrite)
            _swap_directory(scratch, path)
    finally:
        if path.exists() or not (scratch / "old").exists():  # the only copy of the old artefact is never deleted
            shutil.rmtree(scratch, ignore_errors=True)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise ArtefactError unless an artefact may be put here."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise ArtefactError(f"The path {str(path)!r} must not exist yet. Pass overwrite=True to replace the artefact.")
    if path.is_symlink():
        raise ArtefactError(f"The path {str(path)!r} must not be a symbolic link. Save to where it points.")
    if path.suffix.lower() == ".zip":
        fits = path.is_file() and _zip_has_manifest(path)
    else:
        fits = path.is_dir() and (((path / SEAL).is_file() and (path / MANIFEST).is_file()) or not any(path.iterdir()))
    if not fits:
        raise ArtefactError(
            f"Only an artefact is overwritten. What lies at {str(path)!r} is none: choose another path."
        )


def _zip_has_manifest(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return SEAL in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def _write_directory(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        with open(folder / name, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    with open(path, "xb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in files.items():
                entry = zipfile.ZipInfo(name, _ZIP_TIME)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, data, compress_type=zipfile.ZIP_DEFLATED)
        file.flush()
        os.fsync(file.fileno())


def _swap_directory(scratch: Path, path: Path) -> None:
    """Two renames; the old artefact comes back if the second one fails."""
    old = scratch / "old"
    moved = path.exists()
    if moved:
        os.rename(path, old)
    try:
        os.rename(scratch / "new", path)
    except BaseException:
        if moved:
            os.rename(old, path)
        raise


def read_sealed(path: Path, *, max_bytes: int = MAX_BYTES) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and files, each checked against its size and hash.

    Raises
    ------
    ArtefactError
        A file is missing, damaged, linked, badly named, too large or not listed.
    """
    with open_source(path) as source:
        manifest = read_manifest(source)
        listed = _listed_files(manifest, max_bytes)
        if source.names is not None:
            unlisted = source.names - set(listed) - {MANIFEST, SEAL}
            if unlisted:
                raise ArtefactError(f"Every file must be in the manifest. {sorted(unlisted)[0]!r:.100} is not.")
        files = {name: _checked(source.read(name, size), name, size, digest) for name, (size, digest) in listed.items()}
    return manifest, files


def read_manifest(source: Source) -> dict[str, Any]:
    """The manifest, checked against ``manifest.sha256``."""
    text = source.read(MANIFEST, MAX_MANIFEST_BYTES)
    seal = source.read(SEAL, 200).decode("ascii", errors="replace").strip()
    if _digest(text) != seal:
        raise ArtefactError("The manifest does not match its SHA-256: the artefact is damaged or was changed.")
    manifest = json.loads(text)
    if not isinstance(manifest, dict):
        raise ArtefactError("The manifest must be a JSON object: the artefact is damaged.")
    return manifest


def _listed_files(manifest: Mapping[str, Any], max_bytes: int) -> dict[str, tuple[int, str]]:
    files = manifest.get("files")
    if not isinstance(files, dict) or len(files) > MAX_FILES:
        raise ArtefactError(f"The manifest must list at most {MAX_FILES} files: the artefact is damaged.")
    listed = {}
    for name, entry in files.items():
        size, digest = entry["bytes"], entry["sha256"]
        if type(size) is not int or size < 0 or not isinstance(digest, str):
            raise ArtefactError(f"The manifest must give size and hash of {name!r:.100}: the artefact is damaged.")
        listed[check_name(name)] = (size, digest)
    if {MANIFEST, SEAL} & set(listed):
        raise ArtefactError("The manifest must not list itself: the artefact is damaged.")
    total = sum(size for size, _ in listed.values())
    if total > max_bytes:
        raise ArtefactError(f"The files must have at most {max_bytes} bytes in all. Got {total}: raise max_bytes.")
    return listed


def check_name(name: Any) -> str:
    """A plain file name without folders; ArtefactError otherwise."""
    if not (isinstance(name, str) and len(name) <= 200 and _NAME.fullmatch(name)):
        raise ArtefactError(f"A file of an artefact must have a plain name. Got {name!r:.100} instead.")
    return name


def _checked(data: bytes, name: str, size: int, digest: str) -> bytes:
    if len(data) != size or _digest(data) != digest:
        raise ArtefactError(f"The file {name!r} does not match its size and SHA-256: it is damaged or was changed.")
    return data


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """A directory or zip for reading; whatever is wrong with it is an ArtefactError."""
    try:
        if path.is_dir():
            yield Source(None, lambda name, limit: _read_plain_file(path / check_name(name), limit))
        elif path.is_file():
            with zipfile.ZipFile(path) as archive:
                entries = _zip_entries(archive)
                yield Source(frozenset(entries), lambda name, limit: _read_entry(archive, entries, name, limit))
        else:
            raise ArtefactError(f"There is no artefact at {str(path)!r}.")
    except ArtefactError:
        raise
    except Exception as error:  # every parser has exceptions of its own
        raise ArtefactError(f"The artefact at {str(path)!r} cannot be read: {_reason(error)}") from error


def _read_plain_file(path: Path, limit: int) -> bytes:
    """Contents of a regular file, never through a link, never more than ``limit`` bytes."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise ArtefactError(f"The file {path.name!r} is missing, a link or not readable: {error.strerror}") from error
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or path.is_symlink():
            raise ArtefactError(f"The file {path.name!r} must be a regular file, and no link.")
        if found.st_size > limit:
            raise ArtefactError(f"The file {path.name!r} must have at most {limit} bytes. Got {found.st_size}.")
        return file.read(limit + 1)


def _zip_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > MAX_FILES + 2:
        raise ArtefactError(f"The zip must hold at most {MAX_FILES} files. Got {len(entries)}.")
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        plain = kind in (0, stat.S_IFREG) and entry.compress_type in _ZIP_METHODS and not entry.flag_bits & 0x1
        if not plain or check_name(entry.orig_filename) != entry.filename or entry.filename in found:
            raise ArtefactError(f"The zip must hold plain files, each once. Got {entry.filename!r:.100}.")
        found[entry.filename] = entry
    return found


def _read_entry(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], name: str, limit: int) -> bytes:
    entry = entries.get(name)
    if entry is None:
        raise ArtefactError(f"The file {name!r} is missing from the zip.")
    if entry.file_size > limit:
        raise ArtefactError(f"The file {name!r} must have at most {limit} bytes. The zip declares {entry.file_size}.")
    with archive.open(entry) as file:
        return file.read(limit + 1)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error!s:.300}"
