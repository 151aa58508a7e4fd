"""One file to or from a workspace.

Threat: the box is hostile, or the connection is cut at any byte. A download may
be longer than announced, claim a setuid mode, or hope that its target is a link.

Guarantee: see the package. A transfer that is continued trusts a prefix only
when both ends computed the same digest for it, and the digest at the end is
always of the whole file.
"""

from __future__ import annotations

import os

from runcode.client.transfers.exchange import CHUNK, Exchange, Question, find_answer, no_answer, no_progress
from runcode.client.transfers.local_files import Landing, find_target, write_all
from runcode.core import remote_files
from runcode.core.checksums import ALGORITHMS, Checksum
from runcode.core.digests import sha256_hex
from runcode.core.errors import RunCodeError
from runcode.core.remote_files import RESUME_BLOCK, DownloadHeader, NoDigest, RemoteFile
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runcode.client.remote import Remote
    from runcode.client.transfers.exchange import Progress
    from runcode.client.transfers.local_files import Source

_DAMAGED = "the file arrived damaged, cut short or changed while it was read"


class Receipt(Value):
    """What was copied. `algorithm` is `sha256`, or `cksum` where the box has nothing better."""

    size: int
    algorithm: str
    digest: str
    continued_at: int = 0


def download(remote: Remote, path: str, descriptor: int, progress: Progress = no_progress) -> Receipt:
    """Write a remote file to a descriptor as it comes; returns when size and digest were checked.

    Whoever reads there has to discard it all when this raises.
    """

    def attempt(algorithm: str) -> Receipt:
        reader = _Reader(algorithm, lambda _header: None, lambda chunk: write_all(descriptor, chunk), progress)
        reader.run(
            remote,
            remote_files.render_download(reader.nonce, algorithm=algorithm, workdir=remote.session.workdir, path=path),
        )
        return reader.finish()

    return _with_a_digest(attempt)


def download_to_file(
    remote: Remote, path: str, out: str, *, resume: bool = False, progress: Progress = no_progress
) -> tuple[str, Receipt]:
    """Download to a local file, under a temporary name until it is whole; returns where it is.

    A folder takes it under its remote name. A link is replaced, not followed.
    `resume`: go on with what an earlier such call left, and leave it when this one breaks.
    """
    target = find_target(path, out)
    key = _resume_key(remote, path, os.path.abspath(target)) if resume else ""

    def attempt(algorithm: str) -> Receipt:
        with Landing(target, resume_key=key) as landing:
            return _download_into(landing, remote, path, algorithm, progress)

    return target, _with_a_digest(attempt)


def _download_into(landing: Landing, remote: Remote, path: str, algorithm: str, progress: Progress) -> Receipt:
    blocks = landing.size // RESUME_BLOCK
    prefix = Checksum(algorithm)
    landing.read_prefix(blocks * RESUME_BLOCK, prefix.update)

    def begin(header: DownloadHeader) -> None:
        if header.offset not in (0, blocks * RESUME_BLOCK):
            raise RunCodeError("io_error", "the workspace goes on where nobody asked it to", resolution="retry")
        landing.go_on_at(header.offset, header.size)

    reader = _Reader(algorithm, begin, landing.write, progress, prefix=prefix)
    command = remote_files.render_download(
        reader.nonce,
        algorithm=algorithm,
        workdir=remote.session.workdir,
        path=path,
        blocks=blocks,
        prefix_digest=prefix.word(),
    )
    try:
        reader.run(remote, command)
        receipt = reader.finish()
    except _Damaged:
        landing.discard()
        raise
    assert reader.header is not None
    landing.finish(reader.header.mode)
    return receipt


def upload(
    remote: Remote,
    source: Source,
    path: str,
    *,
    name: str = "",
    make_parents: bool = False,
    resume: bool = False,
    progress: Progress = no_progress,
) -> Receipt:
    """Put a source on the workspace; it has its final name there only once it is whole and checked.

    A `path` that is a folder takes it under `name`. `resume` as in `download_to_file`,
    for a source whose size is known.
    """
    key = _resume_key(remote, path, os.path.abspath(source.name)) if resume and source.size is not None else ""
    target = RemoteFile(workdir=remote.session.workdir, path=path, name=name, make_parents=make_parents, resume_key=key)

    def attempt(algorithm: str) -> Receipt:
        blocks, prefix = _agree_on_prefix(remote, source, target, algorithm) if key else (0, None)
        writer = _Writer(source, algorithm, blocks * RESUME_BLOCK, prefix, progress)
        command = remote_files.render_upload(
            writer.nonce, target, algorithm=algorithm, size=source.size, mode=source.mode, blocks=blocks
        )
        writer.run(remote, command)
        return writer.finish()

    return _with_a_digest(attempt)


