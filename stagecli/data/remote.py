"""Files at `s3://`, `hf://`, `https://` and other addresses, through fsspec. No torch.

Every read asks for a range of bytes. What fails for a moment is tried again; what needs credentials
is one error that says how to give them.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from stagecli.data.file_index import Stamp
from stagecli.errors import EXIT_FAILED, Problem, StageError, causes

T = TypeVar("T")
TRIES = 5
FIRST_PAUSE = 0.5  # seconds before the second try; each later pause is twice as long
AHEAD = 1 << 16  # bytes that are read at once where headers are looked at
PACKAGES = {"s3": "s3fs", "hf": "huggingface_hub", "gs": "gcsfs", "https": "aiohttp", "az": "adlfs"}
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket "
    "copy the files with `aws s3 cp --no-sign-request`",
    "hf": "log in with `hf auth login`, or set HF_TOKEN",
    "gs": "log in with `gcloud auth application-default login`",
}
# Parts of the names of errors about missing credentials, and of their messages.
REFUSED = ("Credential", "Permission", "Forbidden", "Unauthorized", "GatedRepo", "Auth")
REFUSED_CODES = ("401", "403", "AccessDenied")
VERSIONS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "blob_id")
_open: dict[tuple[int, str], Any] = {}


def is_remote(location: str) -> bool:
    """Whether a location is an address and not a path."""
    return "://" in location


def stamp(url: str) -> Stamp:
    """Size, and a number for what the server tells of the version of a file.

    Raises FileNotFoundError, StageError.
    """
    info = _tried(url, lambda fs, path: fs.info(path))
    version = repr([(key, str(info[key])) for key in VERSIONS if info.get(key)])
    number = int(hashlib.sha256(version.encode()).hexdigest()[:15], 16)
    return int(info.get("size") or 0), number


def read(url: str, start: int = 0, size: int | None = None) -> bytes:
    """`size` bytes from `start` of a file, or all that follow. Raises as `stamp`."""
    end = None if size is None else start + size
    content: bytes = _tried(url, lambda fs, path: fs.cat_file(path, start=start, end=end))
    if size is not None and len(content) != size:
        raise StageError(
            "a file at an address is shorter than it was",
            problems=[Problem(url, f"holds {len(content):,} of {size:,} bytes from {start:,}")],
            hint="start again",
            exit_code=EXIT_FAILED,
        )
    return content


def listed(url: str) -> list[str]:
    """The files that a pattern matches or that a folder holds, sorted. Raises as `stamp`."""

    def look(fs: Any, path: str) -> list[str]:
        names = fs.glob(path) if any(mark in path for mark in "*?[") else fs.find(path)
        return sorted(fs.unstrip_protocol(name) for name in names)

    return _tried(url, look)


class RangedFile(io.RawIOBase):
    """A file at an address, read in ranges; for the headers of a tar."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._size = stamp(url)[0]
        self._position = 0
        self._begin = 0
        self._block = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        size = left if size < 0 else min(size, left)
        first = self._position - self._begin
        if not 0 <= first <= len(self._block) - size:
            self._begin = self._position
            self._block = read(self._url, self._begin, min(left, max(size, AHEAD)))
            first = 0
        self._position += size
        return self._block[first : first + size]


def forget_connections() -> None:
    """Connect anew at the next read."""
    _open.clear()


def _tried(url: str, action: Callable[[Any, str], T]) -> T:
    """The result of an action on (file system, path), tried `TRIES` times.

    Raises FileNotFoundError; StageError where access is refused, or where every try fails.
    """
    fs, path = _file_system(url)
    pause = FIRST_PAUSE
    for attempt in range(1, TRIES + 1):
        try:
            return action(fs, path)
        except FileNotFoundError:
            raise
        except Exception as error:
            if _is_refusal(error):
                raise _no_access(url, error) from error
            if attempt == TRIES:
                raise StageError(
                    f"an address cannot be read, tried {TRIES} times",
                    problems=[Problem(url, text) for text in causes(error)],
                    hint="run the same command again once it can be reached: training resumes from "
                    "its last checkpoint",
                    exit_code=EXIT_FAILED,
                ) from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable")


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of an address, one per process, and the path in it. Raises StageError."""
    protocol = url.split("://", 1)[0]
    try:
        import fsspec
    except ImportError as error:
        raise StageError(
            f"{url} needs the package `fsspec`", hint="pip install 'stagecli[remote]'"
        ) from error
    key = (os.getpid(), protocol)  # connections do not survive a fork
    try:
        if key not in _open:
            _open[key] = fsspec.filesystem(protocol, skip_instance_cache=True)
        fs = _open[key]
        return fs, fs._strip_protocol(url)
    except ImportError as error:
        package = PACKAGES.get(protocol, f"of fsspec for {protocol}://")
        raise StageError(
            f"{protocol}:// needs the package `{package}`",
            problems=[Problem(url, causes(error)[0])],
            hint=f"pip install {package}",
        ) from error
    except Exception as error:
        if _is_refusal(error):
            raise _no_access(url, error) from error
        raise StageError(
            "an address cannot be meant",
            problems=[Problem(url, text) for text in causes(error)],
            hint="write it as s3://bucket/path, hf://datasets/owner/name/path or https://host/path",
        ) from error


def _is_refusal(error: Exception) -> bool:
    """Whether an error is about credentials, which no second try mends."""
    name = type(error).__name__
    code = str(getattr(error, "status", "") or getattr(error, "status_code", ""))
    refused = any(part in name for part in REFUSED)
    return refused or code in REFUSED_CODES or any(part in str(error) for part in ("AccessDenied",))


def _no_access(url: str, error: Exception) -> StageError:
    protocol, rest = url.split("://", 1)
    place = f"{protocol}://{rest.split('/', 1)[0]}"
    way_out = CREDENTIALS.get(protocol, "give fsspec its credentials for this address")
    return StageError(
        f"no access to {place}",
        problems=[Problem(url, text) for text in causes(error)[:1]],
        hint=way_out,
    )
