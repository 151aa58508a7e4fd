"""Titles for workspaces that nobody named: two plain words and eight digits, `royal-tree-08189931`.

Owns: the words. A title is an ssh user name, a host alias and a folder's name, so
each word is short, lower-case and harmless beside any other.
"""

from __future__ import annotations

import secrets
from typing import Final

_KINDS: Final = (
    "amber", "ample", "apt", "autumn", "blue", "bold", "brave", "bright", "brisk", "broad", "calm", "candid",
    "clear", "clever", "cool", "coral", "crisp", "curly", "deep", "eager", "early", "easy", "fair", "fancy",
    "fast", "fine", "firm", "fleet", "fond", "fresh", "frosty", "gentle", "glad", "golden", "grand", "green",
    "hardy", "honest", "humble", "ideal", "ivory", "jolly", "keen", "kind", "large", "lively", "loyal", "lucid",
    "lucky", "mellow", "merry", "mild", "modest", "neat", "noble", "novel", "olive", "open", "patient", "plain",
    "polite", "proud", "pure", "quick", "quiet", "rapid", "ready", "regal", "rosy", "royal", "sharp", "silent",
    "silver", "simple", "sincere", "smooth", "snowy", "soft", "solid", "spry", "steady", "still", "stout", "sunny",
    "swift", "tall", "tender", "tidy", "tranquil", "true", "upbeat", "vivid", "warm", "white", "wide", "wise",
)  # fmt: skip
_THINGS: Final = (
    "acorn", "anchor", "apple", "arch", "ash", "barn", "bay", "beach", "birch", "bird", "boat", "bridge",
    "brook", "cabin", "canal", "canyon", "cape", "castle", "cedar", "cliff", "cloud", "clover", "coast", "comet",
    "cove", "creek", "dawn", "delta", "dune", "eagle", "elm", "falcon", "fern", "field", "finch", "fjord",
    "forest", "fox", "garden", "glade", "glen", "grove", "gulf", "harbor", "hawk", "heron", "hill", "island",
    "isle", "lagoon", "lake", "lantern", "larch", "leaf", "lily", "maple", "marsh", "meadow", "mesa", "mill",
    "moon", "moss", "oak", "ocean", "orchid", "otter", "owl", "path", "peak", "pearl", "pebble", "pine",
    "plain", "planet", "pond", "poplar", "prairie", "rain", "reef", "ridge", "river", "robin", "rock", "rose",
    "sail", "shore", "sky", "spring", "spruce", "star", "stone", "stream", "summit", "sun", "tide", "tower",
    "trail", "tree", "tulip", "valley", "wave", "willow", "wind", "wood",
)  # fmt: skip
_DIGITS: Final = 8


def make_title() -> str:
    """A new one each time; whoever uses it looks whether it is taken."""
    number = secrets.randbelow(10**_DIGITS)
    return f"{secrets.choice(_KINDS)}-{secrets.choice(_THINGS)}-{number:0{_DIGITS}d}"
