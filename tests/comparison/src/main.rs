//! The embedded API server held against a real one: the same commands on both, and what they print compared.
//!
//! `cargo run -p comparison [-- FILTER]` starts both sides (the real one from the binaries that `tests/kubernetes/build.sh`
//! leaves in its cache, and etcd), gives each a node that only says that pods run, runs the steps of `cases/*.txt` on both,
//! and compares output and exit code after [`normal`] has taken out what must differ. It fails on a difference that
//! `accepted.txt` does not list, and on one listed there that is no more.
//!
//! `--keep DIR` leaves what each side printed there; `--embedded-only` prints the embedded side's output and compares nothing.

mod accepted;
mod api;
mod case;
mod diff;
mod hooks;
mod node;
mod normal;
mod run;
mod side;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// What the command line says.
#[derive(Default)]
struct Options {
    /// Only files and steps whose `file: title` contains this.
    filter: Option<String>,
    /// Where to leave both outputs.
    keep: Option<PathBuf>,
    /// Run on the embedded side only.
    embedded_only: bool,
    /// Write the list of accepted differences anew from what was seen, keeping known reasons.
    accept: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--embedded-only" => options.embedded_only = true,
                "--accept" => options.accept = true,
                "--keep" => options.keep = Some(arguments.next().context("--keep needs a folder")?.into()),
                other if other.starts_with('-') => {
                    bail!("{other} is unknown: [FILTER] [--keep DIR] [--embedded-only] [--accept]")
                }
                other => options.filter = Some(other.to_owned()),
            }
        }
        Ok(options)
    }
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let own = arguments.next().unwrap_or_default();
    // The steps' `api` command is this program under another name.
    let is_api = Path::new(&own).file_name().is_some_and(|name| name == "api");
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Ok(runtime) = tokio::runtime::Runtime::new() else {
        eprintln!("no runtime: the system gave no threads");
        return ExitCode::FAILURE;
    };
    let result = runtime.block_on(async {
        if is_api { api::main(arguments).await } else { compare(Options::parse(arguments)?).await }
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn compare(options: Options) -> Result<bool> {
    let files = case::read(&folder().join("cases"), options.filter.as_deref())?;
    let scratch = tempfile::Builder::new().prefix("comparison-").tempdir().context("no temporary folder")?;
    let tools = run::tools(scratch.path())?;
    let embedded = side::Embedded::start(&scratch.path().join("embedded"), &tools).await?;
    let real = match options.embedded_only {
        true => None,
        false => Some(side::Real::start(&scratch.path().join("real"), &tools).await?),
    };
    let mut sides = vec![&embedded.side];
    sides.extend(real.as_ref().map(|real| &real.side));
    let results = run::all(&files, &sides, &tools).await?;
    let verdict = match &real {
        None => {
            for result in &results {
                println!("=== {}: {}\n{}", result.file, result.title, result.embedded);
            }
            Ok(true)
        }
        Some(_) => judge(&results, &options),
    };
    if let Some(keep) = &options.keep {
        run::keep(keep, &results)?;
        for side in &sides {
            run::keep_logs(keep, side)?;
        }
    }
    embedded.stop().await;
    if let Some(real) = real {
        real.stop().await;
    }
    verdict
}

/// Prints the differences that are not accepted and the accepted ones that are gone; true if there are none.
fn judge(results: &[run::Outcome], options: &Options) -> Result<bool> {
    let path = folder().join("accepted.txt");
    let accepted = accepted::read(&path)?;
    if options.accept {
        accepted::write(&path, &accepted, results)?;
    }
    let (mut different, mut gone, mut known) = (0, 0, 0);
    for result in results {
        let found = diff::lines(&result.real, &result.embedded);
        let listed = accepted.iter().find(|entry| entry.file == result.file && entry.title == result.title);
        match listed {
            None if found.is_empty() => {}
            Some(entry) if entry.lines == found => known += 1,
            Some(entry) if found.is_empty() => {
                gone += 1;
                println!(
                    "=== {}: {}\naccepted.txt lists a difference that is no more; take it out:",
                    result.file, result.title
                );
                println!("{}", entry.lines.join("\n"));
            }
            _ => {
                different += 1;
                println!(
                    "=== {}: {}\n{}\n--- real, + embedded",
                    result.file,
                    result.title,
                    result.script.trim_end()
                );
                println!("{}", diff::with_context(&result.real, &result.embedded));
            }
        }
    }
    let steps = results.len();
    let commands: usize = results.iter().map(|result| result.commands).sum();
    println!(
        "{steps} steps, {commands} commands: {different} different, {known} different as accepted, {gone} accepted but no more, {} equal",
        steps - different - known - gone
    );
    let unknown = accepted.iter().filter(|entry| {
        options.filter.is_none() && !results.iter().any(|r| r.file == entry.file && r.title == entry.title)
    });
    let mut stale = 0;
    for entry in unknown {
        stale += 1;
        println!("accepted.txt names a step that is not there: {}: {}", entry.file, entry.title);
    }
    Ok(different == 0 && gone == 0 && stale == 0)
}
