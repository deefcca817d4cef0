//! A minimal HTTP server for Prometheus and health checks: three paths, GET and HEAD, one request a connection (RFC
//! 9112; `Connection: close`).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::sources::MetricsSources;
use crate::exit::{Exit, Fault};

/// The maximum number of connections. A further one ends the oldest that has sent no request, so that silent clients
/// do not lock others out.
const MAX_CONNECTIONS: usize = 64;
/// The size of the largest request head.
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// The time limit for a client to send its request, and again to take the response.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two runs of [`MetricsSources::upkeep`].
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// The delay before the next attempt to accept a connection, after a failure such as too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The server, which runs until it is dropped.
pub(crate) struct Server {
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Listens on `address`; port 0 means any free one, which is logged.
    pub(crate) async fn start(address: SocketAddr, sources: MetricsSources) -> Result<Self, Fault> {
        let fault = |error| {
            let message = format!("metrics.listen: {address} can't be listened on: {error}");
            Fault::new(Exit::Config, message)
        };
        let listener = TcpListener::bind(address).await.map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        tracing::info!(%address, "metrics are served");
        Ok(Self {
            task: tokio::spawn(serve(listener, Arc::new(sources))),
        })
    }
}

/// The open connections. Dropping it ends them.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// The oldest first.
    open: VecDeque<OpenConnection>,
}

struct OpenConnection {
    task: AbortHandle,
    /// True once the client has sent its request.
    asked: Arc<AtomicBool>,
}

impl Connections {
    /// Runs a connection; `run` is given a flag to set once the client has sent its request.
    fn add<F>(&mut self, run: impl FnOnce(Arc<AtomicBool>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        while self.open.len() >= MAX_CONNECTIONS {
            self.end_idle();
        }
        let asked = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(run(Arc::clone(&asked)));
        self.open.push_back(OpenConnection { task, asked });
    }

    /// Ends the oldest connection without a request, or else the oldest.
    fn end_idle(&mut self) {
        let idle = self
            .open
            .iter()
            .position(|open| !open.asked.load(Ordering::Relaxed));
        if let Some(open) = self.open.remove(idle.unwrap_or(0)) {
            open.task.abort();
        }
    }

    /// Waits for a connection to end, and removes those that have ended.
    async fn ended(&mut self) -> Option<()> {
        let ended = self.tasks.join_next().await;
        self.open.retain(|open| !open.task.is_finished());
        ended.map(drop)
    }
}

async fn serve(listener: TcpListener, sources: Arc<MetricsSources>) {
    let mut connections = Connections::default();
    let mut ticks = interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let sources = Arc::clone(&sources);
                    connections.add(|asked| async move {
                        let answered = timeout(CLIENT_TIMEOUT * 2, connection(stream, &sources, &asked)).await;
                        if let Ok(Err(error)) = answered {
                            tracing::debug!(%error, "a request for metrics failed");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection for metrics");
                    connections.end_idle();
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            _ = ticks.tick() => sources.upkeep(),
            Some(()) = connections.ended() => {}
        }
    }
}

async fn connection(
    mut stream: TcpStream,
    sources: &Arc<MetricsSources>,
    asked: &AtomicBool,
) -> std::io::Result<()> {
    let head = timeout(CLIENT_TIMEOUT, head(&mut stream)).await;
    asked.store(true, Ordering::Relaxed);
    let (response, with_body) = match head {
        Ok(Ok(head)) => match request(&head) {
            Ok((path, with_body)) => (response(path, sources).await, with_body),
            Err(response) => (response, true),
        },
        Ok(Err(RequestError::TooLarge)) => (
            Response::plain("431 Request Header Fields Too Large", "too large"),
            true,
        ),
        Ok(Err(RequestError::Io(error))) => return Err(error),
        Err(_) => (Response::plain("408 Request Timeout", "too slow"), true),
    };
    stream.write_all(response.bytes(with_body).as_bytes()).await?;
    stream.shutdown().await
}

enum RequestError {
    TooLarge,
    Io(std::io::Error),
}

/// Reads the head up to the empty line. A body is not read: no response depends on one.
async fn head(stream: &mut TcpStream) -> Result<Vec<u8>, RequestError> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let read = stream.read(&mut buffer).await.map_err(RequestError::Io)?;
        if read == 0 {
            return Err(RequestError::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        head.extend_from_slice(&buffer[..read]);
        if let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            head.truncate(end);
            return Ok(head);
        }
        if head.len() > MAX_REQUEST_BYTES {
            return Err(RequestError::TooLarge);
        }
    }
}

/// Parses the head: the path, and whether the response has a body.
fn request(head: &[u8]) -> Result<(&str, bool), Response> {
    let bad = || Response::plain("400 Bad Request", "this is no HTTP/1 request");
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| bad())?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad());
    };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return Err(bad());
    }
    let path = target.split('?').next().unwrap_or_default();
    match method {
        "GET" => Ok((path, true)),
        "HEAD" => Ok((path, false)),
        _ => Err(Response {
            headers: "Allow: GET, HEAD\r\n",
            ..Response::plain("405 Method Not Allowed", "only GET and HEAD")
        }),
    }
}

