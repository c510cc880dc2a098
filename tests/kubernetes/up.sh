#!/usr/bin/env bash
# Starts a real single-node Kubernetes on this machine: up.sh [--control-plane-only] DIR
#
# All state is under DIR; DIR/kubeconfig is the administrator's, DIR/load-image FILE imports an image archive, DIR/kill-container ID
# ends a container as a crash would, restart.sh DIR NAME a process; down.sh DIR ends all of it.
# The node lives in a network namespace of its own, reached from here through one link and three routes, so instances neither collide
# with each other nor touch this machine's packet rules. The binaries are built once (build.sh). Needs root, Go, and Debian packages that are
# installed when they are missing.
#
# --control-plane-only: etcd, API server and controller manager on free ports of the loopback; no root, no node.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
node=1
if [ "${1:-}" = --control-plane-only ]; then
  node=
  shift
fi
[ $# = 1 ] || { echo "usage: up.sh [--control-plane-only] DIR" >&2; exit 64; }
dir=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$dir"
. "$here/lib.sh"

[ -z "$node" ] || [ "$(id -u)" = 0 ] || fail "a node needs root; --control-plane-only does not"
[ ${#dir} -le 70 ] || fail "$dir is too long for sockets below it: choose a folder of at most 70 characters"
for pid in *.pid; do
  [ -f "$pid" ] && alive "${pid%.pid}" && fail "a cluster runs in $dir already: end it with down.sh $dir"
done

missing=()
need() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || missing+=("$2"); }
need etcd etcd-server
need openssl openssl
need curl curl
if [ -n "$node" ]; then
  need containerd containerd; need runc runc; need ip iproute2; need nft nftables; need conntrack conntrack; need iptables iptables
  need ethtool ethtool; need socat socat; need nsenter util-linux
  [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
fi
mkdir -p pki logs commands
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "packages are missing, named as Debian does: ${missing[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >logs/apt.log 2>&1 ||
    fail "apt-get install ${missing[*]} failed: see $dir/logs/apt.log"
fi
bin=$("$here/build.sh" ${node:---control-plane-only})

# --- where everybody listens
if [ -n "$node" ]; then
  # One /16 for all of a cluster: pods, Services, and the link to the node.
  for n in $(seq 201 250); do
    [ -n "$(ip route show root "10.$n.0.0/16")" ] || break
  done
  address=10.$n.255.2 host=10.$n.255.1 pods=10.$n.0.0/17 services=10.$n.128.0/18 dns=10.$n.128.10 first=10.$n.128.1
  listen=0.0.0.0 port=6443 etcd_port=2379 peer_port=2380 kcm_port=10257
else
  services=10.96.0.0/16 first=10.96.0.1 address=127.0.0.1 listen=127.0.0.1
  used=" "
  free_port() {
    local p
    while p=$((20000 + RANDOM % 12000)); (: <"/dev/tcp/127.0.0.1/$p") 2>/dev/null || [[ $used == *" $p "* ]]; do :; done
    used+="$p "
    eval "$1=$p"
  }
  free_port port; free_port etcd_port; free_port peer_port; free_port kcm_port
fi
server=https://$address:$port

# --- certificates
openssl req -x509 -newkey rsa:2048 -nodes -keyout pki/ca.key -out pki/ca.crt -days 365 -subj /CN=ca 2>/dev/null
openssl genrsa -out pki/sa.key 2048 2>/dev/null
openssl rsa -in pki/sa.key -pubout -out pki/sa.pub 2>/dev/null
cert() { # name, subject, subjectAltName
  openssl req -newkey rsa:2048 -nodes -keyout "pki/$1.key" -out "pki/$1.csr" -subj "$2" 2>/dev/null
  openssl x509 -req -in "pki/$1.csr" -CA pki/ca.crt -CAkey pki/ca.key -CAcreateserial -days 365 -out "pki/$1.crt" \
    -extfile <(printf 'subjectAltName=%s' "$3") 2>/dev/null
}
cert apiserver /CN=kube-apiserver "IP:127.0.0.1,IP:$address,IP:$first,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
cert admin /O=system:masters/CN=admin DNS:admin
kubeconfig() { # file, certificate
  (
    umask 077
    cat >"$1" <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: local, cluster: {server: "$server", certificate-authority-data: $(base64 -w0 pki/ca.crt)}}]
users: [{name: $2, user: {client-certificate-data: $(base64 -w0 "pki/$2.crt"), client-key-data: $(base64 -w0 "pki/$2.key")}}]
contexts: [{name: local, context: {cluster: local, user: $2}}]
current-context: local
CONFIG
  )
}
kubeconfig kubeconfig admin

# From here on something runs; what fails must not stay behind.
trap '[ $? = 0 ] || "$here/down.sh" "$dir" >/dev/null 2>&1 || true' EXIT

# --- the node's room: cgroups and a network of its own
if [ -n "$node" ]; then
  for h in $(hierarchies); do
    mkdir -p "$h/$name"
    # Empty on v1 until somebody says so, and no process may enter before.
    for f in cpuset.cpus cpuset.mems; do
      [ ! -f "$h/$name/$f" ] || [ ! -s "$h/$f" ] || cat "$h/$f" >"$h/$name/$f"
    done
    [ ! -f "$h/cgroup.controllers" ] || sed 's/[a-z]*/+&/g' "$h/cgroup.controllers" >"$h/$name/cgroup.subtree_control"
  done
  mkdir -p "$(tracking)/host"
  ip netns add "$short"
  ip link add "$short" type veth peer name uplink netns "$short"
  ip addr add "$host/30" dev "$short"
  ip link set "$short" up
  ip -n "$short" link set lo up
  ip -n "$short" addr add "$address/30" dev uplink
  ip -n "$short" link set uplink up
  ip -n "$short" route add default via "$host"
  ip route add "$pods" via "$address"
  ip route add "$services" via "$address"
  nsenter --net="$netns" sysctl -qw net.ipv4.ip_forward=1
fi

# --- control plane
start etcd etcd --data-dir "$dir/etcd" --unsafe-no-fsync --listen-client-urls "http://127.0.0.1:$etcd_port" \
  --advertise-client-urls "http://127.0.0.1:$etcd_port" --listen-peer-urls "http://127.0.0.1:$peer_port" \
  --initial-advertise-peer-urls "http://127.0.0.1:$peer_port" --initial-cluster "default=http://127.0.0.1:$peer_port"
api=(--etcd-servers="http://127.0.0.1:$etcd_port" --service-cluster-ip-range="$services" --secure-port="$port" --bind-address="$listen"
  --cert-dir="$dir/pki" --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key --client-ca-file=pki/ca.crt
  --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=pki/sa.pub
  --service-account-signing-key-file=pki/sa.key --authorization-mode=Node,RBAC --allow-privileged=true)
if [ -n "$node" ]; then
  cert kubelet /O=system:nodes/CN=system:node:node1 "DNS:node1,IP:127.0.0.1,IP:$address"
  cert kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client DNS:kube-apiserver
  kubeconfig kubelet.conf kubelet
  api+=(--advertise-address="$address" --kubelet-client-certificate=pki/kubelet-client.crt --kubelet-client-key=pki/kubelet-client.key
    --kubelet-preferred-address-types=InternalIP)
else
  # No pod will ever follow it; the API server only refuses to advertise the loopback.
  api+=(--advertise-address=192.0.2.1)
fi
start kube-apiserver "$bin/kube-apiserver" "${api[@]}"
request() { curl -sSf --max-time 10 --cacert pki/ca.crt --cert pki/admin.crt --key pki/admin.key "$@"; }
await 120 kube-apiserver request "$server/readyz"
# Whoever loses its Lease ends, as everywhere: what is started after an outage of the API server has nothing old in mind, and gives nodes time to
# tell of themselves before it takes them for lost.
run=start_always elects=true
[ -n "$node" ] || run=start elects=false
"$run" kube-controller-manager "$bin/kube-controller-manager" --kubeconfig="$dir/kubeconfig" --leader-elect="$elects" \
  --service-account-private-key-file=pki/sa.key --root-ca-file=pki/ca.crt --use-service-account-credentials \
  --cluster-signing-cert-file=pki/ca.crt --cluster-signing-key-file=pki/ca.key --cert-dir="$dir/pki" --secure-port="$kcm_port" --bind-address=127.0.0.1
await 60 kube-controller-manager request "$server/api/v1/namespaces/default/serviceaccounts/default"
if [ -z "$node" ]; then
  echo "ready: KUBECONFIG=$dir/kubeconfig"
  exit 0
fi
start_always kube-scheduler "$bin/kube-scheduler" --kubeconfig="$dir/kubeconfig"

# --- the node
cat >containerd.toml <<TOML
version = 2
root = "$dir/containerd"
state = "$dir/containerd-state"
[grpc]
address = "$dir/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "$dir/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
# Where CAP_SYS_RESOURCE is missing, a score lower than one's own cannot be had, and every sandbox would die of asking for it.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$dir/cni"
TOML
mkdir -p cni ipam
cat >cni/10-bridge.conflist <<CNI
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$dir/ipam", "ranges": [[{"subnet": "$pods"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CNI
start containerd containerd -c containerd.toml
await 60 containerd ctr -a "$dir/containerd.sock" version
printf '#!/bin/sh\n# Makes the images of an archive usable on this cluster.\nexec ctr -a "%s" -n k8s.io images import "$1"\n' "$dir/containerd.sock" >load-image
printf '#!/bin/sh\n# Ends a container of this cluster by SIGKILL, by its id.\nexec ctr -a "%s" -n k8s.io tasks kill -s SIGKILL "$1"\n' "$dir/containerd.sock" >kill-container
chmod +x load-image kill-container
"$here/pause/image.sh" "$bin/pause" localhost/pause:1 pause.tar
./load-image pause.tar >/dev/null

cat >kubelet.yaml <<KUBELET
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $dir/pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$name
failCgroupV1: false
failSwapOn: false
clusterDNS: [$dns]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$dir/containerd.sock
# Shares, not amounts: a developer's disk is seldom as empty as a server's.
evictionHard: {imagefs.available: "1%", nodefs.available: "1%"}
imageGCHighThresholdPercent: 100
tlsCertFile: $dir/pki/kubelet.crt
tlsPrivateKeyFile: $dir/pki/kubelet.key
podLogsDir: $dir/pod-logs
volumePluginDir: $dir/volume-plugins
maxPods: 500
KUBELET
start kubelet "$bin/kubelet" --config="$dir/kubelet.yaml" --kubeconfig="$dir/kubelet.conf" --hostname-override=node1 --node-ip="$address" \
  --root-dir="$dir/kubelet"
# Limits of connection tracking belong to the whole machine: not ours to set.
start kube-proxy "$bin/kube-proxy" --master="$server" --kubeconfig="$dir/kubeconfig" --proxy-mode=nftables --hostname-override=node1 \
  --cluster-cidr="$pods" --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0

# --- cluster DNS: one process on the node behind the usual Service
cat >Corefile <<CORE
.:5300 {
  errors
  kubernetes cluster.local {
    kubeconfig $dir/kubeconfig
  }
  cache 5
}
CORE
start coredns "$bin/coredns" -conf Corefile
create() { request -o /dev/null -X POST -H 'content-type: application/yaml' --data-binary @- "$server$1"; }
create /api/v1/namespaces/kube-system/services <<YAML
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: $dns
  ports: [{name: dns, port: 53, targetPort: 5300, protocol: UDP}, {name: dns-tcp, port: 53, targetPort: 5300, protocol: TCP}]
YAML
create /apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices <<YAML
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns-node, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: ["$address"]}]
ports: [{name: dns, port: 5300, protocol: UDP}, {name: dns-tcp, port: 5300, protocol: TCP}]
YAML
node_ready() { request "$server/api/v1/nodes/node1" | tr -d ' \n' | grep -q '"type":"Ready","status":"True"'; }
await 120 kubelet node_ready
echo "$address" >node-address
echo "ready: KUBECONFIG=$dir/kubeconfig, the node's address is $address"
