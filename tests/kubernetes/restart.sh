#!/usr/bin/env bash
# Ends a process of the cluster in DIR as a crash would and starts it again: restart.sh DIR NAME [SECONDS AWAY]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { echo "usage: restart.sh DIR NAME [SECONDS]" >&2; exit 64; }
dir=$(cd "$1" && pwd)
cd "$dir"
. "$here/lib.sh"
[ -x "commands/$2" ] || fail "$dir has no process $2, only: $(ls commands | tr '\n' ' ')"
end "$2" KILL
sleep "${3:-0}"
launch "$2"
