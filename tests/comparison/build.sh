#!/usr/bin/env bash
# Builds what the comparison needs beside kubectl: the control plane (by ../kubernetes/build.sh) and an etcd of the version that
# Kubernetes 1.35 is made for; that of Debian lacks watch progress. Into the same cache, once; prints the folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=$("$here/../kubernetes/build.sh" | tail -1)
if [ ! -x "$cache/etcd" ]; then
  exec 9>"$cache/.lock"
  flock 9
  if [ ! -x "$cache/etcd" ]; then
    echo "building etcd" >&2
    (cd "$here/etcd" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$cache/.etcd" go.etcd.io/etcd/server/v3) >&2
    mv "$cache/.etcd" "$cache/etcd"
  fi
fi
echo "$cache"
