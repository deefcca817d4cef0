//! A file's content on its way, and what goes wrong with it.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use super::wire::Request;
use super::{Fault, HubFile, Shared, head};

/// A file's content, or the part of it that is asked for, with what goes wrong on the way.
pub(super) fn content(
    stream: &mut TcpStream,
    request: &Request,
    file: &HubFile,
    fault: Option<Fault>,
    shared: &Shared,
) -> std::io::Result<bool> {
    let version = {
        let mut counts = shared.counts();
        let version = counts.versions.entry(file.path.clone()).or_default();
        *version += u32::from(matches!(fault, Some(Fault::NewTag | Fault::NewTagInPart)));
        *version
    };
    let tag = format!("\"{}-{version}\"", file.bytes.len());
    let size = file.bytes.len();
    let mut range = request.range().filter(|_| !matches!(fault, Some(Fault::NoRange)));
    let condition = request.header("if-range").is_none_or(|asked| asked == tag);
    if !condition && !matches!(fault, Some(Fault::NewTagInPart)) {
        range = None;
    }
    let mut headers = vec![("etag", tag), ("accept-ranges", "bytes".to_owned())];
    let (status, from, to) = match range {
        Some((from, _)) if from >= size => return head(stream, 416, &[], 0),
        Some((from, to)) => (206, from, to.min(size - 1) + 1),
        None => (200, 0, size),
    };
    shared
        .counts()
        .begins
        .entry(file.path.clone())
        .or_default()
        .push(from as u64);
    if status == 206 {
        headers.push(("content-range", format!("bytes {from}-{}/{size}", to - 1)));
    }
    let mut body = file.bytes[from..to].to_vec();
    let mut claims = body.len();
    let mut ends = false;
    match fault {
        Some(Fault::Wrong) if !body.is_empty() => {
            let middle = body.len() / 2;
            body[middle] ^= 0x55;
        }
        Some(Fault::Cut(share)) => {
            body.truncate(body.len() * usize::from(share) / 256);
            ends = true;
        }
        // The server believes that there is less, or more, than there is.
        Some(Fault::ShortLength) => claims /= 2,
        Some(Fault::LongLength) => {
            claims += 100;
            ends = true;
        }
        _ => {}
    }
    head(stream, status, &headers, claims as u64)?;
    let (step, pace) = match fault {
        Some(Fault::Slow) => (1 + body.len() / 7, Duration::from_millis(1)),
        _ => (64 << 10, shared.manners.pace),
    };
    for piece in body.chunks(step) {
        stream.write_all(piece)?;
        {
            let mut counts = shared.counts();
            *counts.sent.entry(file.path.clone()).or_default() += piece.len() as u64;
        }
        shared.moved.notify_all();
        if !pace.is_zero() {
            std::thread::sleep(pace);
        }
    }
    Ok(!ends)
}
