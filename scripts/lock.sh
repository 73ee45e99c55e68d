#!/usr/bin/env bash
# Compiles requirements/<role>.in to <role>.lock with hashes, every role against constraints.txt and dev.lock's versions.
#
# Usage: scripts/lock.sh [--check] ROLE…
set -euo pipefail
cd "$(dirname "$0")/../requirements"
check=; [[ ${1:-} == --check ]] && { check=1; shift; }
uv=$(command -v uv || true); [[ -n $uv ]] || uv=$PWD/../.boot/bin/uv
[[ -x $uv ]] || { echo "lock: no uv; run make setup first" >&2; exit 1; }

compile() { # ROLE OUTPUT CONSTRAINTS…
  local role=$1 output=$2; shift 2
  "$uv" pip compile --quiet --universal --generate-hashes --python-version 3.12 --no-emit-index-url \
    --custom-compile-command "make lock" "${@/#/--constraints=}" "$role.in" -o "$output"
}

# A check compiles on top of the present lock, so that only a lock that no longer fits changes.
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
bad=0
for role in dev $(printf '%s\n' "$@" | grep -vx dev); do
  out=$work/$role.lock
  [[ -n $check && -f $role.lock ]] && cp "$role.lock" "$out"
  if [[ $role == dev ]]; then compile dev "$out" constraints.txt; else compile "$role" "$out" constraints.txt dev.lock; fi
  if [[ -z $check ]]; then cp "$out" "$role.lock"; echo "$role.lock: $(grep -cE '^[A-Za-z0-9]' "$role.lock") packages"
  elif ! cmp -s "$out" "$role.lock"; then echo "lock: $role.lock does not fit $role.in; run make lock" >&2; bad=1; fi
done
[[ $bad == 0 && -n $check ]] && echo "locks fit their .in files and each other"
exit $bad
