//! Header blocks: names and values in one zlib stream for each direction of a connection, primed with a dictionary that both sides know.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::SpdyError;

/// Lower-case names to values.
pub(in crate::server) type Headers = BTreeMap<String, String>;

/// Adler-32 of the dictionary, as a zlib stream names it.
const CHECKSUM: u32 = 0xe3c6_a7c2;
/// The head of a zlib stream: method and level, then with `PRESET` the checksum of the dictionary.
const ZLIB: usize = 2;
const PRESET: u8 = 0x20;
/// Inflated headers of one stream.
const MAX_HEADERS: usize = 64 * 1024;

/// The dictionary's first part: words, each with its length before it.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow \
    authorization cache-control connection content-base content-encoding content-language content-length content-location content-md5 \
    content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since \
    last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer \
    transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
/// The dictionary's second part.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative \
    Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 \
    Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, \
    GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut text = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace() {
        let word = word.replace('_', " ");
        text.put_u32(word.len() as u32);
        text.put_slice(word.as_bytes());
    }
    text.put_slice(TEXT.as_bytes());
    text
}

/// A block of deflate that is stored as it is, not the last one.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let mut block = vec![0];
    block.put_u16_le(length);
    block.put_u16_le(!length);
    block.put_slice(&bytes[..usize::from(length)]);
    block
}

/// A block without headers. It is stored rather than compressed, which the format allows, with the empty block after it that tells the
/// reader to give out what it has.
pub(super) fn empty(first: bool) -> Vec<u8> {
    let mut block = Vec::new();
    if first {
        block.put_slice(&[0x78, PRESET]);
        block.put_u32(CHECKSUM);
    }
    block.put_slice(&stored(&[0; 4]));
    block.put_slice(&stored(&[]));
    block
}

/// Reads the header blocks of a connection, each in its turn.
#[derive(Debug, Default)]
pub(super) struct Inflater {
    deflate: Option<Decompress>,
}

impl Inflater {
    pub(super) fn headers(&mut self, mut block: &[u8]) -> Result<Headers, SpdyError> {
        if self.deflate.is_none() {
            let (deflate, rest) = begin(block)?;
            self.deflate = Some(deflate);
            block = rest;
        }
        let Some(deflate) = &mut self.deflate else { return Err(SpdyError::Headers("no stream")) };
        parse(&inflate(deflate, block)?)
    }
}

/// Takes the head of the zlib stream off and readies what follows. The dictionary goes in as if it had been sent first: to a deflate reader
/// that is the same, and needs no support for dictionaries.
fn begin(block: &[u8]) -> Result<(Decompress, &[u8]), SpdyError> {
    let wrong = SpdyError::Headers("no zlib stream with SPDY's dictionary");
    let Some((head, mut rest)) = block.split_at_checked(ZLIB) else { return Err(wrong) };
    if head[0] & 0x0f != 8 || u16::from_be_bytes([head[0], head[1]]) % 31 != 0 {
        return Err(wrong);
    }
    let mut deflate = Decompress::new(false);
    if head[1] & PRESET != 0 {
        if rest.len() < 4 || rest.get_u32() != CHECKSUM {
            return Err(wrong);
        }
        inflate(&mut deflate, &stored(&dictionary()))?;
    }
    Ok((deflate, rest))
}

fn inflate(deflate: &mut Decompress, mut input: &[u8]) -> Result<BytesMut, SpdyError> {
    let mut output = BytesMut::new();
    let mut chunk = [0; 4096];
    loop {
        let (read, written) = (deflate.total_in(), deflate.total_out());
        let status = deflate
            .decompress(input, &mut chunk, FlushDecompress::Sync)
            .map_err(|_| SpdyError::Headers("they cannot be inflated"))?;
        let read = (deflate.total_in() - read) as usize;
        let written = (deflate.total_out() - written) as usize;
        input = &input[read..];
        output.put_slice(&chunk[..written]);
        if output.len() > MAX_HEADERS {
            return Err(SpdyError::Headers("there are too many"));
        }
        match status {
            Status::StreamEnd => return Err(SpdyError::Headers("their stream has ended")),
            // More may wait for room as long as the last room was filled.
            _ if written == chunk.len() => {}
            _ if input.is_empty() || read == 0 => return Ok(output),
            _ => {}
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, SpdyError> {
    const SHORT: SpdyError = SpdyError::Headers("they are cut short");
    fn number(block: &mut &[u8]) -> Result<usize, SpdyError> {
        if block.len() < 4 { Err(SHORT) } else { Ok(block.get_u32() as usize) }
    }
    fn text(block: &mut &[u8]) -> Result<String, SpdyError> {
        let length = number(block)?;
        let (text, rest) = block.split_at_checked(length).ok_or(SHORT)?;
        *block = rest;
        Ok(String::from_utf8_lossy(text).into_owned())
    }
    let mut headers = Headers::new();
    for _ in 0..number(&mut block)? {
        let name = text(&mut block)?;
        headers.insert(name.to_ascii_lowercase(), text(&mut block)?);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_specifications() {
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((b << 16 | a, dictionary().len()), (CHECKSUM, 1423));
    }

    #[test]
    fn blocks_made_here_can_be_read_here() {
        let mut inflater = Inflater::default();
        assert_eq!(inflater.headers(&empty(true)).unwrap(), Headers::new());
        let mut block = Vec::new();
        block.put_u32(1);
        for text in ["Port", "80"] {
            block.put_u32(text.len() as u32);
            block.put_slice(text.as_bytes());
        }
        let block = [stored(&block), stored(&[])].concat();
        assert_eq!(inflater.headers(&block).unwrap()["port"], "80");
    }

    #[test]
    fn lies_about_lengths_are_errors() {
        for block in [&[0, 0, 0, 9][..], &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff], &[0, 0]] {
            assert!(parse(block).is_err(), "{block:?}");
        }
    }
}
