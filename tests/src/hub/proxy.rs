//! A proxy that lets `CONNECT` through, to where the test says that a name is.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::wire::read_head;

/// The proxy.
pub struct Tunnel {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    hosts: Vec<(String, SocketAddr)>,
    opened: AtomicU32,
    refused: AtomicU32,
    stop: AtomicBool,
}

impl Tunnel {
    /// Starts it; `hosts` are `name:port` and where they are.
    pub fn start(hosts: Vec<(String, SocketAddr)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            hosts,
            opened: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || shared.tunnel(stream));
            }
        });
        Self { address, shared }
    }

    /// Its address, as `HTTP_PROXY` wants it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections that it let through, and those that it refused.
    pub fn counts(&self) -> (u32, u32) {
        let count = |counter: &AtomicU32| counter.load(Ordering::SeqCst);
        (count(&self.shared.opened), count(&self.shared.refused))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn tunnel(&self, mut client: TcpStream) -> Option<()> {
        let head = read_head(&mut client)?;
        let host = head
            .strip_prefix("CONNECT ")
            .and_then(|rest| rest.split(' ').next());
        let known = host.and_then(|host| self.hosts.iter().find(|(name, _)| name == host));
        let Some((_, address)) = known else {
            self.refused.fetch_add(1, Ordering::SeqCst);
            client
                .write_all(b"HTTP/1.1 502 X\r\ncontent-length: 0\r\n\r\n")
                .ok()?;
            return None;
        };
        let mut server = TcpStream::connect(address).ok()?;
        self.opened.fetch_add(1, Ordering::SeqCst);
        client.write_all(b"HTTP/1.1 200 X\r\n\r\n").ok()?;
        let (mut from_client, mut to_server) = (client.try_clone().ok()?, server.try_clone().ok()?);
        let up = std::thread::spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        let _ = std::io::copy(&mut server, &mut client);
        let _ = client.shutdown(Shutdown::Both);
        let _ = up.join();
        Some(())
    }
}
