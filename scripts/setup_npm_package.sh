#!/bin/sh
# One npm package of a set version into the folder $1, for tests that need a real part from there:
#     setup_npm_package.sh FOLDER PACKAGE VERSION
# A second run does nothing.
#
# Without npm, or without a registry, it says so and exits 3: the tests that need it
# are then listed as NOT RUN. Anything else that goes wrong is a failure.
set -eu

folder=$1 package=$2 version=$3

say() { printf '%s: %s\n' "$package" "$*" >&2; }
[ "$(cat "$folder/stamp" 2>/dev/null)" = "$version" ] && exit 0

for program in node npm; do
    if ! command -v "$program" >/dev/null 2>&1; then
        say "$program is missing (apt-get install npm): the tests with it will not run"
        exit 3
    fi
done
mkdir -p "$folder"
log=$folder/npm.log
# No script of a package runs: ssh2 would compile an add-on that it can do without.
if ! npm install --prefix "$folder" --no-audit --no-fund --no-update-notifier --save-exact --ignore-scripts \
    "$package@$version" >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    say "npm could not fetch it: the tests with it will not run"
    exit 3
fi
printf '%s\n' "$version" >"$folder/stamp"
