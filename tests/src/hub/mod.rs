//! A hub on this machine that speaks Hugging Face's protocol, with a second server that it redirects to, and that fails
//! as it is told.

mod content;
mod faults;
mod proxy;
mod wire;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use content::content;
pub use faults::{Fault, Faults, Lasting};
pub use proxy::Tunnel;
use wire::{Request, read_request};

/// A file of the repository.
#[derive(Debug, Clone)]
pub struct HubFile {
    /// Its path in the repository.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
    /// Kept in large-file storage: listed with its SHA-256 and fetched by a redirect.
    pub large: bool,
}

/// What the hub has.
#[derive(Debug, Clone)]
pub struct Repository {
    /// `organisation/repository`.
    pub name: String,
    /// What `main` is.
    pub commit: String,
    /// The model card's licence.
    pub licence: Option<String>,
    /// Its files.
    pub files: Vec<HubFile>,
}

/// How the hub behaves besides its faults.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// Entries of a page of the listing; 0 is all.
    pub page: usize,
    /// Asked for on the hub itself.
    pub token: Option<String>,
    /// How redirects and pages name the two servers, in place of their addresses.
    pub names: Option<(String, String)>,
    /// A pause after each 64 KiB that is sent, as a slow line has it.
    pub pace: Duration,
}

/// The two servers.
pub struct HubServer {
    hub: SocketAddr,
    cdn: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    repository: Repository,
    manners: Manners,
    faults: Faults,
    names: (String, String),
    counts: Mutex<Counts>,
    moved: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct Counts {
    sent: BTreeMap<String, u64>,
    begins: BTreeMap<String, Vec<u64>>,
    requests: BTreeMap<String, u32>,
    versions: BTreeMap<String, u32>,
    leaked_tokens: u32,
    cdn: u32,
}

impl HubServer {
    /// Starts both servers on free ports.
    pub fn start(repository: Repository, manners: Manners, faults: Faults) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (hub_listener, cdn_listener) = (listen(), listen());
        let address = |listener: &TcpListener| listener.local_addr().expect("an address");
        let (hub, cdn) = (address(&hub_listener), address(&cdn_listener));
        let names = manners
            .names
            .clone()
            .unwrap_or_else(|| (format!("http://{hub}"), format!("http://{cdn}")));
        let shared = Arc::new(Shared {
            repository,
            manners,
            faults,
            names,
            counts: Mutex::default(),
            moved: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        for (listener, is_hub) in [(hub_listener, true), (cdn_listener, false)] {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&listener, is_hub, &shared));
        }
        Self { hub, cdn, shared }
    }

    /// The hub's address.
    pub fn base(&self) -> String {
        format!("http://{}", self.hub)
    }

    /// The repository's address.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.base(), self.shared.repository.name)
    }

    /// The sockets of hub and file server.
    pub fn sockets(&self) -> (SocketAddr, SocketAddr) {
        (self.hub, self.cdn)
    }

    /// Bytes of a file's content that were sent, all requests together.
    pub fn sent(&self, path: &str) -> u64 {
        self.shared.counts().sent.get(path).copied().unwrap_or(0)
    }

    /// Where the parts of a file began that were asked for, in order.
    pub fn begins(&self, path: &str) -> Vec<u64> {
        self.shared.counts().begins.get(path).cloned().unwrap_or_default()
    }

    /// Bytes of all files that were sent.
    pub fn sent_in_all(&self) -> u64 {
        self.shared.counts().sent.values().sum()
    }

    /// Tokens that the file server saw, which it must never see.
    pub fn leaked_tokens(&self) -> u32 {
        self.shared.counts().leaked_tokens
    }

    /// Requests that the file server got.
    pub fn redirected(&self) -> u32 {
        self.shared.counts().cdn
    }

    /// Waits until so many bytes were sent in all; `false` after `patience`.
    pub fn wait_for(&self, bytes: u64, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut counts = self.shared.counts();
        while counts.sent.values().sum::<u64>() < bytes {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            counts = self
                .shared
                .moved
                .wait_timeout(counts, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Wakes the two that accept.
        let _ = TcpStream::connect(self.hub);
        let _ = TcpStream::connect(self.cdn);
    }
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, path: &str) -> Option<&HubFile> {
        self.repository.files.iter().find(|file| file.path == path)
    }

    /// The number of this request among those for `key`, from 0.
    fn number(&self, key: &str) -> u32 {
        let mut counts = self.counts();
        let number = counts.requests.entry(key.to_owned()).or_default();
        *number += 1;
        *number - 1
    }
}

fn accept(listener: &TcpListener, is_hub: bool, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        std::thread::spawn(move || serve(stream, is_hub, &shared));
    }
}

/// Answers requests of one connection until one of the sides ends it.
fn serve(mut stream: TcpStream, is_hub: bool, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    while let Some(request) = read_request(&mut stream) {
        let goes_on = if is_hub {
            hub(&mut stream, &request, shared)
        } else {
            cdn(&mut stream, &request, shared)
        };
        if !matches!(goes_on, Ok(true)) {
            return;
        }
    }
}