async fn response(path: &str, sources: &Arc<MetricsSources>) -> Response {
    let health = |health: Result<(), String>| match health {
        Ok(()) => Response::plain("200 OK", "ok"),
        Err(reason) => Response::plain("503 Service Unavailable", reason),
    };
    match path {
        "/metrics" => {
            let sources = Arc::clone(sources);
            // The free space of the disk is read, and a failing disk may block for long.
            match tokio::task::spawn_blocking(move || sources.metrics()).await {
                Ok(metrics) => Response {
                    content_type: "text/plain; version=0.0.4; charset=utf-8",
                    ..Response::whole("200 OK", metrics)
                },
                Err(error) => Response::plain("500 Internal Server Error", error.to_string()),
            }
        }
        "/healthz" => health(sources.alive().await),
        "/readyz" => health(sources.ready()),
        _ => Response::plain("404 Not Found", "there are /metrics, /healthz and /readyz"),
    }
}

#[derive(Debug, PartialEq)]
struct Response {
    status: &'static str,
    content_type: &'static str,
    /// Further header lines.
    headers: &'static str,
    body: String,
}

impl Response {
    /// A response with a line of text.
    fn plain(status: &'static str, line: impl Into<String>) -> Self {
        Self::whole(status, line.into() + "\n")
    }

    fn whole(status: &'static str, body: String) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            headers: "",
            body,
        }
    }

    fn bytes(&self, with_body: bool) -> String {
        let Self {
            status,
            content_type,
            headers,
            body,
        } = self;
        let length = body.len();
        let body = if with_body { body.as_str() } else { "" };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
             {headers}Connection: close\r\n\r\n{body}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_is_understood() {
        let ok = |head: &str| request(head.as_bytes()).map(|(path, body)| (path.to_owned(), body));
        assert_eq!(
            ok("GET /metrics HTTP/1.1\r\nHost: x"),
            Ok(("/metrics".into(), true))
        );
        assert_eq!(ok("HEAD /healthz?x=1 HTTP/1.0"), Ok(("/healthz".into(), false)));
        for (head, status) in [
            ("POST /metrics HTTP/1.1", "405 Method Not Allowed"),
            ("GET /metrics", "400 Bad Request"),
            ("GET metrics HTTP/1.1", "400 Bad Request"),
            ("GET / HTTP/2", "400 Bad Request"),
            ("", "400 Bad Request"),
        ] {
            assert_eq!(ok(head).expect_err("a fault").status, status, "{head:?}");
        }
    }

    #[test]
    fn a_head_has_the_length_of_the_body_that_it_leaves_out() {
        let response = Response::plain("200 OK", "ok");
        let (whole, head) = (response.bytes(true), response.bytes(false));
        assert!(whole.contains("Content-Length: 3\r\n") && whole.ends_with("\r\n\r\nok\n"));
        assert_eq!(whole.strip_suffix("ok\n"), Some(head.as_str()));
    }
}
