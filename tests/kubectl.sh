#!/usr/bin/env bash
# Builds kubectl from its public Go modules: kubectl.sh OUT. For a machine that has Go but no kubectl.
set -euo pipefail
[ $# = 1 ] || { echo "usage: kubectl.sh OUT" >&2; exit 64; }
out=$(realpath -m "$1")
command -v go >/dev/null || { echo "kubectl.sh needs Go; or install kubectl: https://kubernetes.io/docs/tasks/tools/" >&2; exit 1; }
version=1.35.4
cd "$(dirname "$0")/kubectl"
CGO_ENABLED=0 go build -trimpath -o "$out" \
  -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=35" .
"$out" version --client
