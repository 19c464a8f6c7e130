#!/bin/sh
# tools/cpython.sh VERSION: prints the path of an interpreter of that version: 3.10 to 3.15, or 3.13t
# (without a GIL). One that is on the PATH, or in the cache, is taken; else it is made, in some
# minutes, from what Debian signs: 3.14 and 3.15 from the binary packages of forky, unpacked with the
# libc they were built for; 3.13t from the source package of trixie. The cache is $HYDROGEN_PYTHONS,
# or below ~/.cache.
set -eu
wanted=${1:?a version: 3.14, say, or 3.13t}
name=python$wanted
if [ "$wanted" != "${wanted%t}" ]; then
    check='import ctypes, ssl, sys, zlib; assert not sys._is_gil_enabled()'
else
    check='import ctypes, ssl, zlib'
fi
. "$(dirname "$0")/pythons.sh"
if found=$(command -v "$name") && "$found" -c "$check" 2>/dev/null; then
    echo "$found"
    exit
fi
cache=${HYDROGEN_PYTHONS:-${XDG_CACHE_HOME:-$HOME/.cache}/hydrogen}/$name
python=$cache/bin/$name
if [ -x "$python" ]; then
    echo "$python"
    exit
fi

# It is made beside the cache, and becomes that by a rename: what was interrupted is never taken for
# an interpreter.
mkdir -p "$(dirname "$cache")"
work=$(mktemp -d "$cache.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# The machine's own mirror.
mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1
}

# apt-get with lists and a cache of its own: what the machine itself installs from stays as it is.
# SOURCES: the lines of sources.list.
apart() {
    timeout 900 apt-get -qq \
        -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" \
        -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"
}

need() {
    dpkg-query --show "$@" >/dev/null 2>&1 && [ -n "$(mirror)" ] && return
    [ "$(id -u)" = 0 ] || { echo "needed: apt-get update; apt-get install $*"; exit 1; }
    timeout 600 apt-get update -qq
    DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq --no-install-recommends "$@"
}

use() {
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "$1 [signed-by=$keyring] $(mirror) $2 main" >"$work/sources.list"
    apart update
}

# Debian's packages and what they depend on, in a folder. The interpreter is made to start by that
# folder's own loader and to look for libraries there first: nothing of the machine's libc is used by
# it, and nothing is replaced.
from_binaries() {
    need patchelf
    use deb forky
    : >"$work/status"  # as if nothing were installed
    apart -o Dir::State::status="$work/status" install -y --download-only \
        --no-install-recommends "$name" "$name-venv" "$name-dev"
    for package in "$work"/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$work/made"
    done
    # bin goes on the PATH: nothing there but Python.
    find "$work/made/usr/bin" -type f ! -name "*$wanted*" -delete
    loader=$(cd "$work/made/usr" && ls lib/*/ld-linux-*)
    patchelf --set-interpreter "$cache/$loader" --force-rpath --set-rpath "$cache/${loader%/*}" \
        "$work/made/usr/bin/$name"
    # Where Debian has told it to look in folders of the system's: for pip's wheel, and for its own
    # header.
    sed -i "s#/usr/share/python-wheels#$cache/share/python-wheels#" \
        "$work/made/usr/lib/$name"/_sysconfigdata_*.py
    cp "$work"/made/usr/include/*-linux-gnu/"$name"/pyconfig.h "$work/made/usr/include/$name/"
    rm -rf "$cache"
    mv "$work/made/usr" "$cache"
}

from_source() {
    need gcc make xz-utils libssl-dev zlib1g-dev libffi-dev liblzma-dev libbz2-dev
    use deb-src trixie
    mkdir "$work/source"
    cd "$work/source"
    apart source --download-only "python${wanted%t}"
    # Without Debian's patches: they fit the interpreter into Debian's own folders.
    tar --extract --strip-components=1 --file "python${wanted%t}"_*.orig.tar.xz
    timeout 600 ./configure --quiet --prefix="$cache" --disable-gil --disable-test-modules CFLAGS=-w
    timeout 1800 make --silent -j2
    timeout 600 make --silent install DESTDIR="$work/installed"
    mv "$work/installed$cache" "$cache"
}

# stdout is for the path.
{
    case $wanted in
    3.14 | 3.15) from_binaries ;;
    3.13t) from_source ;;
    *) echo "no way to make Python $wanted is known here: install it"; exit 1 ;;
    esac
    "$python" -c "$check" || { rm -rf "$cache"; exit 1; }
} >&2
echo "$python"
