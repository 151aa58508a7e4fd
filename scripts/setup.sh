#!/bin/sh
# `make setup`: Python things into the venv named by $1, system packages through
# apt where that is allowed (root or password-less sudo), else named.
set -eu

venv=$1
say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# ---------------------------------------------------------------- system packages
# program or file → Debian package
missing=
need() { # need PACKAGE TEST...
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
need openssh-client command -v ssh-keygen
need openssh-server test -x /usr/sbin/sshd
need bubblewrap command -v bwrap
# The outbound network of a workspace of the local runtime.
need slirp4netns command -v slirp4netns
need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
need git command -v git
# The plugin's launcher fetches with it.
need curl command -v curl
# The console's tests drive it; nothing else downloads a browser.
need chromium command -v chromium
# Tests put it through the hosts of `config-ssh`.
need rsync command -v rsync
need xauth command -v xauth
# Tests in the agent clients ask the kernel which programs those started.
need strace command -v strace
# Login shells that people have on boxes: the tests of `exec` run through each.
need zsh command -v zsh
need fish command -v fish
# Small boxes (Alpine) have these programs instead of coreutils and tar: the tests of files run through them too.
need busybox command -v busybox
# Tests run the store on a server of their own, from this package's programs.
need postgresql sh -c 'ls /usr/lib/postgresql/*/bin/initdb || command -v initdb'
# A key on a token (PKCS#11) as the client CA.
need softhsm2 sh -c 'ls /usr/lib/softhsm/libsofthsm2.so'
need opensc command -v pkcs11-tool
# Networks that tests cut.
need iproute2 command -v ip
# A workspace of the local runtime has the host's /usr: python3 and its venv are for it as well.
need python3-venv /usr/bin/python3 -c 'import ensurepip, venv'

as_root=
if [ -n "$missing" ] && [ "$(uname -s)" = Linux ] && command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then
        as_root=env
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root='sudo -n env'
    fi
fi
if [ -n "$missing" ] && [ -n "$as_root" ]; then
    say "installing with apt:$missing"
    # Only sshd's program is wanted, not an SSH server listening on this machine:
    # a fresh openssh-server is kept from starting now and at boot.
    fresh_sshd=
    case $missing in *openssh-server*) [ -e /etc/ssh/sshd_config ] || fresh_sshd=yes ;; esac
    if [ -n "$fresh_sshd" ] && [ -d /run/systemd/system ]; then
        $as_root systemctl mask --quiet ssh.service ssh.socket
    fi
    # Likewise only Postgres's programs are wanted: no cluster is made, and its service is left alone if it was there.
    case $missing in
    *postgresql*)
        if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
            $as_root mkdir -p /etc/postgresql-common
            echo 'create_main_cluster = false' | $as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
        fi
        ;;
    esac
    log=$(mktemp)
    # RUNLEVEL=1 tells invoke-rc.d not to start services.
    if ! { $as_root apt-get -q update && $as_root DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get -q -y --no-install-recommends install $missing; } >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        fail "apt could not install:$missing"
    fi
    rm -f "$log"
    if [ -n "$fresh_sshd" ] && [ -d /run/systemd/system ]; then
        $as_root systemctl unmask --quiet ssh.service ssh.socket
        $as_root systemctl disable --quiet ssh.service ssh.socket || true
        say "openssh-server's own service is left disabled: only the program is used"
    fi
elif [ -n "$missing" ]; then
    say "these system packages are missing, and installing them needs root:"
    say "    sudo apt-get install --no-install-recommends$missing"
    case $missing in
    *python3-venv*) : ;;
    *) say "going on with the Python part; workspaces and the tests that need them will not run until then" ;;
    esac
fi

# udev gives this device to everybody, and workspaces count on it; on a machine without udev it has the kernel's mode.
if [ -c /dev/net/tun ] && [ "$(id -u)" = 0 ] && [ -z "$(find /dev/net/tun -perm -0666)" ]; then
    say "making /dev/net/tun usable for everybody, as udev does: the network of workspaces needs it"
    chmod 0666 /dev/net/tun || say "that failed: workspaces have no outbound network here"
fi

# ---------------------------------------------------------------- the interpreter
# The system's own Python first: a workspace's user must be able to run it too.
python=
for candidate in ${PYTHON:-} /usr/bin/python3 python3.13 python3.12 python3.11 python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "Python 3.11 or newer with venv is needed: sudo apt-get install python3-venv"

# ---------------------------------------------------------------- the venv
if [ "$(cat "$venv/.setup-done" 2>/dev/null)" != "$(pwd)" ] || ! "$venv/bin/python" -c pass 2>/dev/null; then
    say "making $venv with $($python --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
say "installing Python packages (pinned in constraints.txt)"
"$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-warn-script-location \
    --constraint constraints.txt --editable '.[dev]'
# Byte-compile now: the first `runcode` should be as fast as the thousandth.
"$venv/bin/python" -m compileall -q src/runcode || true
say "done: $venv/bin/runcode and $venv/bin/runcode-server"
