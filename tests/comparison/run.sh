#!/usr/bin/env bash
# Holds the embedded API server against a real one: run.sh [FILTER] [--keep DIR] [--accept]. Builds what it needs the first time
# (a control plane and etcd, from Go modules into a cache); then it is a matter of a minute or two. Exit 0 only if every difference is
# one of accepted.txt.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
"$here/build.sh" >/dev/null
cd "$here/../.."
if [ -z "${KUBECTL:-}" ] && ! command -v kubectl >/dev/null; then
  [ -x target/kubectl ] || tests/kubectl.sh target/kubectl
  export KUBECTL=$PWD/target/kubectl
fi
exec cargo run --quiet -p comparison -- "$@"
