//! Cargo projects.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio::process::Command;

use super::source::file_name;
use crate::{ImageError, Platform, Progress, ProgressSender, report};

#[derive(Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Message {
    CompilerArtifact {
        package_id: String,
        target: Target,
        executable: Option<PathBuf>,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

pub(super) fn same_platform(platform: &Platform) -> Result<(), ImageError> {
    if *platform == Platform::host() {
        return Ok(());
    }
    Err(ImageError::Build(format!(
        "a Cargo project is built for this machine, not for {}/{}; build the binary with the target of your choice, and make the image of that",
        platform.os, platform.architecture
    )))
}

/// Builds the project, statically if that links, and gives the executable.
pub(super) async fn build(
    folder: &Path,
    wanted: Option<&str>,
    progress: Option<&ProgressSender>,
) -> Result<PathBuf, ImageError> {
    let host = host(folder).await?;
    match run(folder, wanted, Some(&host), progress).await {
        Ok(executable) => Ok(executable),
        Err(failed) if failed.can_be_linking => {
            let message = "it does not link statically, trying with shared libraries".to_owned();
            report(progress, || Progress::Building { message });
            run(folder, wanted, None, progress).await.map_err(|f| f.error)
        }
        Err(failed) => Err(failed.error),
    }
}

struct Failed {
    error: ImageError,
    can_be_linking: bool,
}

async fn run(
    folder: &Path,
    wanted: Option<&str>,
    static_for: Option<&str>,
    progress: Option<&ProgressSender>,
) -> Result<PathBuf, Failed> {
    let fatal = |error| Failed { error, can_be_linking: false };
    let mut command = Command::new("cargo");
    command.current_dir(folder).args([
        "build",
        "--release",
        "--message-format=json-render-diagnostics",
        "--target-dir",
        "target/image",
    ]);
    if let Some(name) = wanted {
        command.args(["--bin", name]);
    }
    if let Some(host) = static_for {
        // With a target named, build scripts and macros are built without these flags; they could not be static.
        let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
        command
            .args(["--target", host])
            .env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static").trim_start());
    }
    let output = super::go::run(command, "cargo", "install Rust from https://rustup.rs", progress)
        .await
        .map_err(fatal)?;
    if !output.success {
        let can_be_linking =
            !output.stderr.contains("error[E") && !output.stderr.contains("could not find `Cargo.toml`");
        let error =
            ImageError::Build(format!("cargo build failed in {}:\n{}", folder.display(), output.tail()));
        return Err(Failed { error, can_be_linking });
    }
    choose(&output.stdout, folder, wanted).map_err(fatal)
}

/// The one executable among cargo's messages.
fn choose(messages: &str, folder: &Path, wanted: Option<&str>) -> Result<PathBuf, ImageError> {
    let mut found: Vec<(String, PathBuf)> = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(|message| match message {
            Message::CompilerArtifact { target, executable: Some(path), package_id }
                if target.kind.iter().any(|k| k == "bin") =>
            {
                let _ = package_id;
                Some((target.name, path))
            }
            _ => None,
        })
        .collect();
    if let Some(wanted) = wanted {
        found.retain(|(name, _)| name == wanted);
    }
    let here = file_name(folder);
    match found.as_slice() {
        [] => Err(ImageError::Build(format!("{} has no binary (src/main.rs or [[bin]])", folder.display()))),
        [(_, only)] => Ok(only.clone()),
        several => {
            several.iter().find(|(name, _)| *name == here).map(|(_, path)| path.clone()).ok_or_else(|| {
                let names: Vec<_> = several.iter().map(|(name, _)| name.as_str()).collect();
                ImageError::Build(format!(
                    "{} has the binaries {}; say by --bin which one is meant",
                    folder.display(),
                    names.join(", ")
                ))
            })
        }
    }
}

/// The target that the project's own toolchain (rust-toolchain.toml) runs on.
async fn host(folder: &Path) -> Result<String, ImageError> {
    let mut command = Command::new("rustc");
    command.current_dir(folder).arg("-vV");
    let output = super::go::run(command, "rustc", "install Rust from https://rustup.rs", None).await?;
    if !output.success {
        return Err(ImageError::Build(format!(
            "rustc does not run in {}:\n{}",
            folder.display(),
            output.tail()
        )));
    }
    let host = output.stdout.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned);
    host.ok_or_else(|| ImageError::Build(format!("rustc -vV names no host:\n{}", output.tail())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_among_cargos_messages() {
        let artifact = |name: &str, kind: &str, path: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"p","target":{{"name":"{name}","kind":["{kind}"]}},"executable":{path}}}"#
            )
        };
        let one = [
            r#"{"reason":"build-script-executed","x":1}"#.to_owned(),
            artifact("build-script-build", "custom-build", "\"/t/build\""),
            artifact("lib", "lib", "null"),
            artifact("hello", "bin", "\"/t/hello\""),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let folder = Path::new("/src/app");
        assert_eq!(choose(&one.join("\n"), folder, None).unwrap(), Path::new("/t/hello"));
        let two = [&one[..], &[artifact("app", "bin", "\"/t/app\"")]].concat().join("\n");
        assert_eq!(choose(&two, folder, None).unwrap(), Path::new("/t/app"));
        assert_eq!(choose(&two, folder, Some("hello")).unwrap(), Path::new("/t/hello"));
        let unclear = choose(&two, Path::new("/src/x"), None).unwrap_err().to_string();
        assert!(unclear.contains("hello, app"), "{unclear}");
        assert!(choose("", folder, None).is_err());
    }
}
