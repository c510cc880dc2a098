#!/usr/bin/env bash
# Ends what up.sh DIR started, pods included, by the ids and the cgroup that it noted, and takes away everything but DIR/logs.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 1 ] || { echo "usage: down.sh DIR" >&2; exit 64; }
dir=$(cd "$1" && pwd) || exit 1
cd "$dir" || exit 1
. "$here/lib.sh"
[ -d commands ] || fail "no cluster of up.sh is in $dir"

# The kubelet first, or it would start again what ends. Nothing of the state is kept, so nobody needs time for a farewell.
for process in kubelet kube-proxy coredns kube-scheduler kube-controller-manager kube-apiserver etcd containerd; do
  end $process KILL
done
members() { find "$(tracking)" -name cgroup.procs -exec cat {} + 2>/dev/null; }
for _ in $(seq 100); do
  pids=$(members)
  [ -n "$pids" ] || break
  for pid in $pids; do kill -KILL "$pid" 2>/dev/null; done
  sleep 0.1
done
[ -z "$pids" ] || echo "down.sh: processes that do not end: $pids" >&2
awk -v d="$dir/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r | while read -r mount; do
  umount "$mount" 2>/dev/null || umount -l "$mount"
done
[ ! -e "$netns" ] || ip netns delete "$short"
# Also where the container runtime made it of its own accord.
for h in /sys/fs/cgroup /sys/fs/cgroup/*; do
  [ ! -d "$h/$name" ] || find "$h/$name" -depth -type d -exec rmdir {} + 2>/dev/null
done
left=$(awk -v d="$dir/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo)
[ -z "$left" ] || fail "mounts that do not go away: $left"
find . -mindepth 1 -maxdepth 1 ! -name logs -exec rm -rf {} +
