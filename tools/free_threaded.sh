#!/bin/sh
# Prints the path of a free-threaded CPython 3.13. One that is not in the cache yet is built, in some minutes, from Debian's own source
# package, whose signature apt checks: Debian builds no such interpreter. The cache is $HYDROGEN_FREE_THREADED, or below ~/.cache.
set -eu
cache=${HYDROGEN_FREE_THREADED:-${XDG_CACHE_HOME:-$HOME/.cache}/hydrogen/python3.13t}
python=$cache/bin/python3.13t
if [ -x "$python" ]; then
    echo "$python"
    exit
fi

# It is made beside the cache, and becomes that by a rename: what was interrupted is never taken for an interpreter.
mkdir -p "$(dirname "$cache")"
work=$(mktemp -d "$cache.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# The machine's own mirror.
mirror() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1; }

# apt-get for trixie, with lists and a cache of its own: what the machine itself installs from stays as it is.
trixie() {
    timeout 600 apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$work/lists" \
        -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"
}

# stdout is for the path.
{
    needed="gcc make xz-utils libssl-dev zlib1g-dev libffi-dev liblzma-dev libbz2-dev"
    if ! dpkg-query --show $needed >/dev/null 2>&1 || [ -z "$(mirror)" ]; then
        [ "$(id -u)" = 0 ] || { echo "needed: apt-get update; apt-get install $needed"; exit 1; }
        timeout 600 apt-get update -qq
        DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq --no-install-recommends $needed
    fi

    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) trixie main" >"$work/sources.list"
    cd "$work/source"
    trixie update
    trixie source --download-only python3.13
    # Without Debian's patches: they fit the interpreter into Debian's own folders.
    tar --extract --strip-components=1 --file python3.13_*.orig.tar.xz
    timeout 600 ./configure --quiet --prefix="$cache" --disable-gil --disable-test-modules CFLAGS=-w
    timeout 1800 make --silent -j2
    timeout 600 make --silent install DESTDIR="$work/installed"
    "$work/installed$python" -c 'import ctypes, ssl, sys, zlib; assert not sys._is_gil_enabled()'
    mv "$work/installed$cache" "$cache"
} >&2
echo "$python"
