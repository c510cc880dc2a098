//! From a root folder to blobs, a manifest and a tag.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use flate2::Compression;
use serde::Serialize;

use super::{BuildRequest, elf, libraries, rootfs::RootFs, source::file_name};
use crate::{
    Digest, ImageError, Platform, Reference, Store,
    digest::Hashing,
    error::Context as _,
    manifest::{Descriptor, ImageManifest, Manifest, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST},
    store::{BlobWriter, Entry},
};

/// The user that images run as unless another one is asked for.
pub const NONROOT: &str = "65532:65532";
/// `PATH` in the images made here.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Beyond this, packing takes much longer for little less.
const GZIP_LEVEL: u32 = 6;
/// The folder that programs are put into.
pub(super) const APP: &str = "/app";

/// What to start, and the environment that takes.
pub(super) struct Program {
    pub(super) entrypoint: Vec<String>,
    pub(super) env: Vec<String>,
}

/// Puts an executable and all it needs into `root`, itself at `place`.
pub(super) fn program(
    root: &mut RootFs,
    binary: &Path,
    place: String,
    platform: &Platform,
) -> Result<Program, ImageError> {
    let env = with_libraries(root, binary, platform)?;
    root.add_file(&place, 0o755, binary)?;
    Ok(Program { entrypoint: vec![place], env })
}

/// Puts a folder into `root`, with the libraries of the entrypoint if that is a program inside it.
pub(super) fn folder(
    root: &mut RootFs,
    from: &Path,
    request: &BuildRequest,
    platform: &Platform,
) -> Result<Program, ImageError> {
    root.add_folder(APP, from)?;
    let mut entrypoint = request.entrypoint.clone().unwrap_or_default();
    let Some(first) = entrypoint.first_mut() else {
        return Err(ImageError::Build("a folder needs an entrypoint".into()));
    };
    let relative = first.trim_start_matches("./").trim_start_matches("/app/").to_owned();
    let inside = from.join(&relative);
    if !inside.is_file() {
        return Err(ImageError::Build(format!("the entrypoint {first:?} is no file in {}", from.display())));
    }
    *first = format!("{APP}/{relative}");
    let env = with_libraries(root, &inside, platform)?;
    Ok(Program { entrypoint, env })
}

fn with_libraries(root: &mut RootFs, binary: &Path, platform: &Platform) -> Result<Vec<String>, ImageError> {
    let (_, elf) = libraries::inspect(binary)?;
    check_platform(binary, &elf, platform)?;
    let libraries = libraries::find(binary, &elf)?;
    for (path, from) in &libraries.files {
        root.add_file(path, 0o755, from)?;
    }
    let search: Vec<&str> = libraries.search.iter().map(String::as_str).collect();
    Ok(if search.is_empty() { vec![] } else { vec![format!("LD_LIBRARY_PATH={}", search.join(":"))] })
}

fn check_platform(binary: &Path, elf: &elf::Elf, platform: &Platform) -> Result<(), ImageError> {
    if elf.architecture == platform.architecture {
        return Ok(());
    }
    Err(ImageError::Build(format!(
        "{} is for {}, but the image is to be for {}; build it for that, or name the other platform",
        file_name(binary),
        elf.architecture,
        platform.architecture
    )))
}

// The configuration's fields, in the order they are written; OCI image specification, config.md.
#[derive(Serialize)]
struct Config<'a> {
    architecture: &'a str,
    os: &'a str,
    config: Run<'a>,
    rootfs: Layers<'a>,
    history: [History; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Run<'a> {
    user: &'a str,
    env: Vec<String>,
    entrypoint: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    cmd: &'a [String],
    working_dir: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Layers<'a> {
    r#type: &'static str,
    diff_ids: [&'a Digest; 1],
}

#[derive(Serialize)]
struct History {
    created: &'static str,
    created_by: &'static str,
}

/// A layer as a blob.
struct Layer {
    media_type: &'static str,
    digest: Digest,
    size: u64,
    /// Digest of its content when it is not compressed.
    diff_id: Digest,
}

/// Plain, it is unpacked at once, and its digest is its diff ID: right for this machine, where space is cheaper than time. Compressed it is
/// about a third of that. By gzip, though zstd makes a fifth less of it: Docker before 23 cannot load a layer in zstd.
fn layer(store: &Store, root: RootFs, compressed: bool) -> Result<Layer, ImageError> {
    let mut writer = BlobWriter::new(store)?;
    let mut buffered = std::io::BufWriter::with_capacity(256 << 10, &mut writer);
    if !compressed {
        root.write(&mut buffered)?;
        drop(buffered);
        let (digest, size) = writer.commit(store, None)?;
        return Ok(Layer { media_type: OCI_LAYER, diff_id: digest.clone(), digest, size });
    }
    let broken = || "cannot compress the layer".to_owned();
    let mut encoder = flate2::write::GzEncoder::new(&mut buffered, Compression::new(GZIP_LEVEL));
    let mut plain = Hashing::new(&mut encoder);
    root.write(&mut plain)?;
    let (_, diff_id, _) = plain.finish();
    encoder.finish().and_then(|buffered| buffered.flush()).context(broken)?;
    drop(buffered);
    let (digest, size) = writer.commit(store, None)?;
    Ok(Layer { media_type: OCI_LAYER_GZIP, digest, size, diff_id })
}

/// Writes the blobs that are not here yet, and tags the image. Blocks.
pub(super) fn image(
    store: &Store,
    root: RootFs,
    program: Program,
    request: &BuildRequest,
    platform: &Platform,
) -> Result<String, ImageError> {
    let reference = Reference::parse(&request.tag)?;
    let layer = layer(store, root, request.compressed)?;
    let mut env = vec![format!("PATH={PATH}")];
    env.extend(program.env);
    if let Some(bad) = request.env.iter().find(|e| !e.contains('=')) {
        return Err(ImageError::Build(format!("environment {bad:?} must be KEY=value")));
    }
    env.extend(request.env.iter().cloned());
    let config = Config {
        architecture: &platform.architecture,
        os: &platform.os,
        config: Run {
            user: request.user.as_deref().unwrap_or(NONROOT),
            env,
            entrypoint: &program.entrypoint,
            cmd: &request.args,
            working_dir: "/",
            labels: &request.labels,
        },
        rootfs: Layers { r#type: "layers", diff_ids: [&layer.diff_id] },
        history: [History { created: "1970-01-01T00:00:00Z", created_by: "cluster-images" }],
    };
    let json = |e: serde_json::Error| ImageError::Internal(e.to_string());
    let config = serde_json::to_vec(&config).map_err(json)?;
    let config_digest = store.put_blob(&config)?;
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::new(OCI_CONFIG, config_digest, config.len() as u64),
        layers: vec![Descriptor::new(layer.media_type, layer.digest, layer.size)],
        subject: None,
        annotations: None,
    };
    let bytes = serde_json::to_vec(&manifest).map_err(json)?;
    let digest = store.put_blob(&bytes)?;
    let tagged =
        store.lookup(&reference).is_some_and(|(d, origin)| d == digest && origin == crate::Origin::Local);
    if !tagged {
        let entry = Entry::new(&Manifest::Image(manifest), OCI_MANIFEST, bytes.len() as u64);
        store.record(&store.local_repository(&reference), &[reference.tag_or_latest()], &digest, entry)?;
    }
    Ok(digest.to_string())
}
