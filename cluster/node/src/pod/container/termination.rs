//! What a container says at its end.

use std::path::Path;

use k8s_openapi::api::core::v1::Container;

/// What the container left to say: the end of its file, or the end of its log if it failed and asked for that.
pub(super) fn message(container: &Container, file: &Path, log: &Path, code: i32) -> Option<String> {
    const MOST: u64 = 4096;
    const MOST_OF_LOG: usize = 2048;
    const LINES: usize = 80;
    /// As many short lines with their times.
    const PART_OF_LOG: u64 = 8192;
    let mut text = end_of(file, MOST).unwrap_or_default();
    let _ = std::fs::remove_file(file);
    let fallback = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if text.is_empty() && fallback && code != 0 {
        let records = end_of(log, PART_OF_LOG).unwrap_or_default();
        let records = records.strip_suffix(b"\n").unwrap_or(&records);
        let lines: Vec<&[u8]> = records
            .split(|byte| *byte == b'\n')
            .map(|line| line.splitn(4, |byte| *byte == b' ').nth(3).unwrap_or_default())
            .collect();
        text = lines[lines.len().saturating_sub(LINES)..].join(&b'\n');
        text.drain(..text.len().saturating_sub(MOST_OF_LOG));
    }
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}

/// The last bytes of a file, however long it is.
fn end_of(file: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn termination_messages_fall_back_to_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let (file, log) = (folder.path().join("t"), folder.path().join("l"));
        std::fs::write(&log, "2026-01-01T00:00:00Z stderr F it broke\n").unwrap();
        let container: Container =
            serde_json::from_value(json!({"name": "c", "terminationMessagePolicy": "FallbackToLogsOnError"}))
                .unwrap();
        std::fs::write(&file, "").unwrap();
        assert_eq!(message(&container, &file, &log, 1).as_deref(), Some("it broke"));
        assert_eq!(message(&container, &file, &log, 0), None);
        std::fs::write(&file, "mine").unwrap();
        assert_eq!(message(&container, &file, &log, 0).as_deref(), Some("mine"));
        // Whatever a container writes, and however much: the end of it.
        std::fs::write(&file, [b"begin ".repeat(10_000).as_slice(), b"\xff the end"].concat()).unwrap();
        let said = message(&container, &file, &log, 0).unwrap();
        assert!(said.ends_with("\u{fffd} the end") && said.len() < 4100, "{said}");
        let record = |number: usize| format!("2026-01-01T00:00:00Z stderr F line {number}\n").into_bytes();
        let records: Vec<u8> =
            (0..10_000).flat_map(record).chain(*b"2026-01-01T00:00:00Z stderr F \xff\n").collect();
        std::fs::write(&log, records).unwrap();
        let said = message(&container, &file, &log, 1).unwrap();
        assert!(said.starts_with("line 9921\n") && said.ends_with("line 9999\n\u{fffd}"), "{said}");
    }
}