def _agree_on_prefix(
    remote: Remote, source: Source, target: RemoteFile, algorithm: str
) -> tuple[int, Callable[[], Checksum] | None]:
    """How many blocks of an earlier upload are there and are the same here, and how to begin their digest anew."""
    question = Question()
    question.run(remote, remote_files.render_partial(question.nonce, target, algorithm=algorithm))
    blocks, theirs = remote_files.parse_partial(question.answer())
    if not 0 < blocks * RESUME_BLOCK <= (source.size or 0):
        return 0, None

    def digest_prefix() -> Checksum:
        source.rewind()
        checksum = Checksum(algorithm)
        for _ in range(blocks):
            left = RESUME_BLOCK
            while left and (chunk := source.read(left)):
                checksum.update(chunk)
                left -= len(chunk)
        return checksum

    return (blocks, digest_prefix) if digest_prefix().word() == theirs else (0, None)


def _with_a_digest(attempt: Callable[[str], Receipt]) -> Receipt:
    """Try the algorithms in turn until the box has a program for one."""
    for algorithm in ALGORITHMS[:-1]:
        try:
            return attempt(algorithm)
        except NoDigest:
            continue
    return attempt(ALGORITHMS[-1])


def _resume_key(remote: Remote, path: str, local: str) -> str:
    """The same for the same transfer only, so that two do not take each other's partial file."""
    parts = (str(remote.session.workspace_id), remote.session.api_base, path, local, os.uname().nodename)
    return sha256_hex("\0".join(parts).encode("utf-8", "surrogateescape"))[:32]


class _Damaged(RunCodeError):
    def __init__(self) -> None:
        super().__init__("io_error", _DAMAGED, resolution="retry")


class _Reader(Exchange):
    """The answer to a download: noise, marker, header, data."""

    def __init__(
        self,
        algorithm: str,
        begin: Callable[[DownloadHeader], None],
        write: Callable[[memoryview], object],
        progress: Progress,
        *,
        prefix: Checksum | None = None,
    ) -> None:
        super().__init__()
        self.header: DownloadHeader | None = None
        self._begin, self._write, self._progress = begin, write, progress
        self._checksum = Checksum(algorithm)
        self._prefix = prefix
        self._head: bytes | None = b""
        self._failure: RunCodeError | None = None
        self._received = 0

    def take(self, chunk: memoryview) -> None:
        if self._head is not None:
            self._head += chunk
            found = find_answer(self._head, self.nonce)
            if found is None:
                return
            line, rest = found
            self._head, chunk = None, memoryview(rest)
            try:
                self.header = remote_files.parse_download_header(line)
            except RunCodeError as error:
                self._failure = error
                return
            self._received = self.header.offset
            if self.header.offset and self._prefix is not None:
                self._checksum = self._prefix
            self._begin(self.header)
        if self.header is None or not chunk:
            return
        self._received += len(chunk)
        if self._received > self.header.size:
            raise RunCodeError("io_error", "the file grew while it was read", resolution="retry when it rests")
        self._checksum.update(chunk)
        self._write(chunk)
        self._progress(self._received, self.header.size)

    def finish(self) -> Receipt:
        if self._failure is not None:
            raise self._failure
        if self.header is None:
            raise no_answer()
        if self._received < self.header.size and not self.stderr_answer():
            raise RunCodeError("io_error", "the file arrived cut short", resolution="retry")
        word = self._checksum.word()
        if self._received != self.header.size or self.stderr_answer() != word.encode():
            raise _Damaged
        return Receipt(
            size=self._received, algorithm=self._checksum.algorithm, digest=word, continued_at=self.header.offset
        )


class _Writer(Question):
    """An upload: data and its digest on stdin, one line as the answer."""

    def __init__(
        self,
        source: Source,
        algorithm: str,
        offset: int,
        prefix: Callable[[], Checksum] | None,
        progress: Progress,
    ) -> None:
        super().__init__()
        self._source, self._algorithm, self._offset = source, algorithm, offset
        self._make_prefix, self._progress = prefix, progress
        self._checksum = Checksum(algorithm)
        self._sent = 0
        self._ended = False

    def restart(self) -> None:
        super().restart()
        self._checksum = Checksum(self._algorithm) if self._make_prefix is None else self._make_prefix()
        if self._make_prefix is None:
            self._source.rewind()
        self._sent, self._ended = self._offset, False

    def next_chunk(self) -> bytes | memoryview:
        if self._ended:
            return b""
        size = self._source.size
        most = CHUNK if size is None else min(CHUNK, size - self._sent)
        chunk = self._source.read(most) if most else b""
        self._sent += len(chunk)
        if chunk:
            self._checksum.update(chunk)
            self._progress(self._sent, size)
            return chunk
        self._ended = True
        if size is not None and self._sent < size:
            return b""  # it shrank: what arrives is too short, and is thrown away there
        return remote_files.render_trailer(self.nonce, self._sent, self._checksum.word())

    def finish(self) -> Receipt:
        line = self.answer()
        if line != b"ok":
            raise remote_files.parse_failure(line)
        return Receipt(
            size=self._sent, algorithm=self._algorithm, digest=self._checksum.word(), continued_at=self._offset
        )
