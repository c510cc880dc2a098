#!/usr/bin/env bash
# Builds the binaries of a Kubernetes cluster from their public Go modules into a cache outside the checkout, once:
# build.sh [--control-plane-only]. Prints the folder. Seven minutes on two cores the first time, nothing afterwards.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=1.35.4
dns_version=1.12.1
cache=${EBB_KUBERNETES_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ebb/kubernetes-$version}
control_plane=(kube-apiserver kube-controller-manager)
node=(kube-scheduler kubelet kube-proxy)

wanted=("${control_plane[@]}")
[ "${1:-}" = --control-plane-only ] || wanted+=("${node[@]}" coredns pause)
complete=1
for name in "${wanted[@]}"; do
  [ -x "$cache/$name" ] || complete=
done
if [ -n "$complete" ]; then
  echo "$cache"
  exit
fi

mkdir -p "$cache"
# Two builds at once would only take turns on the same work.
exec 9>"$cache/.lock"
flock 9

# Each binary appears under its name only when it is whole.
build() { # name, go arguments...
  local name=$1
  shift
  [ -x "$cache/$name" ] && return
  command -v go >/dev/null || { echo "build.sh needs Go 1.26 or newer to build $name: https://go.dev/doc/install" >&2; exit 1; }
  echo "building $name" >&2
  (cd "$here" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$cache/.$name" "$@") >&2
  mv "$cache/.$name" "$cache/$name"
}

package=k8s.io/component-base/version
ldflags="-s -w -X $package.gitVersion=v$version -X $package.gitMajor=${version%%.*} -X $package.gitMinor=$(cut -d. -f2 <<<"$version")"
for name in "${wanted[@]}"; do
  case $name in
    coredns)
      [ -x "$cache/coredns" ] && continue
      echo "building coredns" >&2
      CGO_ENABLED=0 GOBIN="$cache" go install -trimpath -buildvcs=false -ldflags "-s -w" "github.com/coredns/coredns@v$dns_version" >&2
      ;;
    pause) build pause -ldflags "-s -w" ./pause ;;
    *) build "$name" -ldflags "$ldflags" "k8s.io/kubernetes/cmd/$name" ;;
  esac
done
echo "$cache"
