"""What `masking` takes for a secret: names, tokens by their looks, and the options of known programs.

Owns: the tables. Pure; called by `masking` alone.

Guarantee: no pattern here can backtrack over a text of a client's: repetitions are possessive or bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from runcode.core.errors import RunCodeError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# ---------------------------------------------------------------- names

_PART = re.compile(r"[A-Z]++(?![a-z])|[A-Z]?[a-z]++|[0-9]++")
_NAME_MAX = 128
# A name is secret when its last part ends in one of these (`PGPASSWORD`), …
_SECRET_ENDS = ("password", "passwd", "passphrase", "passcode", "passwort", "secret", "apikey", "token", "accesskey")
_SECRET_LAST = _words("pass sshpass credential credentials secretkey privatekey authkey pat")
# … or any part does in one of these, …
_SECRET_ANYWHERE = ("password", "passwd", "passphrase", "secret", "apikey")
# … or ends in `key` after one of these, or in `pwd`, `pw` or `auth` after anything (`PWD` is a folder).
_KEYS = _words(
    "api access secret private encryption signing master account auth deploy service subscription storage shared app"
    " jwt session webhook license cookie"
)
_SHORT_LAST = frozenset(("pwd", "pw", "auth"))
# These speak of a secret without being one.
_ABOUT = _words(
    "file path dir name names id url uri length len count ttl type limit limits max min policy stdin env store expires"
    " expiry timeout size mode ref version prompt fd arn format field header manager hash"
)
_NO_PREFIX = frozenset(("no", "use", "enable", "disable", "with", "without", "old"))


def is_secret_name(name: str) -> bool:
    """Does this name of a variable, an option or a field say that its value is a secret?"""
    if len(name) > _NAME_MAX:
        return False
    parts = [part.lower() for part in _PART.findall(name)]
    if not parts or parts[-1] in _ABOUT or not re.fullmatch(r"[\w.:/@\[\]\"'-]++", name):
        return False
    last, before = parts[-1], parts[-2] if len(parts) > 1 else ""
    if last == "pass" and before in ("no", "by", "first", "last", "single", "two"):
        return False
    if last in _SECRET_LAST or last.endswith(_SECRET_ENDS) or any(part.endswith(_SECRET_ANYWHERE) for part in parts):
        return True
    if last == "key":
        return before in _KEYS
    return last in _SHORT_LAST and before not in ("", *_NO_PREFIX)


_HARMLESS = re.compile(
    r"(?i:true|false|yes|no|on|off|null|none|nil|auto|never|always|default|required|optional|[0-9]{1,3})"
)
_REFERENCE = re.compile(
    r"\$\{?[A-Za-z_][A-Za-z0-9_]{0,127}\}?"
    r"|\$\(|`|\$\{\{|<[A-Za-z_ -]{1,64}>|\*{3,64}|\[masked\]|@[./~]|%[A-Za-z_]{1,64}%"
)


_ENVIRONMENT_NAME = re.compile(r"\$\{?[A-Z_][A-Z0-9_]{0,127}\}?")


def is_harmless(value: str, *, literal: bool = False) -> bool:
    """A switch, a short number, a path, or a reference to where the secret stands: nothing that has to be masked.

    `literal`: a shell takes it as it is, so that `$word` is a secret that begins with a dollar sign. Another shell
    may have read it before, which is why a name as variables have it still counts as a reference.
    """
    if literal and value[:1] == "$" and value[1:2] not in ("(", "{") and _ENVIRONMENT_NAME.fullmatch(value) is None:
        return False
    # `TOKEN=$(…)` outside quotes ends before its bracket here.
    if value == "$" or value.startswith(("./", "../", "~/")) or _HARMLESS.fullmatch(value):
        return True
    found = _REFERENCE.match(value)
    if found is None:
        return False
    # `$(cat file)` and backquotes go on; a variable with something after it may be half a secret.
    return found.group() in ("$(", "`", "${{", "@.", "@/", "@~") or found.end() == len(value)


# ---------------------------------------------------------------- tokens by their looks

_EDGE = r"(?<![A-Za-z0-9_])"
_SECRET_FIELD = r"(?i:[\w.-]{0,32}?(?:password|passwd|passphrase|secret|token|api_?key|access_?key|private_?key))"

# Also as it stands in a shell's own quotes.
_SQL_QUOTE = r"(?:'\\''|\\?['\"])"

# (pattern, group to mask)
TOKENS: Final[tuple[tuple[re.Pattern[str], int], ...]] = tuple(
    (re.compile(pattern), group)
    for pattern, group in (
        # Of providers that mark theirs.
        (_EDGE + r"(?:gh[pousr]_[A-Za-z0-9]{20,255}+|github_pat_[A-Za-z0-9_]{20,255}+)", 0),
        (_EDGE + r"gl(?:pat|dt|rt|cbt|ptt|ft|soat|imt|agent)-[A-Za-z0-9_.-]{16,255}+", 0),
        (_EDGE + r"sk-[A-Za-z0-9_-]{16,255}+", 0),
        (_EDGE + r"(?:sk|rk|pk|whsec)_(?:live|test)_[A-Za-z0-9]{10,255}+", 0),
        (_EDGE + r"xox[abeoprs]-[A-Za-z0-9-]{8,255}+", 0),
        (_EDGE + r"xapp-[A-Za-z0-9-]{8,255}+", 0),
        (_EDGE + r"(?:AKIA|ASIA|AIDA|AROA)[A-Z0-9]{16}(?![A-Za-z0-9])", 0),
        (_EDGE + r"rct_[A-Za-z0-9_-]{8,255}+", 0),
        (_EDGE + r"npm_[A-Za-z0-9]{20,255}+", 0),
        (_EDGE + r"pypi-[A-Za-z0-9_-]{20,255}+", 0),
        (_EDGE + r"(?:dckr_pat_|dop_v1_|doo_v1_|shpat_|shpss_|hf_|glsa_|lin_api_|secret_)[A-Za-z0-9_-]{16,255}+", 0),
        (_EDGE + r"AIza[A-Za-z0-9_-]{30,64}+", 0),
        (_EDGE + r"ya29\.[A-Za-z0-9_-]{16,255}+", 0),
        (_EDGE + r"SG\.[A-Za-z0-9_-]{16,64}+\.[A-Za-z0-9_-]{16,128}+", 0),
        (_EDGE + r"AGE-SECRET-KEY-1[A-Z0-9]{20,128}+", 0),
        (_EDGE + r"hv[sbr]\.[A-Za-z0-9_-]{16,255}+", 0),
        # A JWT: two JSON objects in base64url, and a signature.
        (_EDGE + r"eyJ[A-Za-z0-9_-]{8,4096}+\.eyJ[A-Za-z0-9_-]{8,4096}+(?:\.[A-Za-z0-9_-]{0,4096}+)?+", 0),
        # A private key, to its end or, where it is cut, to the text's.
        (r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----([\s\S]*?)(?=-----END|\Z)", 1),
        (
            r"…\[cut: [0-9]{1,12} bytes in all\]… ([A-Za-z0-9+/=\\\s]*+)"
            r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY",
            1,
        ),
        # A password in an address, also one that should have been escaped. The user's name and a port stay.
        (
            r"(?<=://)[^\s/?#@:'\"]{0,256}+:(?![0-9]{1,5}[/?#])"
            r"([^\s/?#'\"]{1,1024}(?=@)|[^\s?#@'\"]{1,1024}+(?=@))",
            1,
        ),
        # A token in the user's place.
        (r"(?<=://)(?=[A-Za-z_~.-]{0,256}+[0-9])([A-Za-z0-9_~.-]{20,256}+)@", 1),
        # Headers. The scheme stays.
        (
            r"(?i:\b(?:proxy-)?authorization\\?+['\"]?+\s?[:=]\s?+\\?+['\"]?+(?:(?:bearer|basic|token|digest|negotiate|apikey|aws4-hmac-sha256)\s++)?+)"
            r"(?![$`])([^\s'\"\\][^'\"\n]{0,4096}+)",
            1,
        ),
        (r"(?i:\bbearer\s++)(?![$`<])([A-Za-z0-9._~+/=-]{8,4096}+)", 1),
        (r"(?i:\b(?:set-)?cookie:\s?+)(?![$`])([^'\"\n]{1,4096}+)", 1),
        (r"(?i:(?<![^\s'\"])x-[a-z-]{0,32}?(?:key|token|secret|auth|password):\s?+)(?![$`])([^\s'\"\n]{1,4096}+)", 1),
        # JSON, and what looks like it, also with its quotes escaped.
        (r"\\?+[\"']" + _SECRET_FIELD + r"\\?+[\"']\s{0,8}+[:=]\s{0,8}+\\?+[\"'](?![$`])([^\"'\\\n]{1,4096}+)", 1),
        # A parameter of an address or a form.
        (
            r"[?&](?i:[a-z_.-]{0,32}?(?:token|secret|password|passwd|apikey|api_key|access_key|sig|signature))=(?![$`])([^&\s'\"#]{4,4096}+)",
            1,
        ),
        # A list of settings: `username=me,password=…`.
        (
            r"(?<=[,;])(?i:[a-z_.-]{0,32}?(?:password|passwd|secret|token|api_?key|access_?key)|pass)="
            r"(?![$`])([^,;&\s'\"]{4,4096}+)",
            1,
        ),
        # `name = "…"` of programs and of settings' files; without blanks it is a word, see `masking`.
        (
            r"(?<![\w.-])" + _SECRET_FIELD + r"(?:[ \t]{1,8}+=[ \t]{0,8}+|=[ \t]{1,8}+)\\?+[\"'](?![$`])"
            r"([^\"'\n]{1,4096}+)",
            1,
        ),
        # `name = …`, a line of its own.
        (
            r"(?<=\n)[ \t]{0,40}+"
            + _SECRET_FIELD
            + r"(?:[ \t]{1,8}+=[ \t]{0,8}+|=[ \t]{1,8}+)(?![$`<{])([^\s'\"#(][^\s'\"(]{3,4096}+)(?!\()",
            1,
        ),
        # .netrc
        (r"\blogin\s{1,8}+[^\s'\"]{1,256}+\s{1,8}+password\s{1,8}+(?![$`])([^\s'\"]{1,1024}+)", 1),
        # SQL
        (
            r"(?i:\b(?:user|role)\s[^\n;]{0,200}?\bpassword\s{1,8}+|\bidentified\s[^\n;']{0,80}?\bby\s{1,8}+"
            r"|\bpassword\s{0,4}+\(\s{0,4}+)" + _SQL_QUOTE + r"(?![$`])([^'\"\n\\]{1,1024}+)",
            1,
        ),
        # A line of a here-document: `password: …` of YAML.
        (
            r"(?m)(?<=\n)[ \t]{0,40}+"
            + _SECRET_FIELD
            + r"[ \t]{0,4}+:[ \t]{1,8}+(?![$`<{])['\"]?+([^\s'\"#][^\s'\"]{3,4096}+)",
            1,
        ),
    )
)

# ---------------------------------------------------------------- programs

# Words that only run what follows them.
_WRAPPERS = _words("runcode sudo env time nice nohup exec command xargs doas stdbuf ionice setsid")
_PROGRAM_AT_MAX = 12


def _find_program(values: Sequence[str]) -> int | None:
    """Past assignments, and past what only runs another program, with its options."""
    wrapped = False
    for at, value in enumerate(values[:_PROGRAM_AT_MAX]):
        name = value.rpartition("/")[2]
        if "=" in value or value.startswith("-"):
            continue
        if name in _WRAPPERS:
            wrapped = True
        elif not wrapped or name in _KNOWN:
            return at
    return None


def find_by_program(values: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(word, offset in it) from where a known program takes a password, to the word's end."""
    at = _find_program(values)
    if at is None:
        return
    program = values[at].rpartition("/")[2]
    rest = range(at + 1, len(values))
    verbs = {value for value in values[at + 1 : at + 4] if not value.startswith("-")}
    for number in rest:
        value = values[number]
        following = number + 1 if number + 1 < len(values) else None
        needed, options = _SEPARATE.get(program, (None, ()))
        if needed is not None and needed not in verbs:
            options = ()
        for option in (*_ATTACHED.get(program, ()), *options):
            if option in options and value == option and following is not None:
                yield following, 0
            elif option.startswith("--") and value.startswith(f"{option}="):
                yield number, len(option) + 1
            elif not value.startswith("--") and value.startswith(option) and len(value) > len(option) <= 3:
                yield number, len(option)
        for option in _USER_AND_PASSWORD.get(program, ()):
            pair = value[len(option) :] if value.startswith(option) and len(value) > len(option) else None
            where, offset = number, len(option)
            if program == "curl" and (cluster := _CURL_CLUSTER.match(value)) is not None:
                # `-su user:…`, `-kuuser:…`: the letters before it take nothing.
                pair, offset = value[cluster.end() :] or None, cluster.end()
                option = cluster.group()
            if pair is None and value == option and following is not None:
                pair, where, offset = values[following], following, 0
            separator = _SEPARATORS.get(program, ":")
            if pair is not None and separator in pair:
                yield where, offset + pair.index(separator) + 1
        if value in ("-passin", "-passout", "-pass", "-k") and program == "openssl" and following is not None:
            given = values[following]
            if value == "-k" or given.startswith("pass:"):
                yield following, 0 if value == "-k" else len("pass:")
        if program == "kubectl" and value.startswith("--from-literal=") and "secret" in values:
            yield number, value.index("=", len("--from-literal=")) + 1 if value.count("=") > 1 else len(value)
        if program == "kubectl" and value == "--from-literal" and "secret" in values and following is not None:
            yield following, values[following].find("=") + 1
    if program in ("set", "setenv"):
        # fish and csh: `set -gx NAME …`, `setenv NAME …`.
        named = [number for number in rest if not values[number].startswith("-")]
        if len(named) > 1 and is_secret_name(values[named[0]]):
            yield from ((number, 0) for number in named[1:])
    if program == "htpasswd" and len(values) > at + 3 and any("b" in v for v in values[at + 1 :] if v[:1] == "-"):
        yield len(values) - 1, 0
    # `aws configure set aws_secret_access_key …`, `npm config set //registry/:_authToken …`, `git config x.token …`
    if verbs & {"set", "config"} and len(values) >= at + 4 and is_secret_name(values[-2].rpartition(":")[2]):
        yield len(values) - 1, 0


