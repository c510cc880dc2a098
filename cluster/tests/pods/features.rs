//! Fields of a pod that users expect to do something.

use serde_json::{Value, json};

use crate::Case;
use crate::world::{IMAGE, PATIENCE, World, merge, pod};

pub(crate) const CASES: &[Case] = &[
    ("init_containers_and_sidecars", init_containers),
    ("lifecycle_hooks", hooks),
    ("termination_messages", termination),
    ("hosts_and_dns", names),
    ("host_network", host_network),
    ("downward_api", downward),
    ("sub_paths", sub_paths),
    ("sub_paths_stay_in_their_volume", sub_paths_inside),
    ("sysctls", sysctls),
    ("active_deadline", deadline),
    ("affinity_between_pods", affinity),
    ("shared_processes", shared_processes),
];

const NEVER: &str = "Never";

fn script(text: &str) -> Value {
    json!({"command": ["sh", "-c", text]})
}

fn container(name: &str, more: Value) -> Value {
    let mut container = json!({"name": name, "image": IMAGE});
    merge(&mut container, more);
    container
}

fn init_containers(world: &World) {
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let with_mount = |name: &str, text: &str, more: Value| {
        let mut made = container(name, script(text));
        merge(&mut made, mount.clone());
        merge(&mut made, more);
        made
    };
    let side = json!({"restartPolicy": "Always", "startupProbe": {"exec": {"command": ["ls", "/v/side"]}, "periodSeconds": 1}});
    let inits = json!([
        with_mount("first", "echo first > /v/log", json!({})),
        with_mount("side", "echo side >> /v/log; touch /v/side; sleep 1000", side),
        with_mount("last", "ls /v/side && echo last >> /v/log", json!({})),
    ]);
    let main = with_mount("c", "cat /v/log; ls /v/side", json!({}));
    world.pod(
        "inits",
        main,
        json!({"restartPolicy": NEVER, "initContainers": inits, "volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    world.until("pod/inits", "{.status.phase}", "Succeeded");
    assert_eq!(world.kubectl(&["logs", "inits", "-c", "c"]), "first\nside\nlast\n/v/side\n");
    let status = world.get("pod/inits")["status"].clone();
    let reasons: Vec<&str> = status["initContainerStatuses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|status| status["state"]["terminated"]["reason"].as_str().unwrap())
        .collect();
    assert_eq!(
        (reasons[0], reasons[2]),
        ("Completed", "Completed"),
        "the sidecar was ended after the main container: {reasons:?}"
    );
    world.delete("pod/inits");
    // One that fails for good fails the pod.
    let inits = json!([container("bad", script("echo no >&2; exit 4"))]);
    world.pod("inits-bad", json!({}), json!({"restartPolicy": NEVER, "initContainers": inits}));
    world.until("pod/inits-bad", "{.status.phase}", "Failed");
    let status = &world.get("pod/inits-bad")["status"];
    assert_eq!(status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 4);
    assert!(status["containerStatuses"][0]["state"]["waiting"].is_object(), "it never started: {status}");
    world.delete("pod/inits-bad");
}

fn hooks(world: &World) {
    let hook =
        json!({"lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo after > /tmp/started"]}}}});
    world.ready_pod("post-start", hook, json!({}));
    assert_eq!(world.kubectl(&["exec", "post-start", "--", "cat", "/tmp/started"]), "after\n");
    world.delete("pod/post-start");
    let hook = json!({"lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo nope; exit 1"]}}}});
    world.pod("post-bad", hook, json!({}));
    world.until("pod/post-bad", "{.status.containerStatuses[0].lastState.terminated.reason}", "Error");
    let described = world.kubectl(&["describe", "pod", "post-bad"]);
    assert!(described.contains("FailedPostStartHook") && described.contains("nope"), "{described}");
    world.delete("pod/post-bad");
    // preStop runs before the signal; what it leaves is seen from outside.
    let volume = json!({"volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 20});
    let stop = "echo stopping > /v/said; while [ ! -e /v/heard ]; do sleep 0.05; done";
    let more = json!({"lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", stop]}}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    world.ready_pod("pre-stop", more, volume);
    world.kubectl(&["delete", "pod/pre-stop", "--wait=false"]);
    let listen = "until cat /v/said 2>/dev/null; do sleep 0.05; done; touch /v/heard";
    assert_eq!(world.kubectl(&["exec", "pre-stop", "--", "sh", "-c", listen]), "stopping\n");
    world.kubectl(&["wait", "--for=delete", "pod/pre-stop", "--timeout=60s"]);
}

