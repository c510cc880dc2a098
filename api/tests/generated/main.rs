//! `config/`, the Helm chart and `docs/reference` are written by `EBB_GENERATE=1 cargo test -p ebb-api --test generated`; without the variable, these tests
//! fail when what is there differs from what would be written.

mod annotations;
mod chart;
mod config;
mod reference;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ebb_api::manifests::{Options, Stage, manifests};
use serde_json::Value;

/// Files by their path in a folder.
type Files = BTreeMap<String, String>;

const ORIGIN: &str = "# Generated from api/src/manifests.rs by `EBB_GENERATE=1 cargo test -p ebb-api --test generated`: change it there.\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

fn stages() -> Vec<Stage> {
    manifests(&Options::default())
}

fn yaml(objects: &[Value]) -> String {
    let documents =
        objects.iter().map(|o| serde_saphyr::to_string(o).expect("YAML").trim_end().to_owned() + "\n");
    documents.collect::<Vec<_>>().join("---\n")
}

/// Writes the files into the folder, or holds them against what is there; what is there besides must be one of `others`.
fn settle(folder: &str, files: &Files, others: &[&str]) {
    let folder = root().join(folder);
    let there = present(&folder, "");
    let stale: Vec<_> =
        there.iter().filter(|f| !files.contains_key(*f) && !others.contains(&f.as_str())).collect();
    if std::env::var_os("EBB_GENERATE").is_some() {
        for file in stale {
            fs::remove_file(folder.join(file)).expect("removed");
        }
        for (name, text) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        return;
    }
    let again = "run `EBB_GENERATE=1 cargo test -p ebb-api --test generated`";
    assert!(stale.is_empty(), "{stale:?} in {} would not be generated: {again}", folder.display());
    for (name, text) in files {
        let found = fs::read_to_string(folder.join(name)).unwrap_or_default();
        let differs = found.lines().zip(text.lines()).position(|(a, b)| a != b);
        assert!(
            found == *text,
            "{folder:?}/{name} is not what would be generated (line {differs:?}): {again}"
        );
    }
}

fn present(folder: &Path, prefix: &str) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.expect("an entry");
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            all.extend(present(&entry.path(), &format!("{name}/")));
        } else {
            all.push(name);
        }
    }
    all
}
