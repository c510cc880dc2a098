//! How a layer or archive is compressed, told by its first bytes: media types are often wrong.

use std::io::{self, BufRead, BufReader, Read};

/// Compression of a tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // Skippable frames of zstd, which zstd:chunked starts with.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// What a layer's media type ends with.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
        }
    }
}

/// A reader of the plain content, whatever it is compressed with.
pub(crate) fn decompress<'a, R: Read + 'a>(reader: R) -> io::Result<(Box<dyn Read + 'a>, Compression)> {
    let mut reader = BufReader::with_capacity(128 << 10, reader);
    let compression = Compression::of(reader.fill_buf()?);
    Ok((
        match compression {
            Compression::Plain => Box::new(reader),
            // Several members in a row are one stream: pigz, stargz.
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
            Compression::Zstd => Box::new(zstd::Decoder::with_buffer(reader)?),
        },
        compression,
    ))
}