fn termination(world: &World) {
    let ended = |name: &str, text: &str, more: Value| {
        let mut made = script(text);
        merge(&mut made, more);
        world.pod(name, made, json!({"restartPolicy": NEVER}));
        world.until(
            &format!("pod/{name}"),
            "{.status.containerStatuses[0].state.terminated.reason}",
            "Error",
        );
        let message = world.get(&format!("pod/{name}"))["status"]["containerStatuses"][0]["state"]["terminated"]["message"].clone();
        world.delete(&format!("pod/{name}"));
        message.as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(ended("term-file", "echo why > /dev/termination-log; exit 1", json!({})), "why\n");
    let path = json!({"terminationMessagePath": "/tmp/why"});
    assert_eq!(ended("term-path", "echo that > /tmp/why; exit 1", path), "that\n");
    let fallback = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let said = ended("term-log", "echo it broke; exit 1", fallback);
    assert_eq!(said.trim_end(), "it broke");
}

fn names(world: &World) {
    let spec = json!({
        "hostname": "here", "subdomain": "sub",
        "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["alias.example", "other"]}],
        "dnsConfig": {"searches": ["example.org"], "options": [{"name": "ndots", "value": "3"}]},
    });
    world.ready_pod("names", json!({}), spec);
    let read = |pod: &str, file: &str| world.kubectl(&["exec", pod, "--", "cat", file]);
    let hosts = read("names", "/etc/hosts");
    assert!(
        hosts.contains("10.1.2.3\talias.example\tother")
            && hosts.contains("here.sub.default.svc.cluster.local\there"),
        "{hosts}"
    );
    let resolv = read("names", "/etc/resolv.conf");
    assert!(
        resolv.contains("default.svc.cluster.local")
            && resolv.contains("example.org")
            && resolv.contains("ndots:3"),
        "{resolv}"
    );
    assert_eq!(read("names", "/etc/hostname"), "here\n");
    let spec =
        json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"], "searches": ["only"]}});
    world.ready_pod("dns-none", json!({}), spec);
    assert_eq!(read("dns-none", "/etc/resolv.conf"), "search only\nnameserver 192.0.2.1\n");
    world.delete("pod/names");
    world.delete("pod/dns-none");
}

fn host_network(world: &World) {
    let node = world.cluster().network().node_ip().to_string();
    // The app's own ports may be taken on the machine.
    world.ready_pod("on-host", script("sleep 1000"), json!({"hostNetwork": true}));
    let object = world.get("pod/on-host");
    assert_eq!(object["status"]["podIP"], node.as_str());
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let theirs = world.kubectl(&["exec", "on-host", "--", "ls", "-l", "/proc/self/ns/net"]);
    assert!(theirs.contains(own.to_str().unwrap()), "{theirs}");
    world.delete("pod/on-host");
}

fn downward(world: &World) {
    let resource = |name: &str, of: &str, divisor: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": of, "divisor": divisor}}});
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let made = json!({
        "command": ["sh", "-c", "env; cat /info/cpu; echo; cat /info/labels"],
        "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}},
        "env": [
            resource("CPU", "limits.cpu", "1"), resource("CPU_MILLI", "requests.cpu", "1m"), resource("MEMORY", "limits.memory", "1Mi"),
            field("NAME", "metadata.name"), field("NODE", "spec.nodeName"), field("IP", "status.podIP"), field("ACCOUNT", "spec.serviceAccountName"),
        ],
        "volumeMounts": [{"name": "info", "mountPath": "/info"}],
    });
    let items = json!([
        {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}},
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
    ]);
    let volumes = json!([{"name": "info", "downwardAPI": {"items": items}}]);
    world.pod("downward", made, json!({"restartPolicy": NEVER, "volumes": volumes}));
    world.until("pod/downward", "{.status.phase}", "Succeeded");
    let said = world.kubectl(&["logs", "downward"]);
    let ip = world.get("pod/downward")["status"]["podIP"].as_str().unwrap().to_owned();
    for line in [
        "CPU=2",
        "CPU_MILLI=250",
        "MEMORY=64",
        "NAME=downward",
        "NODE=node",
        &format!("IP={ip}"),
        "ACCOUNT=default",
        "1500",
        "app=\"downward\"",
    ] {
        assert!(said.lines().any(|said| said == line), "{line} is not in {said}");
    }
    world.delete("pod/downward");
}

