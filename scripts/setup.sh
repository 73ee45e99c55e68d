#!/usr/bin/env bash
# Makes .venv from the locked requirements: finds or installs uv, finds CPython 3.12, syncs, installs our packages.
#
# Usage: scripts/setup.sh            (make setup calls it; a second call takes a moment)
# Settings: SIM2OR_PYTHON=/path/to/python3.12 overrides the search.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=requirements/dev.lock
stamp=.venv/.sim2or-setup

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# What the environment depends on; when none of it changed there is nothing to do.
state=$(cat "$lock" pyproject.toml shared/pyproject.toml shared/*/pyproject.toml services/*/pyproject.toml scripts/setup.sh | sha256sum)
if [[ -x .venv/bin/python && -f $stamp && $(cat "$stamp") == "$state $PWD" ]]; then exit 0; fi

is_312() { "$1" -c 'import sys; raise SystemExit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${SIM2OR_PYTHON:-} $(type -ap python3.12 python3 2>/dev/null) \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12; do
    if is_312 "$candidate"; then echo "$candidate"; return 0; fi
  done
  return 1
}

find_uv() {
  if command -v uv >/dev/null; then command -v uv; return 0; fi
  if [[ ! -x .boot/bin/uv ]]; then
    local base
    base=$(find_python || command -v python3) || fail "no python3 to install uv with: install python3, or uv itself"
    say "installing uv into .boot"
    "$base" -m venv .boot || fail "python3 cannot make environments: apt-get install python3-venv"
    .boot/bin/pip install --quiet --disable-pip-version-check uv >&2 || fail "pip could not install uv: check the network"
  fi
  echo "$PWD/.boot/bin/uv"
}

uv=$(find_uv)
if ! python=$(find_python); then
  say "no CPython 3.12 on PATH or in pyenv; asking uv for one"
  "$uv" python install --quiet 3.12 || fail "CPython 3.12 is missing: install it (pyenv install 3.12) or set SIM2OR_PYTHON"
  python=$("$uv" python find 3.12)
fi

free_gb=$(df -Pk . | awk 'NR==2 {print int($4 / 1048576)}')
if [[ ! -d .venv && $free_gb -lt 8 ]]; then fail "only ${free_gb} GB free here; the environment needs 8 GB"; fi

say "python $("$python" -c 'import platform; print(platform.python_version())'), $("$uv" --version | cut -d' ' -f1,2)"
[[ -x .venv/bin/python ]] && is_312 .venv/bin/python || "$uv" venv --quiet --clear --python "$python" .venv
export VIRTUAL_ENV=$PWD/.venv
say "installing the locked packages (about 6 GB the first time)"
"$uv" pip sync --quiet --compile-bytecode --require-hashes "$lock" || fail "the locked packages could not be installed; see the lines above"
ours=()
for package in shared shared/lerobot_policy_sim2or services/*/; do ours+=(-e "${package%/}"); done
"$uv" pip install --quiet --no-deps --no-build-isolation "${ours[@]}"

# The cameras need a software OpenGL; say so now rather than in the middle of a run.
.venv/bin/sim2or doctor graphics redis >&2 || fail "something is missing; the line above says what and the remedy"
printf '%s' "$state $PWD" >"$stamp"
say "ready"