# The password follows the letter without a blank.
_ATTACHED = {
    **dict.fromkeys(
        _words("mysql mysqldump mysqladmin mysqlimport mysqlcheck mariadb mariadb-dump mariadb-admin"), ("-p",)
    ),
    "sshpass": ("-p",),
    "7z": ("-p",),
    "7za": ("-p",),
    "unrar": ("-p",),
    "rar": ("-p", "-hp"),
}
# The password is the next word; where a verb is named, only with it.
_SEPARATE: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "sshpass": (None, ("-p",)),
    "docker": ("login", ("-p",)),
    "podman": ("login", ("-p",)),
    "buildah": ("login", ("-p",)),
    "skopeo": ("login", ("-p",)),
    "helm": ("login", ("-p",)),
    "az": ("login", ("-p",)),
    "oc": ("login", ("-p",)),
    "cf": ("login", ("-p",)),
    "redis-cli": (None, ("-a", "--pass")),
    "mongo": (None, ("-p",)),
    "mongosh": (None, ("-p",)),
    "mongodump": (None, ("-p",)),
    "mongorestore": (None, ("-p",)),
    "ldapsearch": (None, ("-w",)),
    "ldapadd": (None, ("-w",)),
    "ldapmodify": (None, ("-w",)),
    "ldapwhoami": (None, ("-w",)),
    "zip": (None, ("-P",)),
    "unzip": (None, ("-P",)),
    "sqlcmd": (None, ("-P",)),
    "bcp": (None, ("-P",)),
    "ipmitool": (None, ("-P",)),
    "snmpwalk": (None, ("-A", "-X", "-c")),
    "ssh-keygen": (None, ("-N", "-P")),
    "vncviewer": (None, ("-passwd",)),
    "curl": (None, ("--oauth2-bearer",)),
    "mysqladmin": (None, ("password",)),
    "nmcli": (None, ("password",)),
    "twine": ("upload", ("-p",)),
    "gh": ("secret", ("-b", "--body")),
}
# Letters of curl's that take no value, then the one that takes user and password.
_CURL_CLUSTER = re.compile(r"-[aBfgGiIjJklLMnNOpqRsSvVZ#0-9]{0,16}+[uU]")
_SEPARATORS = {"smbclient": "%", "rpcclient": "%", "net": "%", "lftp": ","}
_USER_AND_PASSWORD = {
    "curl": ("-u", "--user", "--user=", "-U", "--proxy-user", "--proxy-user="),
    "http": ("-a", "--auth", "--auth="),
    "https": ("-a", "--auth", "--auth="),
    "smbclient": ("-U", "--user="),
    "rpcclient": ("-U",),
    "lftp": ("-u", "--user="),
    "net": ("-U",),
}

