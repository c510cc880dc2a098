//! What kind of thing a path is.

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::BuildRequest;
use crate::{ImageError, error::Context};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    Binary(PathBuf),
    Cargo(PathBuf),
    Go(PathBuf),
    Folder(PathBuf),
}

const KINDS: &str = "an executable file, a Cargo project (Cargo.toml) or a Go project (go.mod) can be built";

impl Source {
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Binary(p) => format!("{} is an executable", p.display()),
            Self::Cargo(p) => format!("{} is a Cargo project", p.display()),
            Self::Go(p) => format!("{} is a Go project", p.display()),
            Self::Folder(p) => format!("{} is a folder", p.display()),
        }
    }
}

pub(super) fn detect(request: &BuildRequest) -> Result<Source, ImageError> {
    let path = request.path.canonicalize().at("find", &request.path)?;
    let refuse = |why: &str| Err(ImageError::Build(format!("{} {why}; {KINDS}", path.display())));
    if path.is_file() {
        let mut start = [0; 4];
        let n = fs::File::open(&path).and_then(|mut f| f.read(&mut start)).at("read", &path)?;
        return match &start[..n] {
            b"\x7fELF" => match fs::metadata(&path) {
                Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
                    refuse("is not marked executable (chmod +x)")
                }
                _ => Ok(Source::Binary(path)),
            },
            [b'#', b'!', ..] => refuse("is a script, and the image would have no interpreter for it"),
            [b'M', b'Z', ..] | [0xcf, 0xfa, 0xed, 0xfe] => {
                refuse("is a program for another operating system")
            }
            _ => refuse("is a file but no Linux program"),
        };
    }
    if path.join("Cargo.toml").is_file() {
        Ok(Source::Cargo(path))
    } else if path.join("go.mod").is_file() {
        Ok(Source::Go(path))
    } else if request.entrypoint.as_ref().is_some_and(|e| !e.is_empty()) {
        Ok(Source::Folder(path))
    } else if path.join("Dockerfile").is_file() || path.join("Containerfile").is_file() {
        refuse(
            "has a Dockerfile, which is not read here: build it with docker, podman or buildah and push the image to the embedded registry",
        )
    } else {
        refuse("is a folder of no known kind")
    }
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "app".to_owned(), |n| n.to_string_lossy().into_owned())
}
