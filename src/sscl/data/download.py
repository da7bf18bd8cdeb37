"""Files fetched over HTTP: resumed, checked by md5, and given their final name only when correct."""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from sscl import __version__
from sscl.progress import Bar
from sscl.writing import holding, put

_CHUNK_BYTES = 2**20
_TIMEOUT_S = 30
_ATTEMPTS = 4  # in a row without a new byte


@dataclass(frozen=True)
class RemoteFile:
    """Where a file is published, and the md5 of its bytes."""

    url: str
    md5: str


_ZENODO = "https://zenodo.org/records/10519652/files"
# Source: medmnist 3.0.2 (PyPI), medmnist/info.py. PathMNIST, CC BY 4.0; the 28 px file is on record 6496656 too.
FILES = {
    "pathmnist": RemoteFile(f"{_ZENODO}/pathmnist.npz?download=1", "a8b06965200029087d5bd730944a56c1"),
    "pathmnist_64": RemoteFile(f"{_ZENODO}/pathmnist_64.npz?download=1", "55aa9c1e0525abe5a6b9d8343a507616"),
    "pathmnist_128": RemoteFile(f"{_ZENODO}/pathmnist_128.npz?download=1", "ac42d08fb904d92c244187169d1fd1d9"),
    "pathmnist_224": RemoteFile(f"{_ZENODO}/pathmnist_224.npz?download=1", "2c51a510bcdc9cf8ddb2af93af1eadec"),
}


class _CutError(Exception):
    """The connection failed or ended early; another attempt may resume from there."""


def download(url: str, path: Path | str, *, md5: str, pause_s: float = 1.0, progress: bool = False) -> bool:
    """Fetch a file and return True; do nothing and return False if it exists already.

    Its bytes go to `path` + ".part", where a later call resumes, and get the final name only if their md5 is correct.

    Args:
        url: http or https.
        path: the final name; its folder is created.
        md5: of the whole file, 32 hex digits.
        pause_s: seconds to wait before the second attempt; doubled before each further one.

    Raises:
        ValueError: another file has the final name, or another process fetches it just now; the server refuses, or
            cannot be reached in several attempts; or the fetched file has another md5 (and is removed).
        OSError: the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    if not re.match(r"https?://[^/]", url):
        raise ValueError(f"url: got {url!r}, expected a URL that begins with http:// or https://")
    if path.parent.exists() and not path.parent.is_dir():
        raise ValueError(f"{path.parent}: is a file; give a folder to write to")
    if path.exists():
        if path.is_file() and _md5_of(path) == md5:
            return False
        raise ValueError(f"{path}: exists already, but is not the expected file (md5 {md5}); move it away")
    with holding(path):
        _fetch(url, part, path, pause_s=pause_s, progress=progress)
        found = _md5_of(part)
        if found != md5:
            part.unlink()
            raise ValueError(
                f"{url}: the fetched file has md5 {found}, expected {md5}; it was removed, try again or give another "
                "url"
            )
        put(part, path)
    return True


def _fetch(url: str, part: Path, path: Path, *, pause_s: float, progress: bool) -> None:
    """Fetch all of a file into `part`, in several attempts; see `download`."""
    failures, furthest = 0, _size(part)
    while True:
        try:
            _fetch_rest(url, part, progress=progress)
            return
        except _CutError as error:
            failures = 1 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures >= _ATTEMPTS:
                kept = f"; {part} is kept, and the next call resumes from it" if _size(part) else ""
                raise ValueError(
                    f"{url}: cannot be fetched ({error}){kept}; check the network, "
                    f"or download it in another way and put it at {path}"
                ) from error
            time.sleep(pause_s * 2 ** (failures - 1))


def _fetch_rest(url: str, part: Path, *, progress: bool) -> None:
    """Append the missing rest of the file to `part`; start again if the server only sends whole files.

    Raises:
        _CutError: worth another attempt; what arrived is in `part`.
        ValueError: the server refuses.
    """
    have = _size(part)
    headers = {"User-Agent": f"sscl/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:  # the server has nothing beyond these bytes
                if error.headers.get("Content-Range") == f"bytes */{have}":
                    return
                part.unlink()  # longer than the file, so part of another one
                raise _CutError("the existing part is not of this file") from error
            if error.code in (408, 429) or error.code >= 500:
                raise _CutError(f"the server answered {error.code} {error.reason}") from error
            raise ValueError(f"{url}: the server answered {error.code} {error.reason}; check the URL") from error
    except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and broken connections among them
        raise _CutError(str(getattr(error, "reason", "") or error or type(error).__name__)) from error

    with response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise ValueError(f"{url}: the server sent a different part of the file than requested; remove {part}")
        if response.status != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if have else "wb") as file,
            Bar(total, desc=part.stem if progress else None, unit="B", done=have, leave=True) as bar,
        ):
            while data := _read(response):
                file.write(data)
                bar.update(len(data))
    if total is not None and _size(part) < total:
        raise _CutError(f"the connection ended after {_size(part)} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return the next bytes, or none at the end; separate from writing, whose errors are not the network's."""
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(str(error) or type(error).__name__) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            digest.update(data)
    return digest.hexdigest()
