//! Builds the sidecar as a small static binary, so that `ebb` can carry it inside itself and stand alone on another machine.
//!
//! A target folder of its own keeps this build from waiting on the lock of the build that it is part of. `EBB_SIDECAR=FILE` takes a
//! binary that is already there instead.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    println!("cargo::rerun-if-env-changed=EBB_SIDECAR");
    let binary = match env::var_os("EBB_SIDECAR") {
        Some(path) => PathBuf::from(path),
        None => build_sidecar(),
    };
    println!("cargo::rerun-if-changed={}", binary.display());
    println!("cargo::rustc-env=EBB_SIDECAR_BINARY={}", binary.display());
}

fn build_sidecar() -> PathBuf {
    // Asked when it runs, not when it was compiled: a build folder may serve several checkouts.
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let root = manifest.parent().map(Path::to_path_buf).unwrap_or_default();
    for input in ["queue-proxy", "http", "mesh", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| "x86_64".into());
    let target = format!("{arch}-unknown-linux-gnu");
    let out = target_folder().join("sidecar");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&root)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "sidecar",
            "-p",
            "ebb-queue-proxy",
            "--bin",
            "queue-proxy",
        ])
        .args(["--target", &target, "--target-dir"])
        .arg(&out)
        // What the outer build was told (flags, wrappers of clippy) is not meant for this one.
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CLIPPY_ARGS");
    match cargo.status() {
        Ok(status) if status.success() => out.join(&target).join("sidecar").join("queue-proxy"),
        Ok(status) => fail(&format!("building the sidecar ended with {status}; its errors are above")),
        Err(e) => fail(&format!("cannot run cargo to build the sidecar: {e}")),
    }
}

/// The workspace's target folder: OUT_DIR is `target/PROFILE/build/ebb-HASH/out`.
fn target_folder() -> PathBuf {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    out.ancestors().nth(4).map_or_else(|| out.clone(), Path::to_path_buf)
}

fn fail(why: &str) -> ! {
    eprintln!("{why}");
    exit(1)
}
