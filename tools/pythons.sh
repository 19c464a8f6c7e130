# Sourced (by sh) before tox: where pyenv manages the Pythons, all of them go on the PATH, the selected one in front, for pyenv's
# shims answer for the selected one only.
if command -v pyenv >/dev/null; then
    for version in $(pyenv versions --bare --skip-aliases | grep -E '^3\.1[0-9]\.[0-9]+$') $(pyenv version-name | tr : '\n' | grep -vx system); do
        PATH=$(pyenv prefix "$version")/bin:$PATH
    done
    export PATH
fi
