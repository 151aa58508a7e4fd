"""Single files to and from a workspace, over the 8-bit-clean exec channel.

Threat: the box is hostile, or the connection is cut at any byte. A download may
be longer than announced, claim a setuid mode, or hope that its target is a link.

Guarantee: constant memory; the final name, on either side, holds the old file or
the whole new one whose size and digest were checked, and nothing else is left
behind; a link or a special file here is never written through.
"""

from __future__ import annotations

import os
import select
import stat

from runcode.client import processes
from runcode.core import remote_files
from runcode.core.errors import ConnectionLost, RunCodeError
from runcode.core.remote_files import ALGORITHMS, NO_DIGEST, NOISE_MAX, Checksum, DownloadHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runcode.client.remote import Remote

CHUNK = 256 * 1024
_TAIL_MAX = 64 * 1024
_PIPE_SIZE = 1024 * 1024


def download(remote: Remote, path: str, write: Callable[[bytes], object]) -> DownloadHeader:
    """Pass a remote file to `write`, chunk by chunk; returns when size and digest were checked.

    Whoever gets the chunks has to discard them when this raises.
    """
    for algorithm in ALGORITHMS:
        reader = _Reader(Checksum(algorithm), write)
        command = remote_files.render_download(
            reader.nonce, algorithm=algorithm, workdir=remote.session.workdir, path=path
        )
        _run(remote, command, reader)
        try:
            return reader.finish()
        except RunCodeError as error:
            if error.message != NO_DIGEST:
                raise
    raise RunCodeError("io_error", NO_DIGEST)


def download_to_file(remote: Remote, path: str, out: str) -> str:
    """Download to a local file, under a temporary name until it is whole; returns where it is.

    A folder takes it under its remote name. A link is replaced, not followed.
    """
    target = _local_target(path, out)
    temporary = os.path.join(os.path.dirname(target) or ".", f".runcode-{os.urandom(8).hex()}.part")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(temporary, flags, 0o600)
    except OSError as error:
        raise _local(error, os.path.dirname(target) or ".") from error
    try:
        try:
            header = download(remote, path, lambda chunk: _write_all(descriptor, chunk, target))
            os.fchmod(descriptor, header.mode & ~_umask())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except OSError as error:
        _discard(temporary)
        raise _local(error, target) from error
    except BaseException:
        _discard(temporary)
        raise
    return target


def upload(remote: Remote, local: str, path: str) -> None:
    """Put a local file on the workspace; it has its final name there only once it is whole and checked."""
    for algorithm in ALGORITHMS:
        with _LocalFile(local) as file:
            writer = _Writer(file, algorithm)
            command = remote_files.render_upload(
                writer.nonce,
                algorithm=algorithm,
                workdir=remote.session.workdir,
                path=path,
                local_name=os.path.basename(os.path.abspath(local)),
                size=file.size,
                mode=file.mode,
            )
            _run(remote, command, writer)
        try:
            writer.finish()
        except RunCodeError as error:
            if error.message != NO_DIGEST:
                raise
        else:
            return
    raise RunCodeError("io_error", NO_DIGEST)


