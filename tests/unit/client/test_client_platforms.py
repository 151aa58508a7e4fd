"""Each system's answers, asked on this one."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcode.client.platforms import MACOS, POSIX, WINDOWS
from runcode.core.errors import RunCodeError
from runcode.core.sshconfig import SshTarget, render_ssh_config

PROFILE = {
    "USERPROFILE": r"C:\Users\Mira Test",
    "APPDATA": r"C:\Users\Mira Test\AppData\Roaming",
    "LOCALAPPDATA": r"C:\Users\Mira Test\AppData\Local",
}


def test_folders_of_each_system() -> None:
    home = {"HOME": "/home/mira"}
    for platform in (POSIX, MACOS):
        assert platform.config_base(home) == "/home/mira/.config"
        assert platform.cache_base({**home, "XDG_CACHE_HOME": "/c"}) == "/c"
        # A relative one is invalid by the specification, and APPDATA is another system's.
        assert platform.config_base({**home, "XDG_CONFIG_HOME": "c", **PROFILE}) == "/home/mira/.config"
    assert WINDOWS.config_base(PROFILE) == r"C:\Users\Mira Test\AppData\Roaming"
    assert WINDOWS.cache_base(PROFILE) == r"C:\Users\Mira Test\AppData\Local"
    assert WINDOWS.config_base({**PROFILE, "XDG_CONFIG_HOME": r"D:\cfg"}) == r"D:\cfg"
    assert WINDOWS.home(PROFILE) == r"C:\Users\Mira Test"
    # Git Bash sets HOME in its own manner; that is no Windows path.
    assert WINDOWS.home({**PROFILE, "HOME": "/c/Users/Mira"}) == r"C:\Users\Mira Test"
    assert WINDOWS.join(r"C:\a", "runcode") == r"C:\a\runcode"
    # A drive-relative path depends on the current folder.
    assert WINDOWS.config_base({**PROFILE, "XDG_CONFIG_HOME": "C:cfg"}) == PROFILE["APPDATA"]


def test_what_openssh_can_do_there() -> None:
    assert POSIX.can_multiplex
    assert MACOS.can_multiplex
    assert not WINDOWS.can_multiplex
    assert (POSIX.null_device, WINDOWS.null_device) == ("/dev/null", "NUL")
    assert (POSIX.program_file("ssh"), WINDOWS.program_file("ssh")) == ("ssh", "ssh.exe")


def test_a_windows_session_config_is_one_that_ssh_reads(tmp_path: object) -> None:
    """`ssh -G` of this machine is the oracle for its text; only the paths are another system's."""
    key = WINDOWS.path_for_ssh(r"C:\Users\Mira Test\AppData\Local\runcode\ws-42\id_ed25519")
    target = SshTarget(
        alias="runcode-box",
        host="ssh.example.net",
        port=2222,
        user="box",
        identity_file=key,
        known_hosts_file=WINDOWS.path_for_ssh(r"C:\Users\Mira Test\known 100%"),
        control_path=None,
        null_device=WINDOWS.null_device,
    )
    text = render_ssh_config(target)
    assert "\\" not in text
    assert "Control" not in text
    (config := f"{tmp_path}/config")
    with open(config, "w") as file:
        file.write(text)
    seen = subprocess.run(
        ["ssh", "-G", "-F", config, "runcode-box"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "identityfile C:/Users/Mira Test/AppData/Local/runcode/ws-42/id_ed25519" in seen
    assert "globalknownhostsfile NUL" in seen
    assert "controlmaster false" in seen


ODD = [
    "plain",
    "/a b",
    "it's",
    "$HOME",
    "`id`",
    "a!b",
    "a;b&c|d",
    "*?[x]",
    "~",
    "ü",
    "a\\b",
    "(x)",
    "{a,b}",
    "#x",
    "a%h",
]


@pytest.mark.parametrize("shell", ["dash", "bash", "zsh", "fish"])
@pytest.mark.parametrize("word", ODD)
def test_a_word_of_a_proxy_command_is_one_word_in_every_shell(shell: str, word: str) -> None:
    path = shutil.which(shell)
    assert path is not None, f"this test needs {shell}: apt-get install {shell}"
    quoted = POSIX.quote_for_proxy_command(word).replace("%%", "%")  # what ssh makes of it first
    done = subprocess.run(
        [path, "-c", f"exec printf '<%s>' {quoted} end"], capture_output=True, check=True, cwd="/", timeout=60
    )
    assert done.stdout.decode() == f"<{word}><end>"


@given(
    st.text(
        st.characters(codec="utf-8", min_codepoint=32, exclude_characters='"\x7f', exclude_categories=("Cc",)),
        max_size=60,
    )
)
def test_any_path_is_quoted_or_refused(word: str) -> None:
    if "${" in word:
        with pytest.raises(RunCodeError):
            POSIX.quote_for_proxy_command(word)
        return
    quoted = POSIX.quote_for_proxy_command(word)
    assert "%" not in quoted.replace("%%", "")
    assert shlex.split(quoted.replace("%%", "%")) == ([word])


@pytest.mark.parametrize("word", ["a\nb", "a\x00b", 'a"b', "${HOME}", "\x1b[m"])
def test_a_path_that_ssh_cannot_express_is_refused(word: str) -> None:
    for platform in (POSIX, WINDOWS):
        for quote in (platform.quote_for_proxy_command, platform.quote_for_ssh_config):
            with pytest.raises(RunCodeError) as caught:
                quote(word)
            assert caught.value.code == "unsafe_path"


@pytest.mark.parametrize("word", ["%PATH%", "a&b", "a|b", "a^b", "a>b", "a!b", 'a"b'])
def test_windows_refuses_what_its_shell_would_read(word: str) -> None:
    with pytest.raises(RunCodeError):
        WINDOWS.quote_for_proxy_command(word)


def test_windows_quotes_blanks_as_its_programs_split_them() -> None:
    assert WINDOWS.quote_for_proxy_command(r"C:\bin\runcode.exe") == r"C:\bin\runcode.exe"
    assert WINDOWS.quote_for_proxy_command(r"C:\Program Files\r.exe") == r'"C:\Program Files\r.exe"'
    line = " ".join(WINDOWS.quote_for_proxy_command(word) for word in [r"C:\a b\r.exe", "proxy", "42"])
    assert line == r'"C:\a b\r.exe" proxy 42'
    assert line == subprocess.list2cmdline([r"C:\a b\r.exe", "proxy", "42"])


def test_a_browser_is_a_program_with_one_argument() -> None:
    url = "https://runcode.io/?a=b&c=d"
    assert WINDOWS.browser_commands({}, url) == [["rundll32.exe", "url.dll,FileProtocolHandler", url]]
    assert MACOS.browser_commands({"BROWSER": "x"}, url) == [["open", url]]
    # No screen and no BROWSER: nothing that would take over the terminal, such as lynx.
    assert POSIX.browser_commands({}, url) == []
    assert POSIX.browser_commands({"DISPLAY": ":0"}, url) == [["xdg-open", url]]
    assert POSIX.browser_commands({"BROWSER": "/opt/open:firefox -x %s:w3m"}, url) == [["/opt/open", url], ["w3m", url]]
    assert POSIX.browser_commands({"WSL_DISTRO_NAME": "Debian"}, url) == [["wslview", url]]
