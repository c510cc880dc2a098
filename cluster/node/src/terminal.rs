//! The master of a terminal, read and written without a thread that waits for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One user of a master: each reader and each writer has its own, by [`Terminal::another`].
#[derive(Debug)]
pub(crate) struct Terminal {
    fd: AsyncFd<OwnedFd>,
}

impl Terminal {
    pub(crate) fn new(master: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: the descriptor is owned by what is registered and is given to nobody who could close it, so it stays open and the same
        // as long as the registration.
        #[allow(unsafe_code)]
        let fd = unsafe { AsyncFd::register(master) }.map_err(io::Error::other)?;
        Ok(Self { fd })
    }

    pub(crate) fn another(master: &OwnedFd) -> io::Result<Self> {
        Self::new(master.try_clone()?)
    }

    /// Tells the processes at the terminal how large it is.
    pub(crate) fn resize(master: BorrowedFd<'_>, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // Whoever has ended does not need to know.
        let _ = rustix::termios::tcsetwinsize(master, size);
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), unfilled)?)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // The last process at the terminal has ended: for a reader, its end.
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A terminal has no half-close; its user types the end, which the client sends as a character.
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn both_ways_and_the_end() {
        let pair = nix::pty::openpty(None, None).unwrap();
        let (mut reader, mut writer) =
            (Terminal::another(&pair.master).unwrap(), Terminal::new(pair.master).unwrap());
        let mut slave = std::fs::File::from(pair.slave);
        slave.write_all(b"out\n").unwrap();
        let mut heard = [0; 5];
        reader.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"out\r\n");
        writer.write_all(b"in\n").await.unwrap();
        let mut line = [0; 3];
        slave.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"in\n");
        Terminal::resize(writer.as_fd(), 100, 30);
        assert_eq!(rustix::termios::tcgetwinsize(&slave).unwrap().ws_col, 100);
        drop(slave);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"in\r\n", "its own echo, then the end");
    }
}
