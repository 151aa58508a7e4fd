"""Whose a folder is, asked with built-in modules only: the hot path and `client.mux` need no more.

`client.private_files` makes such folders, and says why one is refused. Here is
only the question.
"""

import posix

_TYPE_MASK, _IS_FOLDER = 0o170000, 0o040000


def is_ours(folder: str | bytes) -> bool:
    """Is there a real folder at this path that is ours and that nobody else can write to?"""
    try:
        status = posix.lstat(folder)
    except OSError:
        return False
    return status.st_mode & _TYPE_MASK == _IS_FOLDER and status.st_uid == posix.geteuid() and not status.st_mode & 0o022
