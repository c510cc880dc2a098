//! OCI image layout: `index.json` and `blobs/`.

use super::{Found, source::Source};
use crate::{
    Digest, ImageError, Reference, Store,
    manifest::{Descriptor, ImageIndex, Manifest},
};

/// Full names, as containerd writes them.
const FULL_NAME: &str = "io.containerd.image.name";
/// A tag, or a full name: the specification leaves it open.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

pub(super) fn read(store: &Store, source: &Source) -> Result<Option<Vec<Found>>, ImageError> {
    let Some(index) = source.document(store, "index.json")? else { return Ok(None) };
    let index: ImageIndex = serde_json::from_slice(&index)
        .map_err(|e| source.invalid(format!("its index.json cannot be read: {e}")))?;
    let mut found: Vec<Found> = Vec::new();
    for entry in &index.manifests {
        import(store, source, entry, 0)?;
        store.check_whole(source.what(), &entry.digest)?;
        let names = names(entry, source)?;
        // The same image under several names has an entry for each.
        match found.iter_mut().find(|f| f.digest == entry.digest) {
            Some(known) => known.names.extend(names),
            None => found.push(Found { digest: entry.digest.clone(), names }),
        }
    }
    for more in super::docker::names(store, source)? {
        let same = |f: &&mut Found| {
            store.platform_manifest("", &f.digest).is_ok_and(|(_, m)| m.config.digest == more.digest)
        };
        if let Some(image) = found.iter_mut().find(same).filter(|f| f.names.is_empty()) {
            image.names = more.names;
        }
    }
    Ok(Some(found))
}

/// Stores a manifest and what it names. Of an index, variants that the archive leaves out are left out.
fn import(store: &Store, source: &Source, entry: &Descriptor, depth: usize) -> Result<bool, ImageError> {
    let Some(_) = blob(store, source, &entry.digest)? else { return Ok(false) };
    let (manifest, _) = store.manifest(&entry.digest)?;
    if depth > 3 {
        return Err(source.invalid("its indexes are nested too deep"));
    }
    match &manifest {
        Manifest::Index(index) => {
            for child in &index.manifests {
                import(store, source, child, depth + 1)?;
            }
        }
        Manifest::Image(_) => {
            for child in manifest.children() {
                blob(store, source, &child.digest)?;
            }
        }
    }
    Ok(true)
}

fn blob(store: &Store, source: &Source, digest: &Digest) -> Result<Option<u64>, ImageError> {
    let name = format!("blobs/sha256/{}", digest.hex());
    match source.store_blob(store, &name, Some(digest))? {
        Some((_, size)) => Ok(Some(size)),
        // Archives may leave out what the other side is known to have.
        None => Ok(store.keep_blob(digest).then_some(0)),
    }
}

fn names(entry: &Descriptor, source: &Source) -> Result<Vec<Reference>, ImageError> {
    let annotation = |key| entry.annotations.as_ref().and_then(|a| a.get(key));
    let name = match (annotation(FULL_NAME), annotation(REF_NAME)) {
        (Some(full), _) => full,
        (None, Some(name)) if name.contains([':', '/']) => name,
        // Only a tag: a name for nothing.
        _ => return Ok(vec![]),
    };
    let reference = Reference::parse(name).map_err(|e| source.invalid(e))?;
    Ok(vec![reference])
}