fn sub_paths(world: &World) {
    world.kubectl(&["create", "configmap", "files", "--from-literal=a=first", "--from-literal=b=second"]);
    let made = json!({
        "command": ["sh", "-c", "cat /etc/group; echo; cat /one; echo; touch /data/x; ls /all"],
        "env": [{"name": "PLACE", "value": "deep"}],
        "volumeMounts": [
            {"name": "files", "mountPath": "/one", "subPath": "b"},
            {"name": "scratch", "mountPath": "/data", "subPathExpr": "$(PLACE)/er"},
            {"name": "scratch", "mountPath": "/all"},
        ],
    });
    let volumes =
        json!([{"name": "files", "configMap": {"name": "files"}}, {"name": "scratch", "emptyDir": {}}]);
    world.pod("sub-path", made, json!({"restartPolicy": NEVER, "volumes": volumes}));
    world.until("pod/sub-path", "{.status.phase}", "Succeeded");
    let said = world.kubectl(&["logs", "sub-path"]);
    assert!(said.contains("root:x:0:") && said.ends_with("\nsecond\ndeep\n"), "{said}");
    world.delete("pod/sub-path");
}

fn sub_paths_inside(world: &World) {
    let outside = tempfile::tempdir().unwrap();
    let link = format!("ln -s {} /all/out", outside.path().display());
    let all = json!([{"name": "v", "mountPath": "/all"}]);
    let mut init = container("link", script(&link));
    merge(&mut init, json!({"volumeMounts": all}));
    let spec = |init: &Value| json!({"restartPolicy": NEVER, "initContainers": [init], "volumes": [{"name": "v", "emptyDir": {}}]});
    let mount = |path: &str| json!({"volumeMounts": [{"name": "v", "mountPath": "/part", "subPath": path}]});
    world.pod("sub-out", mount("out/made"), spec(&init));
    let said = "{.status.containerStatuses[0].state.waiting.message}";
    world.until("pod/sub-out", said, "subPath \"out/made\" leads out of its volume");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "nothing was made on the machine");
    world.delete("pod/sub-out");
    // What is made of a volume is as open as the volume.
    let mut user = mount("new/er");
    merge(&mut user, script("touch /part/x && ls /part"));
    merge(&mut user, json!({"securityContext": {"runAsUser": 1000}}));
    world.pod("sub-user", user, spec(&init));
    world.until("pod/sub-user", "{.status.phase}", "Succeeded");
    assert_eq!(world.kubectl(&["logs", "sub-user"]), "x\n");
    world.delete("pod/sub-user");
}

fn sysctls(world: &World) {
    let wanted =
        |name: &str, value: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": value}]}});
    world.ready_pod("sysctl", json!({}), wanted("net.ipv4.tcp_fin_timeout", "31"));
    let look = ["exec", "sysctl", "--", "cat", "/proc/sys/net/ipv4/tcp_fin_timeout"];
    assert_eq!(world.kubectl(&look), "31\n");
    assert_ne!(std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fin_timeout").unwrap(), "31\n");
    for (name, (sysctl, value), said) in [
        ("sysctl-bad", ("kernel.msgmax", "1"), "sysctls[0].name: forbidden sysctl: \"kernel.msgmax\""),
        (
            "sysctl-value",
            ("net.ipv4.tcp_fin_timeout", "soon"),
            "the pod's sysctl net.ipv4.tcp_fin_timeout: \"soon\": Invalid",
        ),
    ] {
        world.pod(name, json!({}), wanted(sysctl, value));
        world.told(name, "FailedCreatePodSandBox", said);
        world.delete(&format!("pod/{name}"));
    }
    world.delete("pod/sysctl");
}

fn deadline(world: &World) {
    world.pod("deadline", json!({}), json!({"activeDeadlineSeconds": 1}));
    world.until("pod/deadline", "{.status.phase}", "Failed");
    assert_eq!(world.get("pod/deadline")["status"]["reason"], "DeadlineExceeded");
    world.delete("pod/deadline");
}

fn affinity(world: &World) {
    let term = |kind: &str, app: &str| {
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}}]}}})
    };
    let pending = |pod: &str, said: &str| {
        world.until(
            &format!("pod/{pod}"),
            "{.status.conditions[?(@.type==\"PodScheduled\")].status}",
            "False",
        );
        let why = format!("0/1 nodes are available: 1 node(s) didn't {said}");
        world.told(pod, "FailedScheduling", &why);
    };
    world.ready_pod("alone", json!({}), term("podAntiAffinity", "crowd"));
    let mut crowd = pod("crowd", json!({}), json!({}));
    world.apply(&crowd);
    pending("crowd", "satisfy existing pods anti-affinity rules");
    // Whom it kept away comes in when it goes.
    world.delete("pod/alone");
    world.ready("crowd");
    crowd["metadata"]["name"] = "crowd-2".into();
    merge(&mut crowd["spec"], term("podAntiAffinity", "crowd"));
    world.apply(&crowd);
    pending("crowd-2", "match pod anti-affinity rules");
    world.pod("friend", json!({}), term("podAffinity", "popular"));
    pending("friend", "match pod affinity rules");
    world.ready_pod("popular", json!({}), json!({}));
    world.ready("friend");
    // What is only preferred keeps nobody waiting.
    let wish = |app: &str| {
        let term =
            json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}});
        json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]})
    };
    let place = json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference":
        {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["fast"]}]}}]});
    let wishes =
        json!({"podAffinity": wish("nobody"), "podAntiAffinity": wish("popular"), "nodeAffinity": place});
    world.ready_pod("modest", json!({}), json!({"affinity": wishes}));
    world.delete("pod/modest");
    for pod in ["crowd", "crowd-2", "friend", "popular"] {
        world.delete(&format!("pod/{pod}"));
    }
}