class _Exchange:
    """One call: three pipes to ssh, pumped together so that neither side waits for the other."""

    def __init__(self) -> None:
        self.nonce = os.urandom(16).hex()
        self.stderr = b""
        self._theirs: list[int] = []
        self._ours: list[int] = []

    def streams(self) -> tuple[int, int, int]:
        """Fresh pipes for each attempt, since ssh may end without having started anything."""
        self.close()
        (their_in, our_in), (our_out, their_out), (our_err, their_err) = (os.pipe() for _ in range(3))
        self._theirs, self._ours = [their_in, their_out, their_err], [our_in, our_out, our_err]
        for descriptor in (our_in, our_out):
            _widen(descriptor)
        os.set_blocking(our_in, False)
        return their_in, their_out, their_err

    def attend(self, pid: int) -> int:
        for descriptor in self._theirs:
            os.close(descriptor)
        self._theirs = []
        try:
            self._pump()
            return processes.wait(pid) or 0
        except BaseException:
            processes.kill(pid)
            raise

    def close(self) -> None:
        for descriptor in (*self._theirs, *self._ours):
            os.close(descriptor)
        self._theirs, self._ours = [], []

    def _pump(self) -> None:
        our_in, our_out, our_err = self._ours
        poll = select.poll()
        poll.register(our_out, select.POLLIN)
        poll.register(our_err, select.POLLIN)
        reading = 2
        pending: memoryview | None = memoryview(self.next_chunk()) or None
        if pending is None:
            self._close_stdin()
        else:
            poll.register(our_in, select.POLLOUT)
        while reading:
            for descriptor, _event in poll.poll():
                if descriptor == our_in and pending is not None:
                    pending = self._feed(pending)
                    if pending is None:
                        poll.unregister(our_in)
                        self._close_stdin()
                elif descriptor in (our_out, our_err):
                    chunk = os.read(descriptor, CHUNK)
                    if not chunk:
                        poll.unregister(descriptor)
                        reading -= 1
                    elif descriptor == our_out:
                        self.take(chunk)
                    else:
                        self.stderr = (self.stderr + chunk)[-_TAIL_MAX:]

    def _feed(self, pending: memoryview) -> memoryview | None:
        """What is left to write, or None when all of it went, or nobody reads any more."""
        try:
            pending = pending[os.write(self._ours[0], pending) :]
        except BlockingIOError:
            return pending
        except BrokenPipeError:
            # The box has already refused; its answer says why.
            return None
        return pending or memoryview(self.next_chunk()) or None

    def _close_stdin(self) -> None:
        os.close(self._ours[0])
        self._ours = self._ours[1:]

    def next_chunk(self) -> bytes:
        """More for the remote stdin; empty at the end."""
        return b""

    def take(self, chunk: bytes) -> None:
        raise NotImplementedError


class _Reader(_Exchange):
    """The answer to a download: noise, marker, header, data."""

    def __init__(self, checksum: Checksum, write: Callable[[bytes], object]) -> None:
        super().__init__()
        self._checksum = checksum
        self._write = write
        self._head: bytes | None = b""
        self._header: DownloadHeader | None = None
        self._failure: RunCodeError | None = None
        self._received = 0

    def take(self, chunk: bytes) -> None:
        if self._head is not None:
            self._head += chunk
            found = _find_answer(self._head, self.nonce)
            if found is None:
                return
            line, chunk = found
            self._head = None
            try:
                self._header = remote_files.parse_download_header(line)
            except RunCodeError as error:
                self._failure = error
        if self._header is None:
            return
        self._received += len(chunk)
        if self._received > self._header.size:
            raise RunCodeError("io_error", "the file grew while it was read", resolution="retry when it rests")
        self._checksum.update(chunk)
        if chunk:
            self._write(chunk)

    def finish(self) -> DownloadHeader:
        if self._failure is not None:
            raise self._failure
        if self._header is None:
            raise RunCodeError("io_error", "the workspace sent no answer", resolution="retry")
        digest = self.stderr.rpartition(f"\n{self.nonce} ".encode())[2].partition(b"\n")[0]
        if self._received != self._header.size or digest != self._checksum.word().encode():
            raise RunCodeError(
                "io_error", "the file arrived damaged, cut short or changed while it was read", resolution="retry"
            )
        return self._header


