use super::*;

fn scan(bytes: &[u8]) -> Result<Scanner, Violation> {
    let mut scanner = Scanner::new(64 << 10);
    scanner.feed(bytes).map(|()| scanner).map_err(|refused| refused.why)
}

/// In one piece, byte by byte, and cut in two anywhere: what comes out is the same.
fn verdict(text: &str) -> Result<bool, Violation> {
    let whole = scan(text.as_bytes()).map(|s| s.between_requests());
    for cut in 0..text.len() {
        let mut scanner = Scanner::new(64 << 10);
        let (a, b) = text.as_bytes().split_at(cut);
        let parts = scanner.feed(a).and_then(|()| scanner.feed(b));
        assert_eq!(parts.map(|()| scanner.between_requests()).map_err(|r| r.why), whole, "cut at {cut}");
    }
    whole
}

#[test]
fn whole_requests_pass() {
    for text in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\r\nGET /x?y=1 HTTP/1.1\r\nhost: a.b:80\r\nx: \u{e9} \t\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: [::1]:8080\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhel\nl\r\nA;x=\"y\"\r\n0123456789\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
    ] {
        assert_eq!(verdict(text), Ok(true), "{text:?}");
    }
}

#[test]
fn what_two_could_read_in_two_ways_is_refused() {
    let head = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n");
    let chunked = |body: &str| head("Transfer-Encoding: chunked") + body;
    let get = |line: &str, host: &str| format!("{line}\r\n{host}\r\n\r\n");
    for (text, why) in [
        (head("Content-Length: 5\r\nTransfer-Encoding: chunked"), Violation::BothLengths),
        (head("Transfer-Encoding: chunked\r\nContent-Length: 5"), Violation::BothLengths),
        (head("Content-Length: 5\r\nContent-Length: 5"), Violation::ContentLength),
        (head("Content-Length: 5, 5"), Violation::ContentLength),
        (head("Content-Length: +5"), Violation::ContentLength),
        (head("Content-Length: -1"), Violation::ContentLength),
        (head("Content-Length: 0x5"), Violation::ContentLength),
        (head("Content-Length:"), Violation::ContentLength),
        (head("Content-Length: 99999999999999999999"), Violation::ContentLength),
        (head("Transfer-Encoding: gzip, chunked"), Violation::TransferEncoding),
        (head("Transfer-Encoding: chunked, gzip"), Violation::TransferEncoding),
        (head("Transfer-Encoding: xchunked"), Violation::TransferEncoding),
        (head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Violation::TransferEncoding),
        (head("Transfer-Encoding: identity"), Violation::TransferEncoding),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), Violation::TransferEncoding),
        (head("Transfer-Encoding : chunked"), Violation::HeaderName),
        (head("Content-Length\t: 5"), Violation::HeaderName),
        (head("no colon"), Violation::HeaderName),
        (head(": x"), Violation::HeaderName),
        (head("X: 1\r\n Content-Length: 5"), Violation::ObsFold),
        (head("X: 1\r\n\tmore"), Violation::ObsFold),
        (head("X: 1\nContent-Length: 5"), Violation::BareLineFeed),
        (head("X: a\0b"), Violation::Control),
        (head("X: a\rb"), Violation::Control),
        (head("X: a\x0bb"), Violation::Control),
        (head("X: a\x7fb"), Violation::Control),
        (head("Host: b"), Violation::Host),
        (get("GET / HTTP/1.1", "X: 1"), Violation::Host),
        (get("GET / HTTP/1.1", "Host: a b"), Violation::Host),
        (get("GET / HTTP/1.1", "Host: a/b"), Violation::Host),
        (get("GET / HTTP/1.1", "Host: u@a"), Violation::Host),
        (get("GET / HTTP/1.1", "Host: a, b"), Violation::Host),
        (get("GET x HTTP/1.1", "Host: a"), Violation::Target),
        (get("GET a.internal:80 HTTP/1.1", "Host: a"), Violation::Target),
        (get("GET * HTTP/1.1", "Host: a"), Violation::Target),
        (get("GET /#f HTTP/1.1", "Host: a"), Violation::Target),
        (get("GET ftp://a/ HTTP/1.1", "Host: a"), Violation::Target),
        (get("GET  / HTTP/1.1", "Host: a"), Violation::RequestLine),
        (get("GET / HTTP/1.1 ", "Host: a"), Violation::RequestLine),
        (get("GET /a b HTTP/1.1", "Host: a"), Violation::RequestLine),
        (get("GET / HTTP/1.2", "Host: a"), Violation::RequestLine),
        (get("GET /", "Host: a"), Violation::RequestLine),
        (get("G\"T / HTTP/1.1", "Host: a"), Violation::RequestLine),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), Violation::BareLineFeed),
        (chunked("5 \r\nhello\r\n"), Violation::Chunk),
        (chunked("0x5\r\nhello\r\n"), Violation::Chunk),
        (chunked("-5\r\n"), Violation::Chunk),
        (chunked("\r\n"), Violation::Chunk),
        (chunked("g\r\n"), Violation::Chunk),
        (chunked("10000000000000005\r\nhello\r\n"), Violation::Chunk),
        (chunked("5\nhello\r\n"), Violation::BareLineFeed),
        (chunked("5\r\nhello\n"), Violation::BareLineFeed),
        (chunked("5\r\nhello!\r\n"), Violation::Chunk),
        (chunked("5;a\0\r\nhello\r\n"), Violation::Control),
        (chunked("0\r\nContent-Length: 5\r\n\r\n"), Violation::Trailer),
        (chunked("0\r\nhost : a\r\n\r\n"), Violation::HeaderName),
        (chunked("0\r\nX: 1\n\r\n"), Violation::BareLineFeed),
    ] {
        assert_eq!(verdict(&text), Err(why), "{text:?}");
    }
    let endless = chunked(&format!("5;{}\r\nhello\r\n", "x".repeat(CHUNK_LINE)));
    assert_eq!(scan(endless.as_bytes()).map(drop), Err(Violation::TooLong));
    let endless = chunked(&format!("0\r\n{}", "x: 1\r\n".repeat(TRAILERS)));
    assert_eq!(scan(endless.as_bytes()).map(drop), Err(Violation::TooLong));
}

#[test]
fn after_a_wish_for_another_protocol_bytes_mean_nothing() {
    let ask = |lines: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n\0\0\n");
    assert!(
        scan(ask("Connection: keep-alive, Upgrade\r\nUpgrade: websocket").as_bytes()).unwrap().is_opaque()
    );
    assert!(scan(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n\x16\x03\n").unwrap().is_opaque());
    // A server may ignore these; then the next bytes are a request.
    for lines in ["Upgrade: websocket", "Connection: upgrade", "Connection: Upgrade\r\nUpgrade: h2c"] {
        assert!(scan(ask(lines).as_bytes()).is_err(), "{lines}");
    }
    let with_body =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nx\0\n";
    assert!(scan(with_body.as_bytes()).is_err());
}
