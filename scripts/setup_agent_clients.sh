#!/bin/sh
# `make agent-clients`: the real Claude Code and Codex, in the versions that the
# plugin is proved with, into the folder $1. A second run does nothing.
#
# Without npm, or without a registry, it says so and exits 3: the tests that need
# a client are then listed as NOT RUN. Anything else that goes wrong is a failure.
set -eu

folder=${1:-.cache/agent-clients}
# tests/support/agent_clients.py reads these three lines.
claude=2.1.330
codex=0.169.0
claude_before=2.1.197

say() { printf 'agent clients: %s\n' "$*" >&2; }
stamp="claude $claude codex $codex before $claude_before"
[ "$(cat "$folder/stamp" 2>/dev/null)" = "$stamp" ] && exit 0

for program in node npm; do
    if ! command -v "$program" >/dev/null 2>&1; then
        say "$program is missing (apt-get install npm): the tests in the real clients will not run"
        exit 3
    fi
done
mkdir -p "$folder/now" "$folder/before"
log=$folder/npm.log
install() { # install PREFIX PACKAGE...
    prefix=$1
    shift
    npm install --prefix "$prefix" --no-audit --no-fund --no-update-notifier --save-exact "$@" >>"$log" 2>&1
}
say "installing Claude Code $claude and $claude_before, Codex $codex (about 1 GB, once)"
: >"$log"
if ! install "$folder/now" "@anthropic-ai/claude-code@$claude" "@openai/codex@$codex" ||
    ! install "$folder/before" "@anthropic-ai/claude-code@$claude_before"; then
    tail -n 5 "$log" >&2
    say "npm could not fetch them: the tests in the real clients will not run"
    exit 3
fi
for program in now/node_modules/.bin/claude now/node_modules/.bin/codex before/node_modules/.bin/claude; do
    "$folder/$program" --version >/dev/null || { say "$program does not start here"; exit 1; }
done
printf '%s\n' "$stamp" >"$folder/stamp"
