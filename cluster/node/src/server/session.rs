//! The streams of a remote command between here and a client, whatever carries them: a WebSocket with a channel's number before each message
//! (`v4.channel.k8s.io`, and `v5`, which can close one channel), or SPDY with a stream for each (`remotecommand` of k8s.io/client-go).

mod spdy;
mod websocket;

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::runtime::Exit;

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
/// What became of the command; its message is the last one.
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// What the client sends.
#[derive(Debug)]
pub(super) enum Input {
    Bytes(Bytes),
    /// The end of standard input.
    End,
    /// Columns and rows of the client's terminal.
    Resize(u16, u16),
}

/// The client's side: what it types and where answers go, each with its channel.
#[derive(Debug)]
pub(super) struct Session {
    /// Ends when the client is gone.
    pub(super) input: mpsc::Receiver<Input>,
    pub(super) output: mpsc::Sender<(u8, Bytes)>,
}

/// The tasks that move messages.
pub(super) struct Moving {
    output: mpsc::Sender<(u8, Bytes)>,
    writer: JoinHandle<()>,
    reader: JoinHandle<()>,
}

impl Moving {
    /// Tells the client what became of the command, after all that has been said, and ends the connection.
    pub(super) async fn finish(self, result: Result<Exit, String>) {
        let _ = self.output.send((ERROR, verdict(&result).to_string().into())).await;
        drop(self.output);
        let _ = tokio::time::timeout(Duration::from_secs(5), self.writer).await;
        self.reader.abort();
    }
}

/// A new size of the client's terminal.
fn size(message: &[u8]) -> Option<Input> {
    let size: Value = serde_json::from_slice(message).ok()?;
    let side = |name: &str| size[name].as_u64().and_then(|value| u16::try_from(value).ok());
    Some(Input::Resize(side("Width")?, side("Height")?))
}

/// The last message of a session, as client-go reads it.
fn verdict(result: &Result<Exit, String>) -> Value {
    match result {
        Ok(Exit { code: 0, .. }) => json!({ "metadata": {}, "status": "Success" }),
        Ok(Exit { code, .. }) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(message) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("error executing command in container: {message}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_what_client_go_reads() {
        let failed = verdict(&Ok(Exit { code: 3, signal: None, oom: false }));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "3" }));
        assert_eq!(verdict(&Ok(Exit { code: 0, signal: None, oom: false }))["status"], "Success");
        assert_eq!(verdict(&Err("x".to_owned()))["status"], "Failure");
    }

    #[test]
    fn sizes() {
        assert!(matches!(size(b"{\"Width\":80,\"Height\":24}"), Some(Input::Resize(80, 24))));
        assert!(size(b"{\"Width\":80}").is_none());
        assert!(size(b"{\"Width\":80,\"Height\":70000}").is_none());
    }
}