_KNOWN = frozenset(
    (
        *_ATTACHED,
        *_SEPARATE,
        *_USER_AND_PASSWORD,
        "openssl",
        "kubectl",
        "htpasswd",
        "aws",
        "npm",
        "git",
        "set",
        "setenv",
    )
)


def reads_password(values: Sequence[str]) -> bool:
    """Does this command read a password from its stdin?"""
    if any(
        value in ("--password-stdin", "--pass-stdin", "--with-token", "--token-stdin", "--stdin") for value in values
    ):
        return True
    names = {value.rpartition("/")[2] for value in values[:3]}
    if names & {"chpasswd", "passwd", "cryptsetup"}:
        return True
    return "sudo" in names and any(_SUDO_READS.fullmatch(value) for value in values)


_SUDO_READS = re.compile(r"-[AbEeHikKlnPsv]{0,8}S[AbEeHikKlnPsv]{0,8}")
_HEADER_OPTION = re.compile(r"-[A-Za-z#0-9]{0,16}H|--header")


def find_header_value(before: str, word: str) -> int | None:
    """Where the value of a header with a secret's name begins in `word`, an argument of `-H` (`before`) or with it."""
    prefix = next((prefix for prefix in ("--header=", "-H") if word.startswith(prefix)), "")
    if not prefix and _HEADER_OPTION.fullmatch(before) is None:
        return None
    name, colon, value = word[len(prefix) :].partition(":")
    if not colon or not is_secret_name(name):
        return None
    return len(word) - len(value.lstrip())


