#!/usr/bin/env bash
# The end-to-end suite on a real Kubernetes, from nothing to nothing: run.sh [ARGUMENTS OF THE SUITE]
#
# Starts a cluster (up.sh), writes the platform's images (ebb image export), loads and installs them (ebb install), runs tests/e2e there,
# and ends the cluster, whatever happened. Its exit code is the suite's.
#
# EBB and E2E name binaries that were built already (default: they are built here); DIR the folder of the cluster (default: a temporary one);
# REPLICAS the pods of each component (default: 2); OUTAGE for how many seconds the API server is away (default: 15); KEEP=1 leaves the cluster
# up for a look at it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"

made=
dir=${DIR:-}
if [ -z "$dir" ]; then
  dir=$(mktemp -d /tmp/ebb-cluster-XXXXXX)
  made=1
fi
finish() {
  code=$?
  trap - EXIT INT TERM
  if [ "${KEEP:-}" = 1 ]; then
    echo "the cluster stays: export KUBECONFIG=$dir/kubeconfig; $here/down.sh $dir ends it" >&2
  else
    [ $code = 0 ] || gather
    "$here/down.sh" "$dir" || code=1
    # Of a good run nothing is left; of another, the logs.
    if [ $code = 0 ] && [ -n "$made" ]; then rm -rf "$dir"; else echo "logs are in $dir/logs" >&2; fi
  fi
  exit $code
}
gather() {
  {
    "$kubectl" get pods -A -o wide
    "$kubectl" get events -A --sort-by=.lastTimestamp | tail -n 100
    for component in controller autoscaler activator gateway; do
      "$kubectl" logs -n ebb-system -l "app.kubernetes.io/component=$component" --prefix --tail=500
    done
  } >"$dir/logs/platform.log" 2>&1 || true
}
trap finish EXIT
trap 'exit 130' INT TERM

kubectl=${KUBECTL:-$(command -v kubectl || true)}
if [ -z "$kubectl" ]; then
  kubectl=$root/target/kubectl
  [ -x "$kubectl" ] || tests/kubectl.sh "$kubectl"
fi
export KUBECTL=$kubectl

ebb=${EBB:-}
if [ -z "$ebb" ]; then
  # With the features of the whole workspace, so that nothing is built twice when all of its tests run.
  cargo test --workspace --locked --test e2e --no-run
  ebb=${CARGO_TARGET_DIR:-target}/debug/ebb
fi
ebb=$(realpath "$ebb")

"$here/up.sh" "$dir"
export KUBECONFIG=$dir/kubeconfig
"$ebb" image export "$dir/platform.tar"
"$dir/load-image" "$dir/platform.tar"
"$ebb" install --domain localhost --replicas "${REPLICAS:-2}"

export EBB_E2E_KUBECONFIG=$KUBECONFIG EBB_E2E_EBB=$ebb
export EBB_E2E_LOAD_IMAGE=$dir/load-image EBB_E2E_KILL_CONTAINER=$dir/kill-container
export EBB_E2E_RESTART_API_SERVER="$here/restart.sh $dir kube-apiserver ${OUTAGE:-15}"
if [ -n "${E2E:-}" ]; then
  "$E2E" "$@"
else
  cargo test --workspace --locked --test e2e -- "$@"
fi
