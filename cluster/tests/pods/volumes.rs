//! Volumes that hold secrets, as containers and as the disk see them; and limits.

use std::path::Path;

use serde_json::{Value, json};

use crate::world::{PATIENCE, World};

pub(crate) const CASES: &[crate::Case] = &[
    ("volumes::secrets_are_in_memory_and_follow_their_objects", secrets),
    ("volumes::a_token_is_the_pods_own", tokens),
    ("volumes::memory_is_mounted_once", memory),
    ("volumes::nobody_else_on_the_machine_sees_them", private),
    ("limits::processes", processes),
    ("limits::memory_and_processor", memory_and_processor),
];

fn exec(world: &World, pod: &str, script: &str) -> (i32, String) {
    let (code, out, _) = world.run(&["exec", pod, "-c", "c", "--", "sh", "-c", script], None);
    (code, out.trim_end().to_owned())
}

/// Waits for what no event tells: that a file in a container has changed.
fn until(world: &World, pod: &str, script: &str, wanted: &str) {
    let begun = std::time::Instant::now();
    loop {
        let (_, out) = exec(world, pod, script);
        if out == wanted {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{script}: still {out:?}, not {wanted:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Whether a file anywhere below the folder, as this process sees it, holds the text.
fn on_disk(folder: &Path, text: &[u8]) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => on_disk(&path, text),
            Ok(kind) if kind.is_file() => {
                std::fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text))
            }
            _ => false,
        }
    })
}

fn secret(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"key": value, "other": "2"}})
}

fn secrets(world: &World) {
    world.apply(&secret("hidden", "kept-off-the-disk-1"));
    let config = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shown"}, "data": {"a": value}});
    world.apply(&config("one"));
    let mounts = json!({"volumeMounts": [
        {"name": "hidden", "mountPath": "/hidden"}, {"name": "all", "mountPath": "/all"},
        {"name": "hidden", "mountPath": "/one", "subPath": "key"}
    ]});
    let volumes = json!({
        "securityContext": {"fsGroup": 1234},
        "volumes": [
            {"name": "hidden", "secret": {"secretName": "hidden", "defaultMode": 0o400,
                "items": [{"key": "key", "path": "key"}, {"key": "other", "path": "sub/other", "mode": 0o600}]}},
            {"name": "all", "projected": {"sources": [
                {"secret": {"name": "hidden"}}, {"configMap": {"name": "shown"}},
                {"serviceAccountToken": {"path": "token"}}
            ]}}
        ]
    });
    world.ready_pod("secrets", mounts, volumes);
    // Mounted as memory, for the container; on this machine's disk, nowhere but in the database.
    for path in ["/hidden", "/all", "/one"] {
        let (_, mounted) = exec(
            world,
            "secrets",
            &format!("while read d m t r; do [ $m = {path} ] && echo $t; done < /proc/mounts"),
        );
        assert_eq!(mounted, "tmpfs", "{path}");
    }
    assert!(!on_disk(&world.data_dir().join("node"), b"kept-off-the-disk-1"));
    assert_eq!(exec(world, "secrets", "cat /hidden/key /one").1, "kept-off-the-disk-1kept-off-the-disk-1");
    let (_, listed) = exec(world, "secrets", "ls -lLn /hidden/key /hidden/sub/other");
    let modes: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(modes, ["-r--r-----", "-rw-r-----"], "as the items say, and for the pod's group: {listed}");
    assert!(listed.lines().all(|line| line.split_whitespace().nth(3) == Some("1234")), "{listed}");
    // One link is swapped, so that whoever reads sees all of one version.
    assert_eq!(exec(world, "secrets", "cd /all; ls -l key").1.rsplit(' ').next(), Some("..data/key"));
    let before = exec(world, "secrets", "cd /all; ls -ld ..data").1;
    world.apply(&secret("hidden", "kept-off-the-disk-2"));
    until(world, "secrets", "cat /all/key", "kept-off-the-disk-2");
    until(world, "secrets", "cat /hidden/key", "kept-off-the-disk-2");
    assert_ne!(exec(world, "secrets", "cd /all; ls -ld ..data").1, before);
    assert_eq!(exec(world, "secrets", "cat /one").1, "kept-off-the-disk-1", "a subPath stays as it was");
    world.apply(&config("two"));
    until(world, "secrets", "cat /all/a", "two");
    assert_eq!(exec(world, "secrets", "touch /all/x").0, 1, "read-only");
    assert!(!on_disk(&world.data_dir().join("node"), b"kept-off-the-disk"));
    world.delete("pod/secrets");
}

