//! Images without a container engine: of an executable, a Cargo project, a Go project, or a folder with an entrypoint.
//!
//! An image has one layer: a minimal root folder (users, CA certificates, `/tmp`), the program, and, if it is linked dynamically,
//! its interpreter and libraries. Times are zero, owners root, entries sorted, nothing says who built it when: the same input
//! makes the same digest.

mod assemble;
mod cargo;
mod elf;
mod go;
mod libraries;
mod rootfs;
mod source;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use assemble::{NONROOT, PATH};

use crate::{ImageError, Platform, Progress, ProgressSender, Store, report};
use assemble::Program;
use rootfs::RootFs;
use source::Source;

/// What to build; see [`build`].
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// An executable file, a project folder, or any folder if `entrypoint` is given.
    pub path: PathBuf,
    /// Name of the image: `hello:v1`.
    pub tag: String,
    /// Command of the container, instead of the program that was found or built. For a folder: a path inside it, and arguments.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments, which a Pod's `args` replace.
    pub args: Vec<String>,
    /// Which binary of a Cargo project with several, or which package of a Go module (`./cmd/app`).
    pub binary: Option<String>,
    /// Further environment, `KEY=value`.
    pub env: Vec<String>,
    /// User to run as, `uid[:gid]`; [`NONROOT`] if not given.
    pub user: Option<String>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
    /// Whether the layer is compressed, for an image that is to travel.
    pub compressed: bool,
    /// Processor and system; this machine's if not given, and another one only for binaries and Go projects.
    pub platform: Option<Platform>,
}

/// Builds an image and tags it in `store`. Gives the digest of its manifest.
///
/// A Cargo project is built with its own toolchain, statically if that links, into `target/image` of the project. A Go project
/// is built with `CGO_ENABLED=0`. Compiler output goes to `progress`.
///
/// # Errors
/// [`ImageError::Build`] if the path is of no kind that can be built, a tool is missing, or the build fails (with the end of its
/// output); [`ImageError::InvalidName`] for the tag; [`ImageError::Io`].
pub async fn build(
    store: &Arc<Store>,
    request: BuildRequest,
    progress: Option<ProgressSender>,
) -> Result<String, ImageError> {
    crate::Reference::parse(&request.tag)?;
    let platform = request.platform.clone().unwrap_or_else(Platform::host);
    let source = source::detect(&request)?;
    report(progress.as_ref(), || Progress::Building { message: source.describe() });
    let work = tempfile_dir(store)?;
    let (binary, name) = match &source {
        Source::Binary(path) => (Some(path.clone()), source::file_name(path)),
        Source::Cargo(path) => {
            cargo::same_platform(&platform)?;
            let built = cargo::build(path, request.binary.as_deref(), progress.as_ref()).await?;
            let name = source::file_name(&built);
            (Some(built), name)
        }
        Source::Go(path) => {
            let built =
                go::build(path, request.binary.as_deref(), &platform, &work.0, progress.as_ref()).await?;
            let name = source::file_name(&built);
            (Some(built), name)
        }
        Source::Folder(_) => (None, String::new()),
    };
    let store = store.clone();
    let pack = move || {
        let _work = work;
        let mut root = RootFs::new();
        let program = match (&source, binary) {
            (Source::Folder(folder), _) => assemble::folder(&mut root, folder, &request, &platform)?,
            (_, Some(binary)) => {
                assemble::program(&mut root, &binary, format!("{}/{name}", assemble::APP), &platform)?
            }
            (_, None) => return Err(ImageError::Internal("a build without a result".into())),
        };
        let program = Program { entrypoint: entrypoint(&request, &source, program.entrypoint), ..program };
        report(progress.as_ref(), || Progress::Building { message: "packing the image".into() });
        assemble::image(&store, root, program, &request, &platform)
    };
    tokio::task::spawn_blocking(pack).await.map_err(|e| ImageError::Internal(e.to_string()))?
}

/// For a folder, `program` already is what was asked for, with its path made absolute.
fn entrypoint(request: &BuildRequest, source: &Source, program: Vec<String>) -> Vec<String> {
    match (&request.entrypoint, source) {
        (Some(given), Source::Binary(_) | Source::Cargo(_) | Source::Go(_)) if !given.is_empty() => {
            given.clone()
        }
        _ => program,
    }
}

/// A folder for intermediate files, removed when dropped.
struct Work(PathBuf);

fn tempfile_dir(store: &Store) -> Result<Work, ImageError> {
    use crate::error::Context;
    let path = store.tmp();
    std::fs::create_dir(&path).at("make folder", &path)?;
    Ok(Work(path))
}

impl Drop for Work {
    fn drop(&mut self) {
        // The store empties its temporary folder at the next start anyway.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Store {
    /// Puts a program that is in memory into an image of its own: one layer with `bytes` at `dest`, a minimal root folder around
    /// it, and `entrypoint`. Gives the manifest's digest. The same arguments make the same image, and if that is here under that
    /// name already, nothing is written: one pass of SHA-256 over the bytes is all it costs. Blocks on the disk.
    ///
    /// # Errors
    /// [`ImageError::InvalidName`], [`ImageError::Build`] for a `dest` that is not absolute, [`ImageError::Io`].
    pub fn import_binary(
        &self,
        bytes: &[u8],
        name: &str,
        dest: &str,
        entrypoint: &[&str],
    ) -> Result<String, ImageError> {
        crate::Reference::parse(name)?;
        let mut root = RootFs::empty();
        root.add_users();
        root.add_bytes(dest, 0o755, bytes.to_vec())?;
        let program =
            Program { entrypoint: entrypoint.iter().map(|s| (*s).to_owned()).collect(), env: Vec::new() };
        let request = BuildRequest { tag: name.to_owned(), ..BuildRequest::default() };
        assemble::image(self, root, program, &request, &Platform::host())
    }

    /// Puts the executable file `program` into an image of its own, at `dest`, which is its entrypoint: with the interpreter and the
    /// libraries that it needs, this machine's CA certificates, users and `/tmp` around it, compressed. Gives the manifest's digest. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// [`ImageError::InvalidName`]; [`ImageError::Build`] for a `dest` that is not absolute, for what is no executable of this machine's kind,
    /// or a library that is not to be found; [`ImageError::Io`].
    pub fn import_program(
        &self,
        program: &Path,
        name: &str,
        dest: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<String, ImageError> {
        crate::Reference::parse(name)?;
        let (mut root, platform) = (RootFs::new(), Platform::host());
        let program = assemble::program(&mut root, program, dest.to_owned(), &platform)?;
        let request =
            BuildRequest { tag: name.to_owned(), labels, compressed: true, ..BuildRequest::default() };
        assemble::image(self, root, program, &request, &platform)
    }
}

#[cfg(test)]
mod tests;
