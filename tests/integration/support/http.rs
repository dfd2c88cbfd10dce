//! Just enough HTTP/1.1 over a unix socket: heads are parsed by `httparse`, bodies are framed by what the head says.
//!
//! On purpose not the client the product uses: tests look at the engine through another pair of eyes.

use std::io::{self, BufRead};

/// Longest head accepted, in bytes.
const HEAD_LIMIT: usize = 64 * 1024;

/// How the end of a body is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// So many bytes follow; zero means no body.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Everything until the peer closes. After a protocol upgrade this is a raw stream in both directions.
    UntilClose,
}

/// The head of a request, with its bytes as they came.
#[derive(Clone, Debug)]
pub(crate) struct RequestHead {
    pub(crate) raw: Vec<u8>,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) framing: Framing,
}

/// The head of a response, with its bytes as they came.
#[derive(Clone, Debug)]
pub(crate) struct ResponseHead {
    pub(crate) raw: Vec<u8>,
    pub(crate) status: u16,
    pub(crate) framing: Framing,
}

fn invalid(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

/// Reads up to and including the empty line. `None` when the peer closed between messages.
fn read_raw_head(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut raw = Vec::new();
    loop {
        let before = raw.len();
        if reader.read_until(b'\n', &mut raw)? == 0 {
            return if raw.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        if raw.len() > HEAD_LIMIT {
            return Err(invalid("head too long"));
        }
        if matches!(raw.get(before..), Some(b"\r\n" | b"\n")) {
            return Ok(Some(raw));
        }
    }
}

fn declared(headers: &[httparse::Header<'_>]) -> io::Result<Option<Framing>> {
    let value = |name: &str| {
        let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.map(|header| String::from_utf8_lossy(header.value).trim().to_ascii_lowercase())
    };
    if value("transfer-encoding").is_some_and(|coding| coding.ends_with("chunked")) {
        return Ok(Some(Framing::Chunked));
    }
    let length = value("content-length").map(|length| length.parse().map_err(invalid));
    Ok(length.transpose()?.map(Framing::Length))
}

/// Reads a request's head. `None` when the client closed the connection between requests.
pub(crate) fn read_request(reader: &mut impl BufRead) -> io::Result<Option<RequestHead>> {
    let Some(raw) = read_raw_head(reader)? else { return Ok(None) };
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(&raw).map_err(invalid)?;
    let method = request.method.unwrap_or_default().to_owned();
    let target = request.path.unwrap_or_default().to_owned();
    // A request without a declared length has no body (RFC 9112, 6.3).
    let framing = declared(request.headers)?.unwrap_or(Framing::Length(0));
    Ok(Some(RequestHead { raw, method, target, framing }))
}

/// Reads a response's head; interim `1xx` answers other than a protocol switch are not expected from an engine.
pub(crate) fn read_response(reader: &mut impl BufRead, method: &str) -> io::Result<ResponseHead> {
    let raw = read_raw_head(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(&raw).map_err(invalid)?;
    let status = response.code.unwrap_or_default();
    let framing = match status {
        101 => Framing::UntilClose,
        204 | 304 => Framing::Length(0),
        _ if method == "HEAD" => Framing::Length(0),
        _ => declared(response.headers)?.unwrap_or(Framing::UntilClose),
    };
    Ok(ResponseHead { raw, status, framing })
}

/// Which bytes of a chunked body reach the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copy {
    /// Everything, chunk sizes included: to pass a message on.
    Verbatim,
    /// The content alone: to use it.
    Content,
}

/// Reads one body to its end, giving the bytes to `sink` as soon as they come.
pub(crate) fn copy_body(
    reader: &mut impl BufRead,
    framing: Framing,
    copy: Copy,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    match framing {
        Framing::Length(length) => copy_exactly(reader, length, sink),
        Framing::UntilClose => loop {
            let available = reader.fill_buf()?;
            if available.is_empty() {
                return Ok(());
            }
            let taken = available.len();
            sink(available)?;
            reader.consume(taken);
        },
        Framing::Chunked => loop {
            let mut line = Vec::new();
            reader.read_until(b'\n', &mut line)?;
            let text = String::from_utf8_lossy(&line);
            let size = text.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(invalid)?;
            pass_on(copy, &line, sink)?;
            if size == 0 {
                let mut trailer = Vec::new();
                while !matches!(trailer.as_slice(), b"\r\n" | b"\n") {
                    trailer.clear();
                    if reader.read_until(b'\n', &mut trailer)? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    pass_on(copy, &trailer, sink)?;
                }
                return Ok(());
            }
            copy_exactly(reader, size, sink)?;
            let mut end = Vec::new();
            reader.read_until(b'\n', &mut end)?;
            pass_on(copy, &end, sink)?;
        },
    }
}

fn pass_on(copy: Copy, bytes: &[u8], sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    if copy == Copy::Verbatim { sink(bytes) } else { Ok(()) }
}

fn copy_exactly(
    reader: &mut impl BufRead,
    length: u64,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        let available = reader.fill_buf()?;
        if available.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let taken = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        sink(&available[..taken])?;
        reader.consume(taken);
        left -= taken as u64;
    }
    Ok(())
}

/// Percent-encodes a query value.
pub(crate) fn encode(value: &str) -> String {
    let encode = |byte: u8| match char::from(byte) {
        plain if plain.is_ascii_alphanumeric() || "-._~".contains(plain) => plain.to_string(),
        _ => format!("%{byte:02X}"),
    };
    value.bytes().map(encode).collect()
}
