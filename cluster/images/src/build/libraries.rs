//! The shared libraries of a program, found as the dynamic linker of this machine would.
//!
//! Source: ld.so(8). The binary cache is not read; the folders it is made from are.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use super::elf::{self, Elf};
use crate::{ImageError, error::Context};

/// Files to add to the image, at the paths they have here, and folders that the linker in the image must be told of.
#[derive(Debug, Default)]
pub(super) struct Libraries {
    pub(super) files: BTreeMap<String, PathBuf>,
    pub(super) search: BTreeSet<String>,
}

/// glibc loads these by name when it resolves hosts and users; older releases only, newer ones have them inside.
const BY_NAME: &[&str] = &["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"];

pub(super) fn find(program: &Path, elf: &Elf) -> Result<Libraries, ImageError> {
    let mut found = Libraries::default();
    let Some(interpreter) = &elf.interpreter else { return Ok(found) };
    let loader = PathBuf::from(interpreter);
    if !loader.is_file() {
        return Err(ImageError::Build(format!(
            "{} needs the dynamic linker {interpreter}, which this machine does not have; link it statically, or build it here",
            program.display()
        )));
    }
    found.files.insert(interpreter.clone(), loader);
    let musl = interpreter.contains("ld-musl");
    let (builtin, configured) = folders(musl, elf.architecture);
    let mut seen = BTreeSet::new();
    let mut queue: VecDeque<(PathBuf, Elf)> = VecDeque::from([(program.to_path_buf(), elf.clone())]);
    while let Some((needer, elf)) = queue.pop_front() {
        let is_libc = |n: &String| n.starts_with("libc.so.6");
        let extra: Vec<String> = if !musl && elf.needed.iter().any(is_libc) {
            BY_NAME.iter().map(|n| (*n).to_owned()).collect()
        } else {
            vec![]
        };
        let optional: BTreeSet<&String> = extra.iter().collect();
        for name in elf.needed.iter().chain(&extra) {
            if !seen.insert(name.clone()) || found.files.contains_key(name) {
                continue;
            }
            let own: Vec<PathBuf> = elf.run_path.iter().map(|p| origin(p, &needer)).collect();
            let hit = if name.contains('/') {
                fs::read(name).ok().map(|bytes| (PathBuf::from(name), bytes))
            } else {
                own.iter().chain(&configured).chain(&builtin).find_map(|folder| {
                    let path = folder.join(name);
                    let bytes = fs::read(&path).ok()?;
                    // Skips libraries of another processor, as the linker does.
                    elf::parse(&bytes)
                        .is_ok_and(|l| l.architecture == elf.architecture)
                        .then_some((path, bytes))
                })
            };
            let Some((path, bytes)) = hit else {
                if optional.contains(name) {
                    continue;
                }
                return Err(ImageError::Build(format!(
                    "{} needs the library {name}, which is in none of the linker's folders; install it, or link statically",
                    needer.display()
                )));
            };
            let library = elf::parse(&bytes)
                .map_err(|e| ImageError::Build(format!("library {}: {e}", path.display())))?;
            if let Some(folder) = path.parent().filter(|f| !builtin.iter().any(|b| b == f)) {
                found.search.insert(folder.display().to_string());
            }
            found.files.insert(path.display().to_string(), path.clone());
            queue.push_back((path, library));
        }
    }
    Ok(found)
}

fn origin(path: &str, needer: &Path) -> PathBuf {
    let folder =
        needer.canonicalize().ok().and_then(|p| p.parent().map(Path::to_path_buf)).unwrap_or_default();
    let folder = folder.display().to_string();
    PathBuf::from(path.replace("${ORIGIN}", &folder).replace("$ORIGIN", &folder))
}

/// Where the linker looks by itself, and where this machine's configuration sends it besides.
fn folders(musl: bool, architecture: &str) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let machine = if architecture == "amd64" { "x86_64" } else { "aarch64" };
    if musl {
        let configured = fs::read_to_string(format!("/etc/ld-musl-{machine}.path")).unwrap_or_default();
        let configured = configured.split([':', '\n']).filter(|p| !p.is_empty()).map(PathBuf::from).collect();
        return (["/lib", "/usr/local/lib", "/usr/lib"].map(PathBuf::from).into(), configured);
    }
    let mut builtin = Vec::new();
    // Debian's glibc knows the multiarch folders by itself, Fedora's the lib64 ones.
    if Path::new(&format!("/lib/{machine}-linux-gnu/libc.so.6")).exists() {
        builtin.extend([format!("/lib/{machine}-linux-gnu"), format!("/usr/lib/{machine}-linux-gnu")]);
    }
    builtin.extend(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(String::from));
    let mut configured = Vec::new();
    read_conf(Path::new("/etc/ld.so.conf"), 0, &mut configured);
    (builtin.into_iter().map(PathBuf::from).collect(), configured)
}

/// `ld.so.conf`: a folder a line, comments, and `include` with a pattern for file names.
fn read_conf(path: &Path, depth: usize, into: &mut Vec<PathBuf>) {
    let Ok(text) = fs::read_to_string(path) else { return };
    for line in text.lines().map(|l| l.split('#').next().unwrap_or_default().trim()) {
        if let Some(pattern) = line.strip_prefix("include").map(str::trim) {
            let pattern = Path::new(pattern);
            let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|n| n.to_str()))
            else {
                continue;
            };
            let (before, after) = name.split_once('*').unwrap_or((name, ""));
            let mut files: Vec<PathBuf> = fs::read_dir(folder)
                .into_iter()
                .flatten()
                .filter_map(|e| e.ok().map(|e| e.path()))
                .filter(|p| {
                    let name = p.file_name().unwrap_or_default().to_string_lossy();
                    name.starts_with(before) && name.ends_with(after)
                })
                .collect();
            files.sort();
            // Files that include each other end somewhere.
            files.iter().filter(|_| depth < 4).for_each(|f| read_conf(f, depth + 1, into));
        } else if line.starts_with('/') {
            into.push(PathBuf::from(line));
        }
    }
}

/// Reads a program's headers.
pub(super) fn inspect(program: &Path) -> Result<(Vec<u8>, Elf), ImageError> {
    let bytes = fs::read(program).at("read", program)?;
    let elf = elf::parse(&bytes)
        .map_err(|e| ImageError::Build(format!("{} cannot be put into an image: {e}", program.display())))?;
    Ok((bytes, elf))
}
