#!/usr/bin/env bash
# Compiles requirements/<role>.in to <role>.lock with hashes, every role against constraints.txt and dev.lock's versions.
#
# Usage: scripts/lock.sh [--check] ROLE…
# A line "# own: NAME…" in a .in lists packages in which that role leaves the common versions.
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

compile_apart() { # ROLE OUTPUT OWN… : as compile, with dev.lock freed of what is the role's own
  local role=$1 output=$2; shift 2
  rm -rf "$work/apart" && mkdir "$work/apart" && cp ./*.in constraints.txt "$work/apart"
  awk -v own=" $* " '/^[A-Za-z0-9]/ {split($1, part, "=="); keep = !index(own, " " part[1] " ")} keep' dev.lock >"$work/apart/dev.lock"
  (cd "$work/apart" && compile "$role" "$output" constraints.txt dev.lock)
}

# A check compiles on top of the present lock, so that only a lock that no longer fits changes.
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
bad=0
for role in dev $(printf '%s\n' "$@" | grep -vx dev); do
  out=$work/$role.lock
  [[ -n $check && -f $role.lock ]] && cp "$role.lock" "$out"
  own=$(sed -n 's/^# own: //p' "$role.in")
  if [[ $role == dev ]]; then compile dev "$out" constraints.txt
  elif [[ -n $own ]]; then compile_apart "$role" "$out" $own
  else compile "$role" "$out" constraints.txt dev.lock; fi
  if [[ -z $check ]]; then cp "$out" "$role.lock"; echo "$role.lock: $(grep -cE '^[A-Za-z0-9]' "$role.lock") packages"
  elif ! cmp -s "$out" "$role.lock"; then echo "lock: $role.lock does not fit $role.in; run make lock" >&2; bad=1; fi
done
[[ $bad == 0 && -n $check ]] && echo "locks fit their .in files and each other"
exit $bad
