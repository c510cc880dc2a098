//! As much of ELF as tells what a program needs to be started: 64 bit, little endian, dynamic section.
//!
//! Source: System V ABI, gABI chapters 4 and 5. Files are hostile: every offset is checked, and nothing is allocated by a
//! number read from one.

/// What an ELF file says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Elf {
    /// In Go's names: `amd64`, `arm64`.
    pub(super) architecture: &'static str,
    /// The dynamic linker; none for a static program.
    pub(super) interpreter: Option<String>,
    pub(super) needed: Vec<String>,
    /// DT_RUNPATH, or DT_RPATH if there is none, split at colons.
    pub(super) run_path: Vec<String>,
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

pub(super) fn parse(file: &[u8]) -> Result<Elf, String> {
    if file.get(..4) != Some(b"\x7fELF") {
        return Err("it is not an ELF file".into());
    }
    if file.get(4..6) != Some(&[2, 1]) {
        return Err("it is not a 64 bit, little endian program, the only kind known here".into());
    }
    let broken = || "its ELF headers are damaged".to_owned();
    let architecture = match u16_at(file, 18).ok_or_else(broken)? {
        62 => "amd64",
        183 => "arm64",
        other => return Err(format!("it is for processor {other}, neither x86-64 nor aarch64")),
    };
    let table = u64_at(file, 32).ok_or_else(broken)?;
    let (size, count) = (u16_at(file, 54).ok_or_else(broken)?, u16_at(file, 56).ok_or_else(broken)?);
    let segments: Vec<Segment> = (0..u64::from(count))
        .map(|i| segment(file, table.checked_add(i * u64::from(size))?))
        .collect::<Option<_>>()
        .ok_or_else(broken)?;
    let mut elf = Elf { architecture, ..Elf::default() };
    if let Some(interpreter) = segments.iter().find(|s| s.kind == PT_INTERP) {
        elf.interpreter = Some(text(file, interpreter.offset).ok_or_else(broken)?);
    }
    let Some(dynamic) = segments.iter().find(|s| s.kind == PT_DYNAMIC) else { return Ok(elf) };
    let entries: Vec<(u64, u64)> = (0..dynamic.size / 16)
        .map_while(|i| {
            let at = dynamic.offset.checked_add(i * 16)?;
            Some((u64_at(file, at)?, u64_at(file, at + 8)?)).filter(|(tag, _)| *tag != 0)
        })
        .collect();
    let value = |tag| entries.iter().find(|(t, _)| *t == tag).map(|(_, v)| *v);
    let Some(strings) = value(DT_STRTAB) else { return Ok(elf) };
    // The table is named by its address once loaded; where that is in the file, the segments say.
    let strings = segments
        .iter()
        .filter(|s| s.kind == PT_LOAD)
        .find(|s| strings >= s.address && strings - s.address < s.size)
        .and_then(|s| s.offset.checked_add(strings - s.address))
        .ok_or_else(broken)?;
    let string = |at: u64| strings.checked_add(at).and_then(|at| text(file, at));
    for (_, name) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED) {
        elf.needed.push(string(*name).ok_or_else(broken)?);
    }
    if let Some(path) = value(DT_RUNPATH).or_else(|| value(DT_RPATH)) {
        elf.run_path = string(path).ok_or_else(broken)?.split(':').map(str::to_owned).collect();
    }
    Ok(elf)
}

fn segment(file: &[u8], at: u64) -> Option<Segment> {
    Some(Segment {
        kind: u32::from_le_bytes(bytes(file, at)?),
        offset: u64_at(file, at.checked_add(8)?)?,
        address: u64_at(file, at.checked_add(16)?)?,
        size: u64_at(file, at.checked_add(32)?)?,
    })
}

fn bytes<const N: usize>(file: &[u8], at: u64) -> Option<[u8; N]> {
    let at = usize::try_from(at).ok()?;
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(file: &[u8], at: u64) -> Option<u16> {
    bytes(file, at).map(u16::from_le_bytes)
}

fn u64_at(file: &[u8], at: u64) -> Option<u64> {
    bytes(file, at).map(u64::from_le_bytes)
}

/// A string ended by NUL; none has more than a path may have.
fn text(file: &[u8], at: u64) -> Option<String> {
    let rest = file.get(usize::try_from(at).ok()?..)?;
    let end = rest.iter().take(4096).position(|b| *b == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_program_needs_libc() {
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = parse(&file).unwrap();
        assert_eq!(elf.architecture, crate::Platform::host().architecture);
        assert!(elf.interpreter.as_ref().is_some_and(|i| i.contains("/ld-")), "{elf:?}");
        assert!(elf.needed.iter().any(|n| n.starts_with("libc.")), "{elf:?}");
    }

    #[test]
    fn damaged_headers_are_errors_not_panics() {
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let head = &file[..4096.min(file.len())];
        for cut in (0..head.len()).step_by(7) {
            let _ = parse(&head[..cut]);
        }
        for at in 16..256 {
            for value in [0, 0x7f, 0xff] {
                let mut copy = head.to_vec();
                copy[at] = value;
                let _ = parse(&copy);
            }
        }
        assert!(parse(b"#!/bin/sh").is_err());
        assert!(parse(b"\x7fELF\x01\x01").unwrap_err().contains("64 bit"));
    }
}
