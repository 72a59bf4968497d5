"""Fetching published demonstrations: pinned, resumed after an interruption, and verified before they appear.

Two kinds of place serve them: repositories of the Hugging Face hub, fetched with its own client, and archives
behind an address. Files grow in a hidden sibling of the destination and move there when all of them are
right.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mode_datasets import reading, schema
from mode_datasets.convert.archives import unpack
from mode_datasets.convert.description import download_record
from mode_datasets.convert.sink import partial_path, remove
from mode_datasets.location import LocalFolder
from mode_datasets.published import ArchiveData, HubData
from mode_policy.errors import ConfigError, DataError
from mode_policy.files import existing_parent, sha256, write_json

#: Called with what is being done, bytes done and bytes in all.
Progress = Callable[[str, int, int], None]

_BLOCK = 2**20


def download(
    item: HubData | ArchiveData,
    destination: Path,
    *,
    endpoint: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> bool:
    """Fetch data to a folder; after an interruption, call it again.

    Args:
        item: What.
        destination: The folder to make.
        endpoint: Address of another hub.
        progress: Called as bytes arrive.

    Returns:
        Whether anything had to be fetched: False if it is all there, of the same revision.

    Raises:
        ConfigError: if `huggingface_hub` is needed and not installed.
        DataError: if the server cannot be reached or does not have the data, they are not what they should
            be,
            the disk is too small, or something else is at the destination.
    """
    destination = destination.absolute()
    record = download_record(destination)
    if os.path.lexists(destination):
        try:
            if json.loads(record.read_text())["source"] == item.source:
                return False
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise DataError(
            f"{destination} exists and was not downloaded from {item.source}; choose another folder"
        )
    partial = partial_path(destination)
    partial.mkdir(parents=True, exist_ok=True)
    if isinstance(item, HubData):
        files = _from_hub(item, partial, endpoint, progress)
        os.rename(partial / item.folder, destination)
    else:
        files = _from_archive(item, partial, progress)
        os.rename(partial / "unpacked" / item.member, destination)
    write_json(record, {"source": item.source, "licence": item.licence, "sha256": files})
    remove(partial)
    return True


def _from_hub(item: HubData, partial: Path, endpoint: str | None, progress: Progress) -> dict[str, str]:
    """Fetch files of a repository and verify them; return their digests."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError as error:
        raise ConfigError("the hub's data need: pip install 'mode-policy[hub]'") from error
    pattern = f"{item.folder}/{item.pattern}"
    try:
        info = HfApi(endpoint=endpoint).dataset_info(item.repo, revision=item.revision, files_metadata=True)
        files = [f for f in info.siblings or () if fnmatch.fnmatch(f.rfilename, pattern)]
        if info.sha != item.revision or not files:
            raise DataError(f"{item.repo} has no files {pattern} at {item.revision} (it answered {info.sha})")
        if odd := [f.rfilename for f in files if ".." in PurePosixPath(f.rfilename).parts]:
            raise DataError(f"{item.repo} lists the file {odd[0]!r}, which would leave its folder")
        total = sum(f.size or 0 for f in files)
        _check_space(partial, total - _size(partial))
        snapshot_download(
            item.repo,
            repo_type="dataset",
            revision=item.revision,
            allow_patterns=pattern,
            local_dir=partial,
            endpoint=endpoint,
            tqdm_class=_reporter(progress, total),
        )
    except DataError:
        raise
    except Exception as error:  # the client's errors share no base class
        raise DataError(
            f"{item.repo} cannot be fetched ({type(error).__name__}: {error}); files that have arrived are "
            "kept, so run this again later"
        ) from error
    digests = {}
    done = 0
    for file in files:
        path = partial / file.rfilename
        expected = file.lfs.sha256 if file.lfs else None
        digests[file.rfilename] = _verify(path, file.size, expected, None if expected else file.blob_id)
        done += file.size or 0
        progress("verifying", done, total)
    return digests


def _reporter(progress: Progress, total: int) -> Any:
    """Return what the hub's client takes for a progress bar: it draws nothing, and reports bytes."""
    from tqdm import tqdm

    class Reporter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            updated = super().update(n)
            if self._counts_bytes:
                progress("fetching", int(self.n), total)
            return updated

    return Reporter


