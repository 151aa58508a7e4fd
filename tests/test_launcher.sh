#!/bin/sh
# The plugin's launcher against everything that could go wrong with it: `sh tests/test_launcher.sh`.
#
# Offline (file:// and loopback), in an empty HOME, with its own small PATH. Each shell that is here (or that is named:
# `sh tests/test_launcher.sh dash`) takes its turn as the launcher's. `ok - …` for each case; the last line is ALL PASS, or else the status is 1. What this machine cannot
# try is printed as NOT RUN. Needs curl, python3 (it makes the hostile archives and serves the redirects), coreutils.
set -u
root=$(cd "$(dirname "$0")/.." && pwd -P)
T=$(mktemp -d "${TMPDIR:-/tmp}/rc-launcher.XXXXXX") && T=$(cd "$T" && pwd -P) || exit 1
server=
trap 'rm -rf "$T"; [ -z "$server" ] || kill "$server" 2>/dev/null' EXIT
trap 'exit 1' HUP INT TERM
chmod 711 "$T"
umask 022
failed=0

case $(uname -s)-$(uname -m) in
Linux-x86_64) platform=linux-amd64 ;;
Linux-aarch64) platform=linux-arm64 ;;
Darwin-x86_64) platform=darwin-amd64 ;;
Darwin-arm64) platform=darwin-arm64 ;;
*) echo "NOT RUN - there is no release for $(uname -s) $(uname -m)"; exit 1 ;;
esac
asset=runcode_$(echo "$platform" | tr - _).tar.gz
for program in curl python3 sha256sum; do
    command -v "$program" >/dev/null || { echo "this test needs $program: install it"; exit 1; }
done

# ---------------------------------------------------------------- the pieces
# Quotes, blanks and signs that a shell would read: in every path at once.
odd="a b'c\"d \$e"
tools="$T/tools"
mkdir "$tools" "$T/$odd"
for program in cat chmod cp curl env find grep gzip head ls mkdir mv readlink rm rmdir sed sha256sum sort tar tr uname wc; do
    ln -s "$(command -v "$program")" "$tools/$program"
done
plugin="$T/$odd/plugin"
mkdir -p "$plugin/bin" "$T/$odd/checkout"
cp "$root/plugin/bin/runcode" "$plugin/bin/runcode"
echo v1.2.3 >"$plugin/bin/RUNCODE_VERSION"
cd "$T/$odd/checkout" || exit 1
sum_of() { sha256sum <"$1" | sed 's/ .*//'; }

# A release in dist: a `runcode` that tells how it was called and what its neighbour says, and that neighbour.
dist="$T/$odd/dist"
mkdir -p "$dist" "$T/tree/runcode.app/lib"
cat >"$T/tree/runcode" <<'END'
#!/bin/sh
IFS= read -r word <"$0.app/lib/word"
printf '%s' "started $word"
[ $# = 0 ] || printf ' [%s]' "$@"
echo
[ "${1-}" != exit ] || exit "$2"
END
echo whole >"$T/tree/runcode.app/lib/word"
chmod 755 "$T/tree/runcode"
tar -czf "$dist/$asset" -C "$T/tree" runcode runcode.app
publish() { # publish FOLDER: checksums.txt beside the asset
    echo "$(sum_of "$1/$asset")  $asset" >"$1/checksums.txt"
}
publish "$dist"
cp "$dist/checksums.txt" "$plugin/bin/checksums.txt"

fresh() { # an empty HOME
    chmod -R u+rwx "$T/home" 2>/dev/null
    rm -rf "$T/home"
    mkdir "$T/home"
    cache=$T/home/.cache/runcode
    entry=$cache/bin/runcode-v1.2.3-$platform
}
try() { # try [NAME=VALUE…] -- WORDS…: sets out, err, status
    left=$#
    while [ "$left" -gt 0 ]; do
        word=$1
        shift
        left=$((left - 1))
        if [ "$word" = -- ]; then
            set -- "$@" $shell "$plugin/bin/runcode"
            while [ "$left" -gt 0 ]; do
                word=$1
                shift
                set -- "$@" "$word"
                left=$((left - 1))
            done
        else
            set -- "$@" "$word"
        fi
    done
    # Seconds of processor time: a launcher that starts itself for ever ends by it.
    out=$(ulimit -t 3; env -i HOME="$T/home" PATH="$tools" RUNCODE_DOWNLOAD_BASE="file://$dist" "$@" 2>"$T/err" </dev/null)
    status=$?
    err=$(cat "$T/err")
}
ok() { echo "ok - $turn: $1"; }
not_ok() {
    failed=1
    printf 'NOT OK - %s: %s\n  status %s\n  stdout %s\n  stderr %s\n' "$turn" "$1" "$status" "$out" "$err"
}
check() { # check NAME TEST…
    name=$1
    shift
    if "$@"; then ok "$name"; else not_ok "$name"; fi
}
started() { [ "$status" = 0 ] && [ "$out" = "started whole$1" ] && [ -z "$err" ]; }
nothing_left() { [ ! -e "$1" ] || [ -z "$(find "$1" ! -type d)" ]; }
whole_or_not_there() { [ ! -e "$entry" ] || [ "$(env -i PATH= "$entry" x)" = "started whole [x]" ]; }
# One line, with that code, its way out in brackets, and 127.
refused() { # refused CODE [PART]
    [ "$status" = "${want:-127}" ] && [ -z "$out" ] && [ "$(wc -l <"$T/err")" -eq 1 ] && case $err in
    "runcode: $1: "*"${2-}"*" ("*")") true ;;
    *) false ;;
    esac
}
refuses() { # refuses NAME CODE PART: of the last try, and nothing is in the cache
    if refused "$2" "$3" && nothing_left "$cache"; then ok "$1"; else not_ok "$1"; fi
}

