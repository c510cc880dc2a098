# What up.sh, down.sh and restart.sh share: where things are, and processes noted by id. Sourced with $dir set.

name=$(basename "$dir")-$(cksum <<<"$dir" | cut -d' ' -f1)
# Network interfaces and namespaces allow 15 characters; the sum of the folder's path keeps instances apart.
short=ek$(cksum <<<"$dir" | cut -d' ' -f1)
netns=/run/netns/$short

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# Every cgroup hierarchy of this machine: many on v1, one on v2.
hierarchies() {
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    echo /sys/fs/cgroup
  else
    local h
    for h in /sys/fs/cgroup/*/; do
      [ -f "$h/cgroup.procs" ] && [ ! -L "${h%/}" ] && [ ! -f "$h/cgroup.controllers" ] && echo "${h%/}"
    done
  fi
  return 0
}

# The one whose membership says which processes are ours: what we start is in it, and so are their children, pods included.
tracking() {
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then echo "/sys/fs/cgroup/$name"; else echo "/sys/fs/cgroup/pids/$name"; fi
}

# Notes the command as DIR/commands/NAME, so that restart.sh can run it again, and runs it.
start() { # name, command...
  local process=$1
  shift
  {
    echo '#!/usr/bin/env bash'
    [ -d "$(tracking)/host" ] && printf 'echo $$ >%q || exit 1\n' "$(tracking)/host/cgroup.procs"
    printf 'cd %q || exit 1\n%s setsid' "$dir" "${opening:-exec}"
    [ -e "$netns" ] && printf ' nsenter --net=%q' "$netns"
    printf ' %q' "$@"
    echo "${closing:-}"
  } >"commands/$process"
  chmod +x "commands/$process"
  launch "$process"
}

# Like start, and whenever the process ends it is started again, as a kubelet does it with a control plane's. The id that is noted is the loop's: of
# the process the cgroup knows.
start_always() { # name, command...
  local opening='while sleep 0.2; do' closing='; done'
  start "$@"
}

launch() { # name
  "$dir/commands/$1" </dev/null >>"$dir/logs/$1.log" 2>&1 9>&- &
  echo $! >"$dir/$1.pid"
}

# Whether a process does anything yet: one that has ended may stay a while as a zombie until somebody collects it. Its first thread may be one
# while others end, and until they have, its ports are taken.
runs() { # pid
  local stat state
  for stat in /proc/"$1"/task/*/stat; do
    state=$(sed 's/.*) //' "$stat" 2>/dev/null) && [[ $state != [ZX]* ]] && return
  done
  return 1
}

alive() { # name
  [ -f "$dir/$1.pid" ] && runs "$(cat "$dir/$1.pid")"
}

# Waits for a command to succeed, as long as the process lives that it asks.
await() { # seconds, name, command...
  local end=$((SECONDS + $1)) process=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ! alive "$process" || [ $SECONDS -ge $end ]; then
      tail -n 15 "$dir/logs/$process.log" >&2
      fail "$process did not come up; the end of its log is above, all of it in $dir/logs/$process.log"
    fi
    sleep 0.1
  done
}

# Ends a process by the id that was noted for it, and waits for it to be gone.
end() { # name, signal
  [ -f "$dir/$1.pid" ] || return 0
  local pid i
  pid=$(cat "$dir/$1.pid")
  kill "-${2:-TERM}" "$pid" 2>/dev/null || true
  for i in $(seq 100); do
    runs "$pid" || break
    [ "$i" = 100 ] && kill -KILL "$pid" 2>/dev/null
    sleep 0.1
  done
  rm -f "$dir/$1.pid"
}
