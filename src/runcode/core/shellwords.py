"""Command lines for the remote shell.

Threat: a path or an argument that a person or an agent named reaches the box as
shell text; one that is not quoted becomes another command. The login shell on
the box may be dash, bash, zsh or fish.

Guarantee: `quote` yields one word with exactly these characters in each of them.
"""

# No `re` here: the hot path quotes too, and importing it costs more than the rest of this package.
_PLAIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_@%+:,./-"


def quote(word: str) -> str:
    """One shell word. A backslash stands outside the quotes, since fish reads it inside them."""
    if word and not word.strip(_PLAIN):
        return word
    return "'" + "'\\''".join(part.replace("\\", "'\\\\'") for part in word.split("'")) + "'"


def join(words: list[str] | tuple[str, ...]) -> str:
    """A command line that the remote shell splits into exactly these words."""
    return " ".join(quote(word) for word in words)
