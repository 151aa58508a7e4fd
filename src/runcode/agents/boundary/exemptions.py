"""What the person lets run here although a workspace is attached: `local.toml` in the config folder.

    commands = ["open", "git status"]     # a plain command that begins with these words
    paths = ["~/notes"]                   # file tools may touch these, and what is in them

Threat: a repository, the box or the model widens its own way out.

Guarantee: only this file of the person's own counts, never one in a project. An exempt
command is one plain command without expansion, redirection to a file, or a second one.
"""

from __future__ import annotations

import os

from runcode.client.person_files import read_person_file
from runcode.core.errors import RunCodeError
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runcode.client.settings import Settings

FILE_NAME = "local.toml"


class Exemptions(Value):
    """`commands` are lists of first words; `paths` absolute, links resolved."""

    commands: tuple[tuple[str, ...], ...]
    paths: tuple[str, ...]

    def cover_command(self, words: Sequence[str]) -> bool:
        return any(tuple(words[: len(first)]) == first for first in self.commands)

    def cover_path(self, path: str) -> bool:
        return any(path == one or path.startswith(one.rstrip("/") + "/") for one in self.paths)


NOTHING = Exemptions(commands=(), paths=())


def exemptions_path(settings: Settings) -> str:
    return os.path.join(settings.config_folder, FILE_NAME)


def load_exemptions(settings: Settings) -> Exemptions:
    """Raises `usage` for a file that holds anything but the two lists, `unsafe_path` for one of somebody else."""
    path = exemptions_path(settings)
    content = read_person_file(path)
    if content is None:
        return NOTHING
    real = os.path.realpath(path)
    for one in (real, os.path.dirname(real)):
        if os.stat(one).st_mode & 0o022:
            raise RunCodeError("unsafe_path", f"others may write to {one}", resolution=f"`chmod go-w {one}`")
    import tomllib

    try:
        said = tomllib.loads(content.decode("utf-8"))
    except ValueError as error:
        raise _wrong(path, "it is not TOML") from error
    unknown = set(said) - {"commands", "paths"}
    if unknown:
        raise _wrong(path, f"it knows `commands` and `paths`, not {sorted(unknown)[0]!r}")
    return Exemptions(
        commands=tuple(_parse_command(text, path) for text in _texts(said, "commands", path)),
        paths=tuple(_parse_path(text, settings, path) for text in _texts(said, "paths", path)),
    )


def _texts(said: dict[str, object], name: str, path: str) -> list[str]:
    given = said.get(name, [])
    if not isinstance(given, list) or not all(isinstance(one, str) and one.strip() for one in given):
        raise _wrong(path, f"`{name}` is a list of texts")
    return given


def _parse_command(text: str, path: str) -> tuple[str, ...]:
    words = tuple(text.split())
    if any(not word.isprintable() for word in words):
        raise _wrong(path, "a command holds unusual characters")
    return words


def _parse_path(text: str, settings: Settings, path: str) -> str:
    from runcode.client import platforms

    home = platforms.current().home(settings.environ)
    expanded = home + text[1:] if text == "~" or text.startswith("~/") else text
    if not os.path.isabs(expanded):
        raise _wrong(path, f"{text!r} is not absolute")
    return os.path.realpath(expanded)


def _wrong(path: str, why: str) -> RunCodeError:
    return RunCodeError("usage", f"{path}: {why}", resolution="mend the file, or remove it")