def _verify(path: Path, size: int | None, expected: str | None, blob: str | None) -> str:
    """Return a file's SHA-256; delete it and raise `DataError` if it is not the published one."""
    found = sha256(path) if path.is_file() else "missing"
    right = path.is_file() and size in (None, path.stat().st_size)
    right = right and (expected is None or found == expected) and (blob is None or git_blob(path) == blob)
    if not right:
        remove(path)
        raise DataError(
            f"{path.name} is not the published file (sha256 {found[:12]}…, expected {expected or blob}); it "
            "was deleted, so run this again to fetch it anew"
        )
    return found


def git_blob(path: Path) -> str:
    """Return the name that git gives a file's content, by which the hub verifies small files."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _from_archive(item: ArchiveData, partial: Path, progress: Progress) -> dict[str, str]:
    """Fetch an archive, verify, unpack and verify its arrays; return its digest."""
    archive = partial / "archive.zip"
    if not archive.exists():
        fetch(item.url, archive, size=item.bytes, digest=item.sha256, progress=progress)
    unpacked = partial / "unpacked"
    remove(unpacked)
    try:
        unpack(archive, unpacked, limit=item.unpacked, progress=lambda d, t: progress("unpacking", d, t))
        folder = unpacked / item.member
        if not folder.is_dir():
            raise DataError(f"the archive {item.url} holds no folder {item.member}")
        for name, expected in (item.arrays or {}).items():
            found = array_digest(folder, name)
            if found != expected:
                raise DataError(
                    f"{name} of {item.url} holds other values than the published data (sha256 {found[:12]}…, "
                    f"expected {expected[:12]}…)"
                )
    except DataError:
        remove(archive)
        remove(unpacked)
        raise
    return {Path(item.url).name: sha256(archive)}


def array_digest(folder: Path, name: str) -> str:
    """Return a SHA-256 of an array's shape and values: the same however a store is packed."""
    location = LocalFolder(folder)
    values = reading.read_array(location, reading.open_array(reading.open_group(location), location, name))
    return schema.fingerprint({name: np.asarray(values, np.float32)}).removeprefix("sha256:")


def fetch(url: str, path: Path, *, size: int | None, digest: str | None, progress: Progress) -> None:
    """Fetch a file, going on where an earlier attempt stopped; it appears at ``path`` once it is verified.

    Args:
        url: Its address.
        path: Where it goes.
        size, digest: Bytes and SHA-256, if they are known.
        progress: Called as bytes arrive.

    Raises:
        DataError: if the server cannot be reached, sends less than it announced, or sends something else.
    """
    partial = path.with_name(path.name + ".incomplete")
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
                f"bytes {start}-"
            )
            start = start if resumed else 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length else size
            if total is not None and size is not None and total != size:
                raise DataError(f"{url} has {total} bytes, expected are {size}; it is not the published file")
            _check_space(path, (total or 0) - start)
            with partial.open("ab" if resumed else "wb") as file:
                done = start
                while block := answer.read(_BLOCK):
                    done += len(block)
                    if total is not None and done > total:
                        raise DataError(f"{url} sends more than the {total} bytes it announced")
                    file.write(block)
                    progress("fetching", done, total or 0)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to fetch, or what is here is longer than it
            remove(partial)
        raise DataError(f"{url} cannot be fetched ({error}); run this again later") from error
    except (OSError, urllib.error.URLError) as error:
        raise DataError(
            f"{url} cannot be fetched ({error}); what has arrived is kept, so run this again"
        ) from error
    if total is not None and done != total:
        raise DataError(
            f"{url} stopped after {done} of {total} bytes; what has arrived is kept, so run this again"
        )
    if digest is not None and (found := sha256(partial)) != digest:
        remove(partial)
        raise DataError(f"{url} is not the published file (sha256 {found[:12]}…, expected {digest[:12]}…)")
    os.replace(partial, path)


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(existing_parent(path)).free
    if needed > free:
        raise DataError(
            f"{needed / 2**30:.1f} GiB are needed at {path.parent}, and {free / 2**30:.1f} GiB are free; "
            "choose another folder with --folder"
        )


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