fn shared_processes(world: &World) {
    let orphans = "sh -c 'sleep 0.1 & sleep 1000 &'; sleep 1000";
    let others = [
        container("c", script(orphans)),
        container(
            "app",
            json!({"command": ["sh", "-c", "trap 'exit 3' USR1; while :; do sleep 0.05; done"]}),
        ),
    ];
    world.ready_pod("shared", json!({}), json!({"shareProcessNamespace": true, "containers": others}));
    let sh = |text: &str| world.run(&["exec", "shared", "-c", "c", "--", "sh", "-c", text], None);
    let (_, names, _) = sh("cat /proc/1/comm; cat /proc/[0-9]*/comm");
    assert!(
        names.starts_with("pause\n") && names.lines().filter(|name| *name == "sh").count() >= 3,
        "{names}"
    );
    // The first process shows nothing of the machine.
    let (code, listed, err) = sh("cat /proc/1/cmdline; ls /proc/1/root/");
    assert!(
        code != 0 && listed.trim_matches('\0').is_empty() && err.contains("Permission denied"),
        "{listed}{err}"
    );
    // Whoever is left behind is waited for: no process is a zombie for long.
    let zombies = "n=0; while cat /proc/[0-9]*/stat | { z=0; while read p c s r; do [ $s = Z ] && z=1; done; [ $z = 1 ]; }; do n=$((n+1)); [ $n = 100 ] && exit 1; sleep 0.05; done";
    assert_eq!(sh(zombies).0, 0, "zombies stay");
    // One container ends and comes again, and the others stay.
    let signal = "for p in /proc/[0-9]*; do read l < $p/cmdline; case $l in *\"exit 3' US\"R1*) kill -10 ${p#/proc/};; esac; done";
    sh(signal);
    world.until("pod/shared", "{.status.containerStatuses[?(@.name==\"app\")].restartCount}", "1");
    let ended = &world.get("pod/shared")["status"]["containerStatuses"];
    let restarts = |name: &str| {
        let found = ended.as_array().unwrap().iter().find(|status| status["name"] == name);
        found.unwrap()["restartCount"].clone()
    };
    assert_eq!(restarts("c"), 0);
    world.ready("shared");
    let pids = || world.helpers().iter().filter(|helper| holds(**helper)).count();
    assert!(pids() > 0);
    world.kubectl(&["delete", "pod/shared", "--timeout=60s"]);
    let begun = std::time::Instant::now();
    while pids() > 0 {
        assert!(begun.elapsed() < PATIENCE, "what held the processes is left");
    }
}

/// Whether a helper has a child that holds processes for a pod.
fn holds(helper: nix::unistd::Pid) -> bool {
    let children =
        std::fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap_or_default();
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    children.split_whitespace().any(|pid| name(pid) == "pause\n")
}
