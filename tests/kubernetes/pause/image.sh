#!/usr/bin/env bash
# One static binary as an image archive: image.sh BINARY NAME OUT
set -euo pipefail
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
mkdir "$work/rootfs"
cp "$1" "$work/rootfs/pause"
tar -C "$work/rootfs" --owner=0 --group=0 -cf "$work/layer.tar" pause
layer=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
case $(uname -m) in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; *) arch=$(uname -m) ;; esac
printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":["/pause"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$arch" "$layer" >"$work/config.json"
printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$2" >"$work/manifest.json"
tar -C "$work" -cf "$3" manifest.json config.json layer.tar
