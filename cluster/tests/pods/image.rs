//! The image that the pods of these tests run: a static app and a few of this machine's tools, as a `docker save` folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

/// What a shell in a container needs for these tests.
const TOOLS: [&str; 12] =
    ["sh", "cat", "ln", "ls", "sleep", "tar", "stty", "id", "mkdir", "chmod", "touch", "env"];

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Writes the image into `folder`; its name is `name`.
pub(crate) fn make(folder: &Path, name: &str) {
    let root = folder.join("root");
    for path in ["app", "bin", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(path)).unwrap();
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pods/app.rs.txt");
    run(Command::new("rustc")
        .args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "app", "-O"])
        .args(["-C", "target-feature=+crt-static", "-o"])
        .arg(root.join("app/app"))
        .arg(source));
    for tool in TOOLS {
        let path = found(tool);
        std::fs::copy(&path, root.join("bin").join(tool)).unwrap();
        // "libc.so.6 => /lib/... (0x..)" and "/lib64/ld-linux-x86-64.so.2 (0x..)".
        for word in
            run(Command::new("ldd").arg(&path)).split_whitespace().filter(|word| word.starts_with('/'))
        {
            let target = root.join(word.trim_start_matches('/'));
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(word, target).unwrap();
        }
    }
    let layer = folder.join("layer.tar");
    run(Command::new("tar")
        .args(["--owner=0", "--group=0", "-cf"])
        .arg(&layer)
        .arg("-C")
        .arg(&root)
        .arg("."));
    let sum = run(Command::new("sha256sum").arg(&layer));
    let sum = sum.split_whitespace().next().unwrap();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": {"Entrypoint": ["/app/app"], "Env": ["PATH=/bin:/app"], "User": "0"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    std::fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    std::fs::remove_dir_all(root).unwrap();
}

/// A program on the path.
pub(crate) fn found(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{program} is not on the PATH"))
}
