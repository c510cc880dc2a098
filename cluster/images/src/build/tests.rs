use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use super::*;
use crate::PullPolicy;

async fn run(store: &Arc<Store>, image: &str) -> String {
    let image = store.ensure(image, PullPolicy::Never, &[], None).await.unwrap();
    let config = image.config.config().as_ref().unwrap();
    let command = config.entrypoint().as_ref().unwrap();
    let out = Command::new("chroot").arg(&image.layers[0]).args(command).output().unwrap();
    assert!(out.status.success(), "{command:?} in a chroot (which needs root): {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn request(path: &Path, tag: &str) -> BuildRequest {
    BuildRequest { path: path.into(), tag: tag.into(), ..BuildRequest::default() }
}

#[tokio::test]
async fn a_dynamic_program_brings_its_libraries_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let first = build(&store, request(Path::new("/bin/uname"), "uname:v1"), None).await.unwrap();
    let again = build(&store, request(Path::new("/bin/uname"), "uname:v2"), None).await.unwrap();
    assert_eq!(first, again, "the same input makes the same image");
    assert_eq!(run(&store, "uname:v1").await.trim(), "Linux");
    let image = store.ensure("localhost:1/uname:v1", PullPolicy::Always, &[], None).await.unwrap();
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.user().as_deref(), Some(NONROOT));
    let root = &image.layers[0];
    assert_eq!(fs::metadata(root.join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
    assert!(fs::read_to_string(root.join("etc/passwd")).unwrap().contains("nonroot:x:65532"));
}

#[tokio::test]
async fn a_cargo_project_is_built() {
    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("hello");
    fs::create_dir_all(project.join("src")).unwrap();
    fs::write(
        project.join("Cargo.toml"),
        "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    )
    .unwrap();
    fs::write(project.join("src/main.rs"), "fn main() { println!(\"hello from cargo\") }").unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    build(&store, request(&project, "hello:v1"), None).await.unwrap();
    assert_eq!(run(&store, "hello:v1").await.trim(), "hello from cargo");
    fs::write(project.join("src/main.rs"), "fn main() { nonsense }").unwrap();
    let broken = build(&store, request(&project, "hello:v1"), None).await.unwrap_err().to_string();
    assert!(broken.contains("nonsense"), "the compiler's words must be in: {broken}");
}

#[tokio::test]
async fn a_go_project_is_built_or_the_missing_tool_named() {
    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("hello");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("go.mod"), "module hello\n\ngo 1.20\n").unwrap();
    fs::write(
        project.join("main.go"),
        "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"hello from go\") }\n",
    )
    .unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    match build(&store, request(&project, "hello:v1"), None).await {
        Ok(_) => assert_eq!(run(&store, "hello:v1").await.trim(), "hello from go"),
        Err(error) => {
            assert!(Command::new("go").arg("version").output().is_err(), "go is here, but: {error}");
            assert!(error.to_string().contains("https://go.dev"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_folder_takes_an_entrypoint() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("site");
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::create_dir_all(folder.join(".git")).unwrap();
    fs::copy("/bin/cat", folder.join("bin/cat")).unwrap();
    fs::write(folder.join("page"), "content").unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let entrypoint = Some(vec!["bin/cat".to_owned(), "/app/page".to_owned()]);
    build(&store, BuildRequest { entrypoint, ..request(&folder, "site:v1") }, None).await.unwrap();
    assert_eq!(run(&store, "site:v1").await, "content");
    let image = store.ensure("site:v1", PullPolicy::Never, &[], None).await.unwrap();
    assert!(!image.layers[0].join("app/.git").exists());
}

#[tokio::test]
async fn what_cannot_be_built_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let with = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    };
    let cases = [
        (with("script", "#!/bin/sh\n"), "script"),
        (with("text", "hello"), "no Linux program"),
        (with("elf", "\x7fELF"), "executable"),
        (with("docker/Dockerfile", "FROM x").parent().unwrap().to_path_buf(), "Dockerfile"),
        (with("empty/x", "").parent().unwrap().to_path_buf(), "Cargo.toml"),
        (dir.path().join("absent"), "absent"),
    ];
    for (path, why) in cases {
        let error = build(&store, request(&path, "x"), None).await.unwrap_err().to_string();
        assert!(error.contains(why), "{}: {error}", path.display());
    }
    assert!(matches!(
        build(&store, request(Path::new("/bin/true"), "X:"), None).await,
        Err(ImageError::InvalidName { .. })
    ));
}

#[test]
fn importing_again_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let import =
        |bytes: &[u8]| store.import_binary(bytes, "sidecar:v1", "/app/sidecar", &["/app/sidecar"]).unwrap();
    let digest = import(b"program");
    let names = dir.path().join("names.json");
    let before = fs::metadata(&names).unwrap().modified().unwrap();
    assert_eq!(import(b"program"), digest);
    assert_eq!(fs::metadata(&names).unwrap().modified().unwrap(), before);
    assert_ne!(import(b"another"), digest);
    assert_eq!(store.list().len(), 1);
    assert!(store.import_binary(b"x", "x", "relative", &["x"]).is_err());
}

#[tokio::test]
async fn a_program_travels_compressed_with_its_libraries_and_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    // Linked dynamically on any glibc system.
    let digest = store.import_program(Path::new("/bin/cat"), "cat:v1", "/cat", BTreeMap::new()).unwrap();
    let image = store.ensure("cat:v1", PullPolicy::Never, &[], None).await.unwrap();
    assert!(image.layers[0].join("cat").is_file() && image.layers[0].join("etc/passwd").is_file());
    assert_eq!(run(&store, "cat:v1").await, "");
    let file = dir.path().join("cat.tar");
    store.export_as(&[("cat:v1", "localhost/team/cat:v2")], &file).await.unwrap();
    let entry = |name: &str| Command::new("tar").arg("-xOf").arg(&file).arg(name).output().unwrap().stdout;
    let listed: serde_json::Value = serde_json::from_slice(&entry("manifest.json")).unwrap();
    // What every engine reads.
    let gzip = entry(listed[0]["Layers"][0].as_str().unwrap());
    assert_eq!(gzip[..2], [0x1f, 0x8b]);
    assert_eq!(listed[0]["RepoTags"], serde_json::json!(["localhost/team/cat:v2"]));
    let other = Store::open(&dir.path().join("other")).unwrap();
    assert_eq!(other.load_archive(&file, None).await.unwrap(), ["team/cat:v2"]);
    let loaded = other.ensure("localhost/team/cat:v2", PullPolicy::Never, &[], None).await.unwrap();
    assert_eq!(loaded.digest, digest);
}