class _Writer(_Exchange):
    """An upload: data and its digest on stdin, one line as the answer."""

    def __init__(self, file: _LocalFile, algorithm: str) -> None:
        super().__init__()
        self._file = file
        self._algorithm = algorithm
        self._checksum = Checksum(algorithm)
        self._sent = 0
        self._ended = False
        self._answer = b""

    def streams(self) -> tuple[int, int, int]:
        # What an attempt that never started took of the file went nowhere.
        os.lseek(self._file.descriptor, 0, os.SEEK_SET)
        self._checksum, self._sent, self._ended = Checksum(self._algorithm), 0, False
        return super().streams()

    def next_chunk(self) -> bytes:
        if self._ended:
            return b""
        chunk = os.read(self._file.descriptor, CHUNK) if self._sent < self._file.size else b""
        chunk = chunk[: self._file.size - self._sent]
        self._sent += len(chunk)
        if chunk:
            self._checksum.update(chunk)
            return chunk
        self._ended = True
        if self._sent < self._file.size:
            return b""  # it shrank: what arrives is too short, and is thrown away there
        return self._checksum.trailer()

    def take(self, chunk: bytes) -> None:
        self._answer = (self._answer + chunk)[-NOISE_MAX:]

    def finish(self) -> None:
        found = _find_answer(self._answer, self.nonce)
        if found is None:
            raise RunCodeError("io_error", "the workspace sent no answer", resolution="retry")
        if found[0] != b"ok":
            raise remote_files.parse_failure(found[0])


class _LocalFile:
    """The file that a person named: plain, or refused before anything is sent."""

    def __init__(self, path: str) -> None:
        try:
            # Non-blocking: opening a pipe must not hang; for a plain file it changes nothing.
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise _local(error, path) from error
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.descriptor)
            raise RunCodeError("unsafe_path", f"{path!r} is not a plain file", resolution="only plain files are copied")
        self.size = status.st_size
        self.mode = stat.S_IMODE(status.st_mode) & 0o777

    def __enter__(self) -> _LocalFile:
        return self

    def __exit__(self, *_details: object) -> None:
        os.close(self.descriptor)


def _run(remote: Remote, command: str, exchange: _Exchange) -> None:
    try:
        remote.run(command, exchange.attend, exchange.streams)
    except ConnectionLost as error:
        raise RunCodeError(
            "connection_lost",
            "the connection went away during the transfer",
            resolution="nothing is half-written: retry",
        ) from error
    finally:
        exchange.close()


def _find_answer(text: bytes, nonce: str) -> tuple[bytes, bytes] | None:
    """(the line behind the nonce, what follows it), or None while it is not complete. Raises for endless noise."""
    marker = f"\n{nonce} ".encode()
    at = text.find(marker)
    end = text.find(b"\n", at + len(marker)) if at >= 0 else -1
    if end >= 0:
        return text[at + len(marker) : end], text[end + 1 :]
    if len(text) > NOISE_MAX:
        raise RunCodeError(
            "io_error", "the workspace prints too much before it answers", resolution="quieten its rc files"
        )
    return None


def _local_target(path: str, out: str) -> str:
    target = out
    if os.path.isdir(out) or out.endswith("/"):
        name = path.rstrip("/").rpartition("/")[2]
        if name in ("", ".", ".."):
            raise RunCodeError("usage", f"{path!r} does not name a file", resolution="name the local file with `--out`")
        target = os.path.join(out, name)
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return target
    except OSError as error:
        raise _local(error, target) from error
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise RunCodeError("unsafe_path", f"{target!r} is not a plain file", resolution="choose another `--out`")
    return target


def _write_all(descriptor: int, chunk: bytes, target: str) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise _local(error, target) from error


def _local(error: OSError, path: str) -> RunCodeError:
    code = "not_found" if isinstance(error, FileNotFoundError) else "io_error"
    return RunCodeError(code, f"{path!r} here: {error.strerror or type(error).__name__}", resolution="check the path")


def _discard(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _widen(descriptor: int) -> None:
    try:
        import fcntl

        fcntl.fcntl(descriptor, getattr(fcntl, "F_SETPIPE_SZ", 1031), _PIPE_SIZE)
    except (ImportError, OSError):
        pass  # a limit of the system; the usual size works too
