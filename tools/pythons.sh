# Sourced (by sh) before tox: the Pythons that tools/cpython.sh has made go on the PATH, and where
# pyenv manages some all of those, the selected one in front, for pyenv's shims answer for the
# selected one only.
for python in "${HYDROGEN_PYTHONS:-${XDG_CACHE_HOME:-$HOME/.cache}/hydrogen}"/python*/bin; do
    [ -d "$python" ] && PATH=$PATH:$python
done
if command -v pyenv >/dev/null; then
    for version in \
        $(pyenv versions --bare --skip-aliases | grep -E '^3\.1[0-9]\.[0-9]+$') \
        $(pyenv version-name | tr : '\n' | grep -vx system); do
        PATH=$(pyenv prefix "$version")/bin:$PATH
    done
fi
export PATH
