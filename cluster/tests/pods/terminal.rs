//! kubectl at a terminal, as a person has it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex};

use nix::pty::{Winsize, openpty};

use crate::world::PATIENCE;

pub(crate) struct Terminal {
    child: Child,
    master: File,
    said: Arc<(Mutex<String>, Condvar)>,
    /// What has been looked at.
    seen: usize,
}

impl Terminal {
    pub(crate) fn of(mut command: Command, columns: u16, rows: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).unwrap();
        let slave = File::from(pair.slave);
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let child = command.spawn().unwrap();
        drop(command);
        let master = File::from(pair.master);
        let said = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let (mut reader, heard) = (master.try_clone().unwrap(), Arc::clone(&said));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                heard.0.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
                heard.1.notify_all();
            }
        });
        Self { child, master, said, seen: 0 }
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the text is on the screen, after what was waited for before.
    pub(crate) fn expect(&mut self, text: &str) {
        let (lock, changed) = &*self.said;
        let found = |said: &str| said[self.seen..].find(text).map(|at| self.seen + at + text.len());
        let (said, _) =
            changed.wait_timeout_while(lock.lock().unwrap(), PATIENCE, |said| found(said).is_none()).unwrap();
        self.seen = found(&said).unwrap_or_else(|| panic!("{text:?} is not in {said:?}"));
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).unwrap();
        // The kernel tells the terminal's foreground group, which a program that was not started by a shell has none of.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH).unwrap();
    }

    pub(crate) fn end(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
