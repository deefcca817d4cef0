//! As much of HTTP/1.1 as the servers need.

use std::io::Read;
use std::net::TcpStream;

/// A request without a body.
pub(super) struct Request {
    pub(super) target: String,
    pub(super) path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// A header by its name in small letters.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// `Range: bytes=from-to`, the last byte included.
    pub(super) fn range(&self) -> Option<(usize, usize)> {
        let (from, to) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse().ok()?, to.parse().unwrap_or(usize::MAX - 1)))
    }
}

/// Reads up to the empty line; `None` at the end of the connection.
pub(super) fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 64 << 10 || stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

pub(super) fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let head = read_head(stream)?;
    let mut lines = head.lines();
    let target = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Request {
        path: target.split('?').next().unwrap_or_default().to_owned(),
        target,
        headers,
    })
}