# ---------------------------------------------------------------- the operator's own

PATTERNS_MAX = 100
PATTERN_LENGTH_MAX = 200
_PREFIX_MIN = 3
_REPEAT_MAX = 1024
_ATOM = re.compile(
    r"(\\[.^$*+?{}\[\]\\|()/-]|\\[dw]|\[[A-Za-z0-9_.+/=~-]{1,80}\]"
    r"|[A-Za-z0-9_ .:/=@#%~,;!<>&'\"-])([*+?]|\{[0-9]{1,4}(?:,[0-9]{0,4})?\})?"
)


def parse_patterns(raw_text: str) -> tuple[re.Pattern[str], ...]:
    """The operator's patterns, one a line; `#` begins a comment. Raises `bad_request` with the line's number.

    A small language that cannot be slow: a row of characters, `[…]`, `\\d` and `\\w`, each perhaps with `?`, `*`, `+`
    or `{m,n}`; it begins with three plain characters. No groups, no `|`, no `.` for any character.
    """
    found = []
    for number, line in enumerate(raw_text.splitlines(), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            found.append(_parse_pattern(text, number))
    if len(found) > PATTERNS_MAX:
        raise RunCodeError("bad_request", f"there are more than {PATTERNS_MAX} patterns", resolution="keep fewer")
    return tuple(found)


def _parse_pattern(text: str, number: int) -> re.Pattern[str]:
    refusal = RunCodeError(
        "bad_request",
        f"line {number} of the masking patterns is not one",
        resolution="begin with three plain characters; then characters, [a-z] and \\d, each with ?, *, + or {m,n}",
    )
    pieces: list[str] = []
    at, plain = 0, 0
    while at < len(text):
        match = _ATOM.match(text, at)
        if match is None or len(text) > PATTERN_LENGTH_MAX:
            raise refusal
        atom, repeat = match.groups()
        if atom == ".":
            atom = r"\."
        elif len(atom) == 1:
            atom = re.escape(atom)
        if not repeat and len(pieces) == plain and not atom.startswith(("[", "\\d", "\\w")):
            plain += 1
        least, most = _parse_repeat(repeat)
        if most > _REPEAT_MAX or least > most:
            raise refusal
        # Possessive and bounded: a try at one place costs at most the pattern's own length.
        pieces.append(atom if (least, most) == (1, 1) else f"{atom}{{{least},{most}}}+")
        at = match.end()
    if plain < _PREFIX_MIN:
        raise refusal
    try:
        return re.compile("".join(pieces), re.ASCII)
    except re.error as error:
        raise refusal from error


def _parse_repeat(repeat: str | None) -> tuple[int, int]:
    if not repeat:
        return 1, 1
    if repeat in "?*+":
        return {"?": (0, 1), "*": (0, _REPEAT_MAX), "+": (1, _REPEAT_MAX)}[repeat]
    least, comma, most = repeat[1:-1].partition(",")
    return int(least), int(most or _REPEAT_MAX) if comma else int(least)