fn hub(stream: &mut TcpStream, request: &Request, shared: &Shared) -> std::io::Result<bool> {
    let fault = shared.faults.of(&request.path, shared.number(&request.path));
    match fault {
        Some(Fault::Status(status, retry)) => return head(stream, status, &retry_after(retry), 0),
        Some(Fault::Loop) => return head(stream, 302, &[("location", request.target.clone())], 0),
        Some(Fault::Garbage) => return stream.write_all(b"\x16\x03 nonsense\r\n\r\n").map(|()| false),
        Some(Fault::CutHead) => return stream.write_all(b"HTTP/1.1 200 O").map(|()| false),
        _ => {}
    }
    let wanted = shared
        .manners
        .token
        .as_ref()
        .map(|token| format!("Bearer {token}"));
    if wanted.is_some() && request.header("authorization") != wanted.as_deref() {
        return head(stream, 401, &[], 0);
    }
    let name = &shared.repository.name;
    let commit = &shared.repository.commit;
    let path = request.path.as_str();
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{name}/revision/")) {
        if revision != "main" && revision != commit {
            return head(stream, 404, &[], 0);
        }
        let json = json!({ "sha": commit, "cardData": { "license": shared.repository.licence } });
        return text(stream, &json, &[], fault);
    }
    if path == format!("/api/models/{name}/tree/{commit}") {
        let (json, links) = listing(request, shared);
        return text(stream, &json, &links, fault);
    }
    let file = path
        .strip_prefix(&format!("/{name}/resolve/{commit}/"))
        .and_then(|path| shared.file(path));
    match file {
        None => head(stream, 404, &[], 0),
        Some(file) if file.large => {
            let location = format!("{}/blobs/{}?signature=secret", shared.names.1, file.path);
            head(
                stream,
                302,
                &[("location", location), ("x-repo-commit", commit.clone())],
                0,
            )
        }
        Some(file) => content(stream, request, file, fault, shared),
    }
}

fn cdn(stream: &mut TcpStream, request: &Request, shared: &Shared) -> std::io::Result<bool> {
    let fault = shared.faults.of(&request.path, shared.number(&request.path));
    {
        let mut counts = shared.counts();
        counts.cdn += 1;
        counts.leaked_tokens += u32::from(request.header("authorization").is_some());
    }
    match fault {
        Some(Fault::Status(status, retry)) => return head(stream, status, &retry_after(retry), 0),
        Some(Fault::Garbage) => return stream.write_all(b"\x16\x03 nonsense\r\n\r\n").map(|()| false),
        Some(Fault::CutHead) => return stream.write_all(b"HTTP/1.1 206 Par").map(|()| false),
        _ => {}
    }
    match request
        .path
        .strip_prefix("/blobs/")
        .and_then(|path| shared.file(path))
    {
        Some(file) if request.target.contains("signature=secret") => {
            content(stream, request, file, fault, shared)
        }
        _ => head(stream, 403, &[], 0),
    }
}

/// One page of the listing, and the link to the next.
fn listing(request: &Request, shared: &Shared) -> (Value, Vec<(&'static str, String)>) {
    let files = &shared.repository.files;
    let page = if shared.manners.page == 0 {
        files.len()
    } else {
        shared.manners.page
    };
    let from: usize = request
        .target
        .split_once("cursor=")
        .map_or(0, |(_, cursor)| cursor.parse().unwrap_or(0));
    let entries: Vec<Value> = files.iter().skip(from).take(page).map(entry).collect();
    let links = if from + page < files.len() {
        let next = format!(
            "{}{}?recursive=true&cursor={}",
            shared.names.0,
            request.path,
            from + page
        );
        vec![("link", format!("<{next}>; rel=\"next\""))]
    } else {
        Vec::new()
    };
    (entries.into(), links)
}

fn entry(file: &HubFile) -> Value {
    if file.large {
        json!({
            "type": "file", "path": file.path, "size": file.bytes.len(), "oid": "0".repeat(40),
            "lfs": { "oid": hex(&Sha256::digest(&file.bytes)), "size": file.bytes.len(), "pointerSize": 134 },
        })
    } else {
        json!({ "type": "file", "path": file.path, "size": file.bytes.len(), "oid": git_blob(&file.bytes) })
    }
}

fn git_blob(bytes: &[u8]) -> String {
    let mut hash = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

/// Bytes in hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn retry_after(seconds: Option<u32>) -> Vec<(&'static str, String)> {
    seconds
        .map(|seconds| ("retry-after", seconds.to_string()))
        .into_iter()
        .collect()
}

/// A head; `length` bytes must follow.
fn head(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&str, String)],
    length: u64,
) -> std::io::Result<bool> {
    let mut text = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes())?;
    Ok(true)
}

/// JSON, or half of it.
fn text(
    stream: &mut TcpStream,
    json: &Value,
    headers: &[(&str, String)],
    fault: Option<Fault>,
) -> std::io::Result<bool> {
    let body = json.to_string();
    head(stream, 200, headers, body.len() as u64)?;
    if matches!(fault, Some(Fault::Cut(_))) {
        stream.write_all(&body.as_bytes()[..body.len() / 2])?;
        return Ok(false);
    }
    stream.write_all(body.as_bytes())?;
    Ok(true)
}
