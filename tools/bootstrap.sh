# Sourced by examples and tests: activate a virtual environment that has this project in it.
#
#   . tools/bootstrap.sh [EXTRA]     EXTRA: an extra of pyproject.toml, such as dev
#
# An active virtual environment is used as it is. Without one, .venv is made in the repository's root.
# Installation, which compiles csrc/, is skipped while pyproject.toml, setup.py and csrc/ are what they
# were at the last one.

bootstrap() {
    local root extra stamp wanted
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    extra="${1:+[$1]}"
    if [ -z "${VIRTUAL_ENV:-}" ]; then
        [ -d "$root/.venv" ] || python3 -m venv "$root/.venv"
        # shellcheck disable=SC1091
        . "$root/.venv/bin/activate"
    fi
    stamp="$VIRTUAL_ENV/.megatron_llava${1:+-$1}"
    wanted="$(cat "$root/pyproject.toml" "$root/setup.py" "$root"/csrc/* | sha256sum)$root"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    # A torch that is there stays: on a GPU machine it is the one that fits the driver.
    python -c "import torch" 2>/dev/null || python -m pip install --quiet torch==2.13.0 || return 1
    python -m pip install --quiet --editable "$root$extra" || return 1
    printf '%s' "$wanted" > "$stamp"
}

bootstrap "$@"
