"""One run for a folder: a lock that the kernel takes back when its owner ends, however it ends."""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from twins_jax.errors import InputError, one_line

from .distributed import on_main_process

if sys.platform != "win32":
    import fcntl

LOCK_FILE = ".lock"
"""Holds "HOST PID" of the owner while it owns the folder. A killed run leaves the file, but no lock on it."""

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def owned_by_run(workdir: Path) -> Iterator[None]:
    """As `owned`, for all processes of a run together: the main process takes the lock, and all of them its refusal."""
    with contextlib.ExitStack() as stack:
        on_main_process(lambda: stack.enter_context(owned("workdir", workdir)))
        yield


@contextlib.contextmanager
def owned(field: str, folder: Path) -> Iterator[None]:
    """Makes this process the one that writes into a folder, and itself leaves nothing in it.

    The lock is `flock`'s, which Linux's NFS clients pass on to the server: it holds between hosts. Where a file system
    refuses it, the lock is one of POSIX records; where it refuses both, a line on stderr says so.

    Args:
        field: the setting that names the folder, for errors.
        folder: made if missing; removed at the end if it was made here and is empty.

    Raises:
        InputError: another process owns the folder, or it cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK_FILE
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = _acquire(path)
        except BlockingIOError:
            raise InputError(f"{field}: {folder} is in use by {_owner(path)}: wait for it, or name another") from None
        except OSError as error:
            raise InputError(f"{field}: {folder} cannot be written: {error.strerror or one_line(error)}") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is locked: afterwards it may be another run's
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty
            for new in made:
                new.rmdir()


def _acquire(path: Path) -> int:
    """Opens, locks and signs the file at this path; raises BlockingIOError if another process has locked it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path.parent)
            if _is_at(descriptor, path):
                with contextlib.suppress(OSError):  # a full disk: the lock holds without a name on it
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner ended, and removed it, after it was opened here


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, folder: Path) -> None:
    reason = "Windows has no such locks"
    if sys.platform != "win32":
        for lock in (fcntl.flock, fcntl.lockf):
            try:
                lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno == errno.EACCES:  # POSIX lets a system say it in this way
                    raise BlockingIOError(*error.args) from None
                if error.errno not in _UNSUPPORTED:
                    raise
                reason = one_line(error)
            else:
                return
    sys.stderr.write(f"warning: {folder} cannot be locked ({reason}): a second run in it would go unnoticed\n")


def _owner(path: Path) -> str:
    """Names the process that has locked a file, as far as the file tells."""
    try:
        host, pid = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return "another process"
    return f"process {pid} on {host}"