# ---------------------------------------------------------------- hostile archives, a loopback server
mkdir "$T/hostile"
python3 - "$T/hostile" "$asset" "$T" <<'END' || exit 1
import io, os, sys, tarfile
folder, asset, top = sys.argv[1:]
def entry(name, kind=tarfile.REGTYPE, link="", data=b"#!/bin/sh\necho escaped\n", mode=0o755):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = 1, 3
    return info, data
good = entry("runcode")
cases = {
    "an absolute path": [good, entry(f"{top}/escaped")],
    "a path with ..": [good, entry("runcode.app/../../../escaped")],
    "a leading ..": [good, entry("../escaped")],
    "another name at the top": [good, entry("bash")],
    "no runcode": [entry("runcode.app/x")],
    "runcode one folder down": [entry("runcode-1.2.3/runcode")],
    "a link as runcode": [entry("runcode", tarfile.SYMTYPE, "/bin/sh")],
    "a link to a folder outside": [good, entry("runcode.app", tarfile.SYMTYPE, top), entry("runcode.app/escaped")],
    "a link inside": [good, entry("runcode.app/x", tarfile.SYMTYPE, "../runcode")],
    "a hard link to a file outside": [good, entry("runcode.app/x", tarfile.LNKTYPE, "/etc/passwd")],
    "a hard link inside": [good, entry("runcode.app/x", tarfile.LNKTYPE, "runcode")],
    "a device": [good, entry("runcode.app/null", tarfile.CHRTYPE)],
    "a pipe": [good, entry("runcode.app/pipe", tarfile.FIFOTYPE)],
    "a name with a line break": [good, entry("runcode.app/a\nrunning"), entry("runcode.app/b\n/etc/x")],
    "a name with an escape": [good, entry("runcode.app/\x1b[2J")],
    "a set-user-id program": [good, entry("runcode.app/su", mode=0o4755)],
    "a folder as runcode": [entry("runcode", tarfile.DIRTYPE), entry("runcode/x")],
    "an empty runcode": [entry("runcode", data=b"")],
}
for number, (name, entries) in enumerate(cases.items()):
    os.makedirs(f"{folder}/{number:02}")
    open(f"{folder}/{number:02}/name", "w").write(name)
    with tarfile.open(f"{folder}/{number:02}/{asset}", "w:gz") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data) if info.size else None)
