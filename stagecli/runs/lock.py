"""The lock of a run: held by the process that writes it, from opening it to its end. No torch.

It is a lock of the operating system on a file in the run, which ends with the process that holds
it, however that ends. The process number in the file is information only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path

from stagecli.errors import EXIT_FAILED, StageError

LOCK = ".lock"
PATIENCE = 5.0  # seconds that a process may take from its lock to its number in the file
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

_held: set[FileIO] = set()


def _close_in_child() -> None:
    """A forked loader process must not keep the lock of a trainer that was killed."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class RunLock:
    """A held lock; made by `lock_run`. supported: whether the file system has locks at all."""

    def __init__(self, file: FileIO, supported: bool) -> None:
        self.file = file
        self.supported = supported

    def release(self) -> None:
        """Let others write the run. The file stays: removing it would let two processes in.

        It is emptied first: the next start that is refused must not read this process's number.
        """
        _held.discard(self.file)
        if self.supported:
            with suppress(OSError):  # it is information only
                self.file.truncate(0)
        self.file.close()


def lock_run(folder: Path) -> RunLock:
    """Lock the run directory `folder`, which exists.

    Raises StageError (exit code 1), which names the process, where another one holds the lock, and
    OSError where the lock file cannot be written.
    """
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            supported = _lock(file, folder)
        except BaseException:
            file.close()
            raise
        if _is_at(file, path):
            break
        file.close()  # the run was moved aside meanwhile
    file.truncate(0)
    file.write(f"{os.getpid()} {socket.gethostname()}\n".encode())
    _held.add(file)
    return RunLock(file, supported)


def is_locked(folder: Path) -> bool:
    """Whether a process is writing the run `folder`, as far as this machine can tell."""
    try:
        file = (folder / LOCK).open("rb")
    except OSError:
        return False
    with file:
        text = os.pread(file.fileno(), 200, 0).decode("utf-8", "replace").strip()
        if not text or _has_ended(text):
            return False
        # Another process may have the number of one that was killed; it has not its lock.
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no locks here: the number is all there is
            return True
        return False


def _lock(file: FileIO, folder: Path) -> bool:
    """Take the lock; False where the file system has none. Raises StageError, OSError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        process, _, host = _written_by(file).partition(" ")
        holder = f"process {process}" if process.isdecimal() else "another process"
        elsewhere = f" on {host}" if host and host != socket.gethostname() else ""
        raise StageError(
            f"{folder} is being written by {holder}{elsewhere}",
            hint="wait for it or stop it first; `stagecli inspect-regime` can watch it",
            exit_code=EXIT_FAILED,
        ) from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def _written_by(file: FileIO) -> str:
    """What the process that holds the lock has written; it does so as soon as it has it.

    Until then, the file is empty or names a process that was killed while it held the lock.
    """
    end = time.monotonic() + PATIENCE
    while True:
        text = os.pread(file.fileno(), 200, 0).decode("utf-8", "replace").strip()
        if (text and not _has_ended(text)) or time.monotonic() > end:
            return text
        time.sleep(0.01)


def _has_ended(text: str) -> bool:
    """Whether the process that wrote "NUMBER HOST" ran on this host and has ended."""
    process, _, host = text.partition(" ")
    if host != socket.gethostname() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # another user's
        return False
    return False


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