fn tokens(world: &World) {
    let volumes = json!({"volumes": [{"name": "t", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 600, "audience": "somebody"}}
    ]}}]});
    world.ready_pod("token", json!({"volumeMounts": [{"name": "t", "mountPath": "/t"}]}), volumes);
    let (_, token) = exec(world, "token", "cat /t/token");
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64_url(claims);
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["aud"], json!(["somebody"]));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 600);
    assert_eq!(claims["kubernetes.io"]["pod"]["name"], "token");
    world.delete("pod/token");
}

fn base64_url(text: &str) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (mut bits, mut held, mut out) = (0u32, 0, Vec::new());
    for byte in text.bytes() {
        let value = alphabet.iter().position(|c| *c == byte).unwrap();
        bits = bits << 6 | u32::try_from(value).unwrap();
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from(bits >> held & 0xff).unwrap());
        }
    }
    out
}

/// Tried again until another volume of the pod is there, and all is taken away with the pod.
fn memory(world: &World) {
    let mounts = json!({"volumeMounts": [{"name": "m", "mountPath": "/m"}]});
    let volumes = json!({"volumes": [
        {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}, {"name": "late", "configMap": {"name": "late"}}
    ]});
    world.pod("memory", mounts, volumes);
    let count = "{.items[?(@.reason==\"FailedMount\")].count}";
    let tried = || {
        world.kubectl(&[
            "get",
            "events",
            "--field-selector=involvedObject.name=memory",
            "-o",
            &format!("jsonpath={count}"),
        ])
    };
    let begun = std::time::Instant::now();
    while tried().parse::<u32>().unwrap_or(0) < 3 {
        assert!(begun.elapsed() < PATIENCE, "{}", tried());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    world.kubectl(&["create", "configmap", "late", "--from-literal=a=b"]);
    world.ready("memory");
    let helper = world.helpers()[0];
    let uid = world.get("pod/memory")["metadata"]["uid"].as_str().unwrap().to_owned();
    let mounted = || {
        let text = std::fs::read_to_string(format!("/proc/{helper}/mountinfo")).unwrap();
        text.lines().filter(|line| line.contains(&uid)).count()
    };
    assert_eq!(mounted(), 1);
    assert_eq!(exec(world, "memory", "touch /m/x && ls /m"), (0, "x".to_owned()));
    world.kubectl(&["delete", "pod/memory", "--timeout=60s"]);
    assert_eq!(mounted(), 0);
}

fn private(world: &World) {
    use std::os::unix::fs::PermissionsExt;
    for name in ["api", "node", "images"] {
        let mode = std::fs::metadata(world.data_dir().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }
}

/// The first process of a pod's container, in this machine's numbers.
fn process_of(pod: &str) -> u32 {
    let wanted = format!("HOSTNAME={pod}");
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_it = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes())
    };
    pids.filter(is_it).min().expect("the container runs")
}

fn processes(world: &World) {
    world.ready_pod("forking", json!({}), json!({}));
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", process_of("forking"))).unwrap();
    let group = |line: &str| -> Option<std::path::PathBuf> {
        let (_, rest) = line.split_once(':')?;
        match rest.split_once(':')? {
            ("pids", path) => Some(format!("/sys/fs/cgroup/pids{path}/pids.max").into()),
            ("", path) => Some(format!("/sys/fs/cgroup{path}/pids.max").into()),
            _ => None,
        }
    };
    let limits: Vec<String> =
        groups.lines().filter_map(group).filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    assert_eq!(limits, ["4096\n"], "{groups}");
    world.delete("pod/forking");
}

fn memory_and_processor(world: &World) {
    let limits = json!({"resources": {"limits": {"memory": "48Mi", "cpu": "250m"}}});
    let mut glutton = limits.clone();
    crate::world::merge(&mut glutton, json!({"args": ["eat"]}));
    world.pod("glutton", glutton, json!({"restartPolicy": "Never"}));
    world.ready_pod("modest-user", limits, json!({}));
    let files = "cd /sys/fs/cgroup; if [ -e cpu.max ]; then cat cpu.max memory.max; else cat cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes; fi";
    let said = exec(world, "modest-user", files).1;
    assert!(said.starts_with("25000") && said.ends_with("50331648"), "{said}");
    world.until("pod/glutton", "{.status.phase}", "Failed");
    let ended = &world.get("pod/glutton")["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("OOMKilled"), &json!(137)), "{ended}");
    world.delete("pod/glutton");
    world.delete("pod/modest-user");
}