END
for folder in "$T/hostile"/*; do publish "$folder"; done

python3 - "$dist" "$T/port" <<'END' &
import http.server, os, sys
folder, port_file = sys.argv[1:]
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        way, _, name = self.path.lstrip("/").partition("/")
        if way == "good":
            body = open(os.path.join(folder, name), "rb").read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif way == "cut":
            body = open(os.path.join(folder, name), "rb").read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) + 1))
            self.end_headers()
            self.wfile.write(body)
        elif way == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                pass
        elif way in ("to-http", "to-file", "to-ftp"):
            target = {"to-http": f"http://127.0.0.1:{self.server.server_port}/good/{name}", "to-file": f"file://{folder}/{name}", "to-ftp": "ftp://127.0.0.1:1/x"}
            self.send_response(302)
            self.send_header("Location", target[way])
            self.end_headers()
        else:
            self.send_error(404)
    def log_message(self, *words):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
open(port_file + ".new", "w").write(str(server.server_port))
os.rename(port_file + ".new", port_file)
server.serve_forever()
END
server=$!
until [ -s "$T/port" ]; do
    kill -0 "$server" 2>/dev/null || { echo "the loopback server did not start"; exit 1; }
    sleep 0.1
done
here=http://127.0.0.1:$(cat "$T/port")

without() { # without PROGRAM…: sets `less`, a PATH that lacks them
    less=$T/less
    rm -rf "$less"
    cp -R "$tools" "$less"
    for program in "$@"; do rm -f "$less/$program"; done
}
# Sets `less`, a PATH whose PROGRAM kills the launcher (its staging folder has its number) when it is called the Nth time.
killer() { # killer PROGRAM N
    without "$1"
    rm -f "$T/calls"
    cat >"$less/$1" <<END
#!/bin/sh
echo x >>"$T/calls"
[ "\$(wc -l <"$T/calls")" -ne $2 ] || { for left in "$cache/bin/.staging."*; do kill -9 "\${left##*.}"; done; exit 1; }
exec "$(readlink "$tools/$1")" "\$@"
END
    chmod 755 "$less/$1"
}

# As the client writes it when it attaches.
attach() { mkdir -p "$cache/attachments" && chmod -R go-rwx "$cache" && echo x >"$cache/attachments/one"; }

# ---------------------------------------------------------------- the cases, for each shell
cases() {
    # -------- first run, second run
    fresh
    try -- one 'two words' '' "it's \"quoted\" \$x"
    check "the first run fetches, verifies and starts" started " [one] [two words] [] [it's \"quoted\" \$x]"
    check "the entry is a regular file under its name" test -f "$entry" -a ! -h "$entry" -a -x "$entry"
    check "nothing but the entry and its application is left" test "$(ls -A "$cache/bin" | tr '\n' ' ')" = "runcode-v1.2.3-$platform runcode-v1.2.3-$platform.app "
    check "nobody else can read or write it" test -z "$(find "$cache" -perm -0040 -o -perm -0020 -o -perm -0004 -o -perm -0002)"
    try RUNCODE_DOWNLOAD_BASE=https://127.0.0.1:1 PATH= -- again
    check "afterwards it is offline, with an empty PATH" started " [again]"
    try PATH= -- exit 42
    check "the status passes through" test "$status" = 42
    mkdir "$T/home/bin" && ln -s "$plugin/bin/runcode" "$T/home/bin/first" && ln -s first "$T/home/bin/runcode"
    out=$(env -i HOME="$T/home" PATH="$tools" $shell "$T/home/bin/runcode" x 2>&1)
    check "called by a link to a link" test "$out" = "started whole [x]"
    out=$(cd "$plugin/bin" && env -i HOME="$T/home" PATH="$tools" $shell runcode x 2>&1)
    check "called by its bare name" test "$out" = "started whole [x]"
    out=$(env -i HOME="$T/home" PATH="$tools" LC_ALL=C.UTF-8 "$(command -v sh)" -c 'umask 027; exec "$@"' - $shell "$plugin/bin/runcode" x 2>&1)
    check "called with another umask and locale" test "$out" = "started whole [x]"

    # -------- other archives, knobs
    fresh
    mkdir -p "$T/single"
    printf '#!/bin/sh\necho "single $1 $(umask) ${LC_ALL-unset} $PATH"\n' >"$T/single/runcode"
    chmod 755 "$T/single/runcode"
    tar -czf "$T/single/$asset" -C "$T/single" runcode
    publish "$T/single"
    want_out="single y 0022 unset $tools"
    try RUNCODE_PIN_VERSION=v9 "RUNCODE_DOWNLOAD_BASE=file://$T/single" -- y
    check "an archive with runcode alone; umask, locale and PATH are the caller's" test "$out" = "$want_out"
    fresh
    tar -czf "$T/single/$asset" -C "$T/single" ./runcode
    publish "$T/single"
    try RUNCODE_PIN_VERSION=v9 "RUNCODE_DOWNLOAD_BASE=file://$T/single" -- y
    check "an archive whose names begin with ./" test "$out" = "$want_out"
    fresh
    try RUNCODE_CACHE="$T/home/another '\$cache\"" -- z
    check "RUNCODE_CACHE" started " [z]"
    check "and only it" nothing_left "$cache"
    fresh
    try XDG_CACHE_HOME="$T/home/xdg" -- z
    check "XDG_CACHE_HOME" test -f "$T/home/xdg/runcode/bin/runcode-v1.2.3-$platform"
    fresh
    try XDG_CACHE_HOME=relative -- z
    check "a relative XDG_CACHE_HOME does not count" test -f "$entry"
    fresh
    try RUNCODE_CACHE="$cache///" -- z
    check "slashes at the cache's end" test -f "$entry"
    for tool in sha256sum shasum openssl; do
        if [ "$tool" = sha256sum ] || command -v "$tool" >/dev/null; then
            fresh
            without sha256sum
            [ -e "$less/$tool" ] || ln -s "$(command -v "$tool")" "$less/$tool"
            [ "$tool" != shasum ] || ln -s "$(command -v perl)" "$less/perl"
            try PATH="$less" -- d
            check "verified by $tool" started " [d]"
        else
            echo "NOT RUN - $turn: verified by $tool (it is not here)"
        fi
    done

    # -------- over loopback http
    fresh
    try RUNCODE_DOWNLOAD_BASE="$here/good" -- h
    check "a mirror on loopback" started " [h]"
    for way in to-http to-file to-ftp; do
        fresh
        try RUNCODE_DOWNLOAD_BASE="$here/$way" -- h
        refuses "a redirect $way" insecure_base ""
    done
    fresh
    try RUNCODE_DOWNLOAD_BASE="$here/cut" -- h
    refuses "a transfer that is cut off" network "curl: 18"
    fresh
    try RUNCODE_PIN_VERSION=v9 RUNCODE_DOWNLOAD_BASE="$here/endless" -- h
    refuses "a checksums.txt without end" unverified_download "larger than"
    fresh
    try RUNCODE_DOWNLOAD_BASE=http://127.0.0.1:1 -- h
    refuses "nobody there" network "curl: 7"
    for base in http://192.0.2.1/x ftp://127.0.0.1/x http://127.0.0.1@192.0.2.1/x http://127.0.0.1:1@192.0.2.1/ http://127.0.0.1.example/x \
        http://localhost.example/ relative/path file://elsewhere/x 'https://' '--upload-file'; do
        fresh
        try RUNCODE_DOWNLOAD_BASE="$base" -- h
        refuses "the address $base" insecure_base ""
    done

    # -------- what is not what was published
    mkdir -p "$T/bad"
    fresh
    cp "$dist/$asset" "$T/bad/$asset" && echo x >>"$T/bad/$asset" && publish "$T/bad"
    try "RUNCODE_DOWNLOAD_BASE=file://$T/bad" -- v
    refuses "another archive, whatever its own checksums.txt says: the plugin's pins bind" unverified_download "SHA-256"
    fresh
    cp "$dist/checksums.txt" "$T/bad/checksums.txt"
    try RUNCODE_PIN_VERSION=v9 "RUNCODE_DOWNLOAD_BASE=file://$T/bad" -- v
    refuses "a mismatch with checksums.txt" unverified_download "SHA-256"
    fresh
    head -c 100 "$dist/$asset" >"$T/bad/$asset"
    try "RUNCODE_DOWNLOAD_BASE=file://$T/bad" -- v
    refuses "a truncated archive" unverified_download "SHA-256"
    fresh
    publish "$T/bad"
    try RUNCODE_PIN_VERSION=v9 "RUNCODE_DOWNLOAD_BASE=file://$T/bad" -- v
    refuses "an archive that was published truncated" unverified_download "cannot be unpacked"
    fresh
    printf 'no archive' | gzip -c >"$T/bad/$asset" && publish "$T/bad"
    try RUNCODE_PIN_VERSION=v9 "RUNCODE_DOWNLOAD_BASE=file://$T/bad" -- v
    refuses "what is no archive" unverified_download ""
    fresh
    echo "$(sum_of "$dist/$asset")  runcode_plan9_amd64.tar.gz" >"$T/bad/checksums.txt"
    cp "$dist/$asset" "$T/bad/$asset"
    try RUNCODE_PIN_VERSION=v9 "RUNCODE_DOWNLOAD_BASE=file://$T/bad" -- v
    refuses "an asset that checksums.txt does not name" unverified_download "does not name"
    fresh
    echo "$(sum_of "$dist/$asset")  x$asset" >"$T/bad/checksums.txt"
    try RUNCODE_PIN_VERSION=v9 "RUNCODE_DOWNLOAD_BASE=file://$T/bad" -- v
    refuses "a name that only ends like the asset's" unverified_download "does not name"
    fresh
    echo "d41d8  $asset" >"$T/bad/checksums.txt"
    try RUNCODE_PIN_VERSION=v9 "RUNCODE_DOWNLOAD_BASE=file://$T/bad" -- v
    refuses "a digest that is none" unverified_download "no SHA-256"
    fresh
    { echo "$(sum_of "$dist/$asset")  $asset"; echo "$(sum_of "$T/err")  $asset"; } >"$T/bad/checksums.txt"
    try RUNCODE_PIN_VERSION=v9 "RUNCODE_DOWNLOAD_BASE=file://$T/bad" -- v
    refuses "two digests for one asset" unverified_download "twice"
    fresh
    echo "$(sum_of "$dist/$asset")  runcode_plan9_amd64.tar.gz" >"$plugin/bin/checksums.txt"
    try -- v
    refuses "an asset that the plugin's pins do not name, whatever the download says" unverified_download "the plugin's checksums.txt"
    try RUNCODE_PIN_VERSION=v1.2.3 -- v
    refuses "the same with the own version named" unverified_download "the plugin's checksums.txt"
    echo '# no pins' >"$plugin/bin/checksums.txt"
    try -- v
    check "a plugin without pins asks the checksums.txt beside the archive" started " [v]"
    cp "$dist/checksums.txt" "$plugin/bin/checksums.txt"
    fresh
    try "RUNCODE_DOWNLOAD_BASE=file://$T/nowhere" -- v
    refuses "nothing there" not_found "there is no $asset"
    for folder in "$T/hostile"/*; do
        fresh
        try RUNCODE_PIN_VERSION=v9 "RUNCODE_DOWNLOAD_BASE=file://$folder" -- v
        refuses "an archive with $(cat "$folder/name")" unverified_download ""
        [ ! -e "$T/escaped" ] || not_ok "it escaped"
        rm -f "$T/escaped"
    done

    # -------- a cache that is not ours
    fresh
    mkdir -p "$T/home/.cache" "$T/home/elsewhere" && ln -s "$T/home/elsewhere" "$cache"
    try -- c
    check "a cache that is a link" refused unsafe_path "is a link"
    check "and nothing is behind the link" nothing_left "$T/home/elsewhere"
    fresh
    mkdir -p "$cache" && chmod 777 "$cache"
    try -- c
    refuses "a cache that everybody may write to" unsafe_path "can be written by others"
    fresh
    mkdir -p "$cache/bin" && chmod 775 "$cache/bin"
    try -- c
    refuses "a cache whose bin a group may write to" unsafe_path "can be written by others"
    fresh
    mkdir -p "$cache" "$T/home/elsewhere" && ln -s "$T/home/elsewhere" "$cache/bin"
    try -- c
    check "a bin that is a link" refused unsafe_path "is a link"
    fresh
    if [ "$(id -u)" = 0 ]; then
        mkdir -p "$cache" && chown 65534 "$cache"
        try -- c
        refuses "a cache of another user" unsafe_path "belongs to another user"
        fresh
        try -- c
        chown 65534 "$cache" "$cache/bin"
        try -- c
        check "also when an entry is in it" refused unsafe_path "belongs to another user"
        chown 0 "$cache" "$cache/bin" && chown 65534 "$entry"
        try -- c
        check "an entry of another user" refused unsafe_path "not a file of yours"
    else
        try RUNCODE_CACHE=/usr/share -- c
        check "a cache of another user" refused unsafe_path "belongs to another user"
        echo "NOT RUN - $turn: an entry of another user (needs root)"
    fi
    fresh
    echo x >"$T/home/file"
    try RUNCODE_CACHE="$T/home/file/cache" -- c
    refuses "a cache that cannot be made" unsafe_path "cannot be written"
    try RUNCODE_CACHE="$T/home/file" -- c
    check "a cache that is a file" refused unsafe_path "is not a folder"
    if [ "$(id -u)" != 0 ]; then
        fresh
        mkdir -p "$cache/bin" && chmod 500 "$cache/bin"
        try -- c
        refuses "a cache that cannot be written" unsafe_path "cannot be written"
    fi
    for bad in relative/cache ./x; do
        try RUNCODE_CACHE="$bad" -- c
        check "the relative cache $bad" refused unsafe_path "not an absolute path"
    done
    try RUNCODE_CACHE="$(printf '/tmp/a\nb')" -- c
    check "a cache with a line break in its name is still one line" refused unsafe_path "control characters"
    try HOME= -- c
    check "no HOME" refused unsafe_path "no HOME"
    # Poisoned: what stands under the entry's name is not a file of ours, or not a whole one.
    fresh
    try -- c
    mv "$entry" "$entry.real" && ln -s "$entry.real" "$entry"
    try -- c
    check "an entry that is a link" refused unsafe_path "not a file of yours"
    rm "$entry" && : >"$entry" && chmod 700 "$entry"
    try -- c
    check "an empty entry" refused unsafe_path "damaged"
    chmod 600 "$entry"
    try -- c
    check "an entry that is not executable" refused unsafe_path "damaged"
    printf '#!/no/such/interpreter\n' >"$entry" && chmod 700 "$entry"
    attach
    try -- hook pre-tool-use --client claude
    check "hook, and the entry does not start: 2" test "$status" = 2 -a -z "$out"
    # What an earlier, killed run left half-way.
    fresh
    mkdir -p "$entry.app/lib" && chmod -R go-rwx "$cache" && echo stale >"$entry.app/lib/word"
    try -- s
    check "an application without an entry, of unknown origin, is replaced" started " [s]"
    fresh
    mkdir -p "$cache/bin" && chmod -R go-rwx "$cache" && ln -s "$T/home" "$entry.app"
    try -- s
    check "a link in the application's place is replaced" started " [s]"

    # -------- RUNCODE_BIN, versions
    fresh
    printf '#!/bin/sh\necho "own $1"\n' >"$T/$odd/own" && chmod 755 "$T/$odd/own"
    try RUNCODE_BIN="$T/$odd/own" RUNCODE_DOWNLOAD_BASE=nonsense -- b
    check "RUNCODE_BIN" test "$out" = "own b"
    try RUNCODE_BIN="$T/$odd/own" RUNCODE_PIN_VERSION=../x -- b
    check "RUNCODE_BIN comes before everything else" test "$out" = "own b"
    try RUNCODE_BIN="$T/missing" -- b
    refuses "RUNCODE_BIN that is missing" missing_program "RUNCODE_BIN"
    : >"$T/home/plain"
    try RUNCODE_BIN="$T/home/plain" -- b
    refuses "RUNCODE_BIN that is not executable" missing_program "RUNCODE_BIN"
    try RUNCODE_BIN="$T/home" -- b
    refuses "RUNCODE_BIN that is a folder" missing_program "RUNCODE_BIN"
    try RUNCODE_BIN=runcode -- b
    refuses "RUNCODE_BIN that is relative" missing_program "RUNCODE_BIN"
    try RUNCODE_BIN="$plugin/bin/runcode" -- b
    refuses "RUNCODE_BIN that is the launcher itself" missing_program "RUNCODE_BIN"
    for version in ../../x .hidden -x 'a b' 'a/b' 'ü'; do
        try RUNCODE_PIN_VERSION="$version" -- b
        refuses "the version $version" usage ""
    done
    mv "$plugin/bin/RUNCODE_VERSION" "$T/kept"
    try -- b
    refuses "no RUNCODE_VERSION" io_error "RUNCODE_VERSION"
    try RUNCODE_PIN_VERSION=v1.2.3 -- b
    check "which is not needed where a version is named" started " [b]"
    printf 'v1.2.3' >"$plugin/bin/RUNCODE_VERSION"
    fresh
    try -- b
    check "a RUNCODE_VERSION without a line break" started " [b]"
    mv "$T/kept" "$plugin/bin/RUNCODE_VERSION"

    # -------- programs
    for program in curl tar gzip; do
        fresh
        without "$program"
        try PATH="$less" -- p
        refuses "$program is missing" missing_program "$program"
    done
    fresh
    without sha256sum shasum openssl
    try PATH="$less" -- p
    refuses "nothing that could verify" missing_program "sha256sum"
    fresh
    try PATH= -- p
    refuses "an empty PATH" missing_program ""
    fresh
    mkdir -p "$T/$odd/checkout/bin"
    for program in curl tar gzip sha256sum uname mv runcode; do
        printf '#!/bin/sh\necho "the project ran" >>"%s"\n' "$T/ran" >"$T/$odd/checkout/bin/$program"
        chmod 755 "$T/$odd/checkout/bin/$program"
        cp "$T/$odd/checkout/bin/$program" "$T/$odd/checkout/$program"
    done
    try "PATH=$T/$odd/checkout/bin:bin:.::$tools" -- p
    check "no program of the working folder is run" started " [p]"
    [ ! -e "$T/ran" ] || not_ok "it was"
    rm -rf "$T/$odd/checkout/"* "$T/ran"

    # -------- a runcode of the person's own
    fresh
    mkdir -p "$T/own" "$T/home/.local/bin" "$T/home/.config/runcode/bin" "$T/home/venv/bin"
    cp "$T/$odd/own" "$T/own/runcode"
    try RUNCODE_DOWNLOAD_BASE=nonsense "PATH=$tools:$T/own" -- i
    check "one on PATH comes before a download" test "$out" = "own i"
    check "and nothing is fetched" nothing_left "$cache"
    cp "$T/$odd/own" "$T/home/venv/bin/runcode"
    ln -s ../../venv/bin/runcode "$T/home/.local/bin/runcode"
    try RUNCODE_DOWNLOAD_BASE=nonsense "PATH=$tools:$T/home/.local/bin" -- i
    check "one that pipx linked" test "$out" = "own i"
    printf '%s' ../../venv/bin/runcode >"$T/home/.config/runcode/path-link"
    try "PATH=$tools:$T/home/.local/bin" -- i
    check "not the link of install-path" started " [i]"
    try "PATH=$tools:$T/own" -- i
    check "the cache comes before PATH" started " [i]"
    fresh
    mkdir -p "$T/other/bin" "$T/home/.local/bin"
    cp "$plugin/bin/"* "$T/other/bin/"
    try "PATH=$tools:$T/other/bin:$plugin/bin" -- i
    check "not another plugin's launcher" started " [i]"
    fresh
    mkdir -p "$T/home/.local/bin"
    ln -s "$T/other/bin/runcode" "$T/home/.local/bin/runcode"
    try "PATH=$tools:$T/home/.local/bin" -- i
    check "not a link to one" started " [i]"
    fresh
    mkdir -p "$T/home/lasting"
    printf '#!/bin/sh\n# runcode: starts the newest runcode; written by `runcode`\necho lasting\n' >"$T/home/lasting/runcode"
    chmod 755 "$T/home/lasting/runcode"
    try "PATH=$tools:$T/home/lasting" -- i
    check "not the lasting launcher that the client writes" started " [i]"
    fresh
    mkdir -p "$T/home/.local/bin" "$cache/bin" && chmod -R go-rwx "$cache"
    cp "$T/$odd/own" "$cache/bin/runcode-v0.0.1-$platform"
    ln -s "$cache/bin/runcode-v0.0.1-$platform" "$T/home/.local/bin/runcode"
    try "PATH=$tools:$T/home/.local/bin" -- i
    check "not a link to an older one in the cache" started " [i]"
    fresh
    mkdir -p "$T/home/linked"
    cp "$T/$odd/own" "$T/$odd/checkout/evil" && ln -s "$T/$odd/checkout/evil" "$T/home/linked/runcode"
    ln -s "$T/$odd/checkout" "$T/home/folder" && cp "$T/$odd/own" "$T/$odd/checkout/runcode"
    try "PATH=$tools:$T/home/linked:$T/home/folder" -- i
    check "not one that leads into the working folder" started " [i]"
    rm -rf "$T/$odd/checkout/"*
    fresh
    printf '' >"$T/own/runcode"
    try "PATH=$tools:$T/own" -- i
    check "not an empty file" started " [i]"

    # -------- who calls decides what a failure is
    fresh
    for event in pre-tool-use user-prompt-submit; do
        try RUNCODE_DOWNLOAD_BASE=nonsense -- hook "$event" --client claude
        check "$event with nothing attached anywhere: the client goes on" test "$status" = 0 -a -z "$out$err" -a ! -e "$cache"
    done
    attach
    rm "$cache/attachments/one"
    try RUNCODE_DOWNLOAD_BASE=nonsense -- hook pre-tool-use --client claude
    check "also when everything was detached" test "$status" = 0 -a -z "$out$err"
    want=2
    attach
    for event in pre-tool-use user-prompt-submit session-start post-tool-use; do
        try RUNCODE_DOWNLOAD_BASE=nonsense -- hook "$event" --client claude
        check "$event fails closed where something is attached: 2" refused insecure_base ""
    done
    rm -r "$cache/attachments" && ln -s "$T/nowhere" "$cache/attachments"
    try RUNCODE_DOWNLOAD_BASE=nonsense -- hook pre-tool-use --client claude
    check "a link in the attachments' place is no proof that nothing is attached: 2" refused insecure_base ""
    fresh
    try RUNCODE_BIN=/nowhere -- hook session-start --client codex
    refuses "hook with a bad RUNCODE_BIN: 2" missing_program ""
    want=255
    for word in exec run shell proxy; do
        try RUNCODE_DOWNLOAD_BASE=nonsense -- "$word" -- true
        refuses "$word fails as ssh does: 255" insecure_base ""
    done
    want=
    try -- statusline
    check "statusline is dark, and fetches nothing" test "$status" = 0 -a -z "$out$err" -a ! -e "$cache"
    try RUNCODE_DOWNLOAD_BASE='no"nsense\' -- list --json
    check "--json: an object on stdout" test "$status" = 127 -a -z "$err" -a "$(printf '%s' "$out" | python3 -c 'import json, sys; d = json.load(sys.stdin); print(*d, d["error"])')" = "error message resolution insecure_base"
    try RUNCODE_DOWNLOAD_BASE=nonsense -- list -- --json
    refuses "--json behind -- is not ours" insecure_base ""

    # -------- at once, and cut off
    fresh
    number=0
    while [ "$number" -lt 20 ]; do
        env -i HOME="$T/home" PATH="$tools" RUNCODE_DOWNLOAD_BASE="file://$dist" $shell "$plugin/bin/runcode" "$number" >"$T/parallel.$number" 2>&1 &
        eval "pid_$number=\$!"
        number=$((number + 1))
    done
    number=0 good=0
    while [ "$number" -lt 20 ]; do
        eval "wait \$pid_$number" && [ "$(cat "$T/parallel.$number")" = "started whole [$number]" ] && good=$((good + 1))
        number=$((number + 1))
    done
    out=$(cat "$T"/parallel.*) status=$good err=
    check "twenty first runs at once all start" test "$good" = 20
    check "and leave one entry and one application" test "$(ls -A "$cache/bin" | tr '\n' ' ')" = "runcode-v1.2.3-$platform runcode-v1.2.3-$platform.app "
    for moment in curl:1 gzip:1 tar:1 tar:2 tar:3 chmod:1 mv:1 mv:2 mv:3 mv:4; do
        fresh
        killer "${moment%:*}" "${moment#*:}"
        # The shell's own word about it, "Killed", is nothing to us.
        { try PATH="$less" -- k; } 2>/dev/null
        [ "$status" = 137 ] || not_ok "it was not killed at $moment"
        check "killed at $moment: what stands under the final name is whole" whole_or_not_there
        try -- k
        check "killed at $moment: the next run is good" started " [k]"
        check "killed at $moment: and sweeps what was left" test "$(ls -A "$cache/bin" | tr '\n' ' ')" = "runcode-v1.2.3-$platform runcode-v1.2.3-$platform.app "
    done
}

# A limit of no further process, for a user whom limits hold: then a fork fails, and only a path without one works.
no_fork() {
    fresh
    try -- x
    user=
    if [ "$(id -u)" = 0 ]; then
        user='setpriv --reuid=65534 --regid=65534 --clear-groups'
        chown -R 65534 "$T/home" 2>/dev/null
        chmod 755 "$T/$odd"
    fi
    if ! command -v prlimit >/dev/null || { [ -n "$user" ] && ! command -v setpriv >/dev/null; }; then
        echo "NOT RUN - $turn: the cached path does not fork (needs prlimit, and for root setpriv)"
        return
    fi
    limited="$user prlimit --nproc=0 --"
    printf 'x=$(echo forked); echo "$x"\n' >"$T/forking"
    out=$($limited $shell "$T/forking" 2>&1)
    check "the proof bites: a script that forks fails under it" test "$out" != forked
    [ -x /bin/true ] && cp /bin/true "$entry" || cp /usr/bin/true "$entry"
    chmod 755 "$entry" && { [ -z "$user" ] || chown 65534 "$entry"; }
    out=$(HOME="$T/home" $limited $shell "$plugin/bin/runcode" exec -- true 2>&1)
    status=$?
    check "the cached path does not fork" test "$status" = 0 -a -z "$out"
    attach
    [ -z "$user" ] || chown -R 65534 "$cache/attachments"
    out=$(HOME="$T/home" $limited $shell "$plugin/bin/runcode" hook pre-tool-use 2>&1)
    status=$?
    check "nor does it for a hook" test "$status" = 0 -a -z "$out"
}

[ $# -gt 0 ] || set -- sh dash 'busybox ash' 'bash --posix'
for shell in "$@"; do
    turn=$shell
    path=$(command -v "${shell%% *}") || { echo "NOT RUN - $shell (it is not here)"; continue; }
    shell="$path${shell#"${shell%% *}"}"
    want= err= out= status=
    cases
    no_fork
done

# ---------------------------------------------------------------- the plugin as it is here
turn=plugin
check "the launcher in the tree is executable" test -x "$root/plugin/bin/runcode"
check "it names a release tag" test -n "$(sed -n '/^v[0-9][0-9.a-z]*$/p' "$root/plugin/bin/RUNCODE_VERSION")"
[ "$failed" = 0 ] || { echo "SOME FAILED"; exit 1; }
echo "ALL PASS"
