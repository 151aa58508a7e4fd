"""Completion scripts for the shells that people use, made from the parsers themselves.

Owns: what a shell is told about our commands and options, and the text in each
shell's own language. Pure but for asking each command for its parser.

Only names of ours go into a script: no word of a server or of a person is ever in one.
"""

from __future__ import annotations

from runcode.cli.arguments import describe_parser
from runcode.cli.main import COMMANDS, load_command
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SHELLS = ("bash", "zsh", "fish", "powershell")


class Option(Value):
    """One option. `takes_value`: the next word is its value."""

    names: tuple[str, ...]
    takes_value: bool
    help: str


class CommandWords(Value):
    """What can be completed of a command; `choices` are the words of its first argument, where those are fixed."""

    name: str
    summary: str
    options: tuple[Option, ...]
    choices: tuple[str, ...] = ()


def describe_commands() -> list[CommandWords]:
    """Every command that people type, with what its own parser accepts."""
    found = []
    for name, (_, _, summary) in COMMANDS.items():
        if not summary:
            continue
        module = load_command(name)
        options: list[Option] = []
        choices: tuple[str, ...] = ()
        for action in describe_parser(module.parse):
            if action.option_strings and action.help != "==SUPPRESS==":
                takes = action.nargs != 0
                options.append(Option(names=tuple(action.option_strings), takes_value=takes, help=action.help or ""))
            elif not action.option_strings and action.choices and not choices:
                choices = tuple(str(choice) for choice in action.choices)
        found.append(CommandWords(name=name, summary=summary, options=tuple(options), choices=choices))
    names = tuple(command.name for command in found)
    return [*found, CommandWords(name="help", summary="what a command takes", options=(), choices=names)]


def render(shell: str) -> str:
    """The script for one of SHELLS."""
    renderers: dict[str, Callable[[list[CommandWords]], str]] = {
        "bash": _render_bash,
        "zsh": _render_zsh,
        "fish": _render_fish,
        "powershell": _render_powershell,
    }
    return renderers[shell](describe_commands())


def _flags(command: CommandWords) -> list[str]:
    return [name for option in command.options for name in option.names]


def _valued(command: CommandWords) -> list[str]:
    return [name for option in command.options if option.takes_value for name in option.names]


def _render_bash(commands: list[CommandWords]) -> str:
    cases = "".join(
        f"        {command.name}) options='{' '.join(_flags(command))}' valued='{' '.join(_valued(command))}'"
        f" words='{' '.join(command.choices)}' ;;\n"
        for command in commands
    )
    names = " ".join(command.name for command in commands)
    return f"""# bash completion for runcode: eval "$(runcode completion bash)"
_runcode() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}}
    local options='' valued='' words='' index
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W '{names} --version --help' -- "$current"))
        return
    fi
    # What follows `--` is a command line of the box.
    for ((index = 2; index < COMP_CWORD; index++)); do
        [ "${{COMP_WORDS[index]}}" = -- ] && return
    done
    case ${{COMP_WORDS[1]}} in
{cases}    esac
    case " $valued " in
        *" $previous "*) return ;;
    esac
    if [ "${{current:0:1}}" = - ]; then
        COMPREPLY=($(compgen -W "$options" -- "$current"))
    elif [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    fi
}}
complete -o default -F _runcode runcode
"""


def _render_zsh(commands: list[CommandWords]) -> str:
    described = "\n".join(f"        {_zsh_word(command.name, command.summary)}" for command in commands)
    cases = ""
    for command in commands:
        flags = " ".join(
            _zsh_word(name, _first_line(option.help)) for option in command.options for name in option.names
        )
        cases += f"        {command.name}) options=({flags}) valued=({' '.join(_valued(command))})"
        cases += f" words_=({' '.join(command.choices)}) ;;\n"
    return f"""#compdef runcode
# zsh completion for runcode: eval "$(runcode completion zsh)", after compinit
_runcode() {{
    local -a commands options valued words_
    commands=(
{described}
    )
    if (( CURRENT == 2 )); then
        _describe -t commands command commands
        return
    fi
    # What follows `--` is a command line of the box.
    (( ${{words[(I)--]}} && ${{words[(i)--]}} < CURRENT )) && return
    case ${{words[2]}} in
{cases}    esac
    if (( ${{valued[(Ie)${{words[CURRENT-1]}}]}} )); then
        _files
    elif [[ ${{words[CURRENT]}} == -* ]]; then
        _describe -t options option options
    elif (( $#words_ )); then
        compadd -a words_
    else
        _files
    fi
}}
compdef _runcode runcode
"""


def _zsh_word(name: str, text: str) -> str:
    return _single_quoted(f"{name}:{text.replace(':', ' ')}")


def _render_fish(commands: list[CommandWords]) -> str:
    lines = ["# fish completion for runcode: runcode completion fish | source"]
    for command in commands:
        start = "complete -c runcode -n __fish_use_subcommand"
        lines.append(f"{start} -f -a {command.name} -d {_single_quoted(command.summary)}")
    for command in commands:
        seen = f"complete -c runcode -n '__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            value = " -r" if option.takes_value else ""
            lines.append(f"{seen} {names}{value} -d {_single_quoted(_first_line(option.help))}")
        if command.choices:
            lines.append(f"{seen} -f -a {_single_quoted(' '.join(command.choices))}")
    return "\n".join(lines) + "\n"


def _render_powershell(commands: list[CommandWords]) -> str:
    def quoted(words: list[str]) -> str:
        return ", ".join("'" + word.replace("'", "''") + "'" for word in words)

    table = "".join(
        f"        '{command.name}' = @({quoted(_flags(command) + list(command.choices))})\n" for command in commands
    )
    return f"""# PowerShell completion for runcode: runcode completion powershell | Out-String | Invoke-Expression
Register-ArgumentCompleter -Native -CommandName runcode -ScriptBlock {{
    param($wordToComplete, $commandAst, $cursorPosition)
    $table = @{{
{table}    }}
    $elements = @($commandAst.CommandElements | ForEach-Object {{ $_.ToString() }})
    if ($elements -contains '--' -and $wordToComplete -ne '--') {{ return }}
    $typed = $elements.Count
    if ($wordToComplete -ne '') {{ $typed-- }}
    $choices = if ($typed -le 1) {{ $table.Keys | Sort-Object }} else {{ $table[$elements[1]] }}
    $choices | Where-Object {{ $_ -like "$wordToComplete*" }} | ForEach-Object {{
        [System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterValue', $_)
    }}
}}
"""


def _single_quoted(text: str) -> str:
    # In fish a backslash escapes inside quotes too; none of our texts has one.
    return "'" + text.replace("\\", "").replace("'", "’") + "'"


def _first_line(text: str) -> str:
    return text.replace("%%", "%").split("\n")[0]
