#!/bin/sh
# `make oidc-provider`: a certified OpenID provider (npm's oidc-provider) into the folder $1,
# for the tests of signing in through one. A second run does nothing.
#
# Without npm, or without a registry, it says so and exits 3: the tests that need it
# are then listed as NOT RUN. Anything else that goes wrong is a failure.
set -eu

folder=${1:-.cache/oidc-provider}
version=9.13.3

say() { printf 'oidc provider: %s\n' "$*" >&2; }
[ "$(cat "$folder/stamp" 2>/dev/null)" = "$version" ] && exit 0

for program in node npm; do
    if ! command -v "$program" >/dev/null 2>&1; then
        say "$program is missing (apt-get install npm): the tests with a real provider will not run"
        exit 3
    fi
done
mkdir -p "$folder"
log=$folder/npm.log
if ! npm install --prefix "$folder" --no-audit --no-fund --no-update-notifier --save-exact \
    "oidc-provider@$version" >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    say "npm could not fetch it: the tests with a real provider will not run"
    exit 3
fi
printf '%s\n' "$version" >"$folder/stamp"
