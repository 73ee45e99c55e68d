#!/usr/bin/env bash
# Makes .venv-isaac: Isaac Lab without Kit, apart from .venv because it pins packages that the others have newer.
#
# Usage: scripts/setup-isaac.sh      (make setup-isaac calls it after make setup; a second call takes a moment)
set -euo pipefail
cd "$(dirname "$0")/.."
lock=requirements/isaac.lock
venv=.venv-isaac
stamp=$venv/.sim2or-setup

say() { printf 'setup-isaac: %s\n' "$*" >&2; }

state=$(cat "$lock" shared/pyproject.toml services/sim/pyproject.toml scripts/setup-isaac.sh | sha256sum)
if [[ -x $venv/bin/python && -f $stamp && $(cat "$stamp") == "$state $PWD" ]]; then exit 0; fi

uv=$(command -v uv || true); [[ -n $uv ]] || uv=$PWD/.boot/bin/uv
[[ -x $uv && -x .venv/bin/python ]] || { say "no uv or no .venv; run make setup first"; exit 1; }
free_gb=$(df -Pk . | awk 'NR==2 {print int($4 / 1048576)}')
if [[ ! -d $venv && $free_gb -lt 10 ]]; then say "only ${free_gb} GB free here; the environment needs 10 GB"; exit 1; fi

[[ -x $venv/bin/python ]] || "$uv" venv --quiet --python .venv/bin/python "$venv"
export VIRTUAL_ENV=$PWD/$venv
say "installing the locked packages (about 7 GB the first time)"
"$uv" pip sync --quiet --compile-bytecode --require-hashes "$lock" \
  || { say "the locked packages could not be installed; see the lines above"; exit 1; }
"$uv" pip install --quiet --no-deps --no-build-isolation -e shared -e services/sim
printf '%s' "$state $PWD" >"$stamp"
say "ready"
