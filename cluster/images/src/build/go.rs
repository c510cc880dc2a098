//! Go projects, and how tools are run.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Command,
};

use super::source::file_name;
use crate::{ImageError, Platform, Progress, ProgressSender, report};

/// Builds package `wanted` (the root one if not given) of the module in `folder`, into `work`.
pub(super) async fn build(
    folder: &Path,
    wanted: Option<&str>,
    platform: &Platform,
    work: &Path,
    progress: Option<&ProgressSender>,
) -> Result<PathBuf, ImageError> {
    let package = wanted.unwrap_or(".");
    let name = if package == "." { file_name(folder) } else { file_name(Path::new(package)) };
    let target = work.join(&name);
    let mut command = Command::new("go");
    command
        .current_dir(folder)
        .args(["build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o"])
        .arg(&target)
        .arg(package)
        .env("CGO_ENABLED", "0")
        .env("GOOS", &platform.os)
        .env("GOARCH", &platform.architecture);
    let output = run(command, "go", "install Go from https://go.dev/dl", progress).await?;
    if !output.success {
        return Err(ImageError::Build(format!(
            "go build failed in {}:\n{}",
            folder.display(),
            output.tail()
        )));
    }
    // `go build -o` of a package that is not main writes an archive.
    if !std::fs::read(&target).is_ok_and(|b| b.starts_with(b"\x7fELF")) {
        return Err(ImageError::Build(format!(
            "package {package} of {} is no program; say by --bin which package is (such as ./cmd/NAME)",
            folder.display()
        )));
    }
    Ok(target)
}

pub(super) struct Output {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Output {
    /// The end of what the tool said, which is where the reason is.
    pub(super) fn tail(&self) -> String {
        let lines: Vec<&str> = self.stderr.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// Runs a tool to its end; lines of its stderr are progress. The tool dies with the future.
pub(super) async fn run(
    mut command: Command,
    tool: &str,
    install: &str,
    progress: Option<&ProgressSender>,
) -> Result<Output, ImageError> {
    let failed = |e: std::io::Error| {
        ImageError::Build(if e.kind() == std::io::ErrorKind::NotFound {
            format!(
                "{tool} is not in PATH; {install}, or build the binary elsewhere and make the image of that"
            )
        } else {
            format!("{tool} cannot be run: {e}")
        })
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let stdout = async {
        let mut bytes = Vec::new();
        if let Some(mut out) = out {
            out.read_to_end(&mut bytes).await?;
        }
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let stderr = async {
        let mut text = String::new();
        if let Some(err) = err {
            let mut reader = BufReader::new(err);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).await? > 0 {
                let message = String::from_utf8_lossy(&line).trim_end().to_owned();
                text.push_str(&message);
                text.push('\n');
                report(progress, || Progress::Building { message });
                line.clear();
            }
        }
        Ok(text)
    };
    let (stdout, stderr) = tokio::try_join!(stdout, stderr).map_err(failed)?;
    let status = child.wait().await.map_err(failed)?;
    Ok(Output { success: status.success(), stdout, stderr })
}
