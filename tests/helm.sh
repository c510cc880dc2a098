#!/usr/bin/env bash
# Builds helm from its public Go modules into a cache outside the checkout, once, and prints its folder: for the test that renders the chart.
set -euo pipefail
version=3.22.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ebb/helm-$version
if [ ! -x "$cache/helm" ]; then
  command -v go >/dev/null || { echo "helm.sh needs Go; or install helm 3: https://helm.sh/docs/intro/install" >&2; exit 1; }
  CGO_ENABLED=0 GOBIN="$cache" go install -trimpath -ldflags "-s -w" "helm.sh/helm/v3/cmd/helm@v$version" >&2
fi
echo "$cache"
