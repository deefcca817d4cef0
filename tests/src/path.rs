//! A path between a node and its broker that ends connections as the test says.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// PUBLISH, the type in the first byte of its header (MQTT 5, section 3.3.1).
const PUBLISH: u8 = 3;

/// DISCONNECT, since the server is busy (MQTT 5, section 3.14).
const BUSY: [u8; 3] = [0xe0, 1, 0x89];

/// A proxy on the loopback that reads what the node sends, packet by packet.
pub struct Path {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    broker: u16,
    poisons: Mutex<Vec<Vec<u8>>>,
    lives: Mutex<Option<Lives>>,
    open: Mutex<Vec<TcpStream>>,
    deaths: AtomicU32,
    stop: AtomicBool,
}

/// How long connections live.
#[derive(Debug, Clone, Copy)]
pub enum Lives {
    /// So many packets from the node, by the number of the connection.
    Packets(fn(u32) -> u32),
    /// So long, by the number of the connection.
    Time(fn(u32) -> Duration),
}

impl Path {
    /// Starts it before the broker on this port; it ends nothing yet.
    pub fn start(broker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            broker,
            poisons: Mutex::new(Vec::new()),
            lives: Mutex::new(None),
            open: Mutex::new(Vec::new()),
            deaths: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                if accepting.stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || shared.carry(&stream, number));
            }
        });
        Self { port, shared }
    }

    /// From now on a PUBLISH packet of the node that holds these bytes ends its connection.
    pub fn poison(&self, bytes: &[u8]) {
        lock(&self.shared.poisons).push(bytes.to_vec());
    }

    /// From now on connections live so long; `None` for as long as they like.
    pub fn lives(&self, lives: Option<Lives>) {
        *lock(&self.shared.lives) = lives;
    }

    /// Ends the connections that there are.
    pub fn cut(&self) {
        for stream in lock(&self.shared.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Connections that it has ended of itself.
    pub fn deaths(&self) -> u32 {
        self.shared.deaths.load(Ordering::SeqCst)
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    /// Carries one connection to its end.
    fn carry(self: &Arc<Self>, node: &TcpStream, number: u32) -> Option<()> {
        let broker = TcpStream::connect(("127.0.0.1", self.broker)).ok()?;
        for stream in [node, &broker] {
            stream.set_nodelay(true).ok()?;
        }
        lock(&self.open).push(node.try_clone().ok()?);
        let lives = *lock(&self.lives);
        if let Some(Lives::Time(time)) = lives {
            let (shared, node, broker) = (Arc::clone(self), node.try_clone().ok()?, broker.try_clone().ok()?);
            std::thread::spawn(move || {
                std::thread::sleep(time(number));
                shared.end(&node, &broker, &BUSY);
            });
        }
        let (mut from_broker, mut to_node) = (broker.try_clone().ok()?, node.try_clone().ok()?);
        let down = std::thread::spawn(move || {
            let _ = std::io::copy(&mut from_broker, &mut to_node);
            let _ = to_node.shutdown(Shutdown::Both);
        });
        let (mut from_node, mut to_broker) = (node.try_clone().ok()?, broker.try_clone().ok()?);
        let mut packets = 0;
        while let Some(packet) = read_packet(&mut from_node) {
            packets += 1;
            let is_over = matches!(lives, Some(Lives::Packets(most)) if packets > most(number));
            if is_over || self.is_poison(&packet) {
                // Many connections that are closed without a word look like another node's doing.
                self.end(node, &broker, if is_over { &BUSY } else { &[] });
                break;
            }
            if to_broker.write_all(&packet).is_err() {
                break;
            }
        }
        let _ = broker.shutdown(Shutdown::Both);
        let _ = down.join();
        Some(())
    }

    fn is_poison(&self, packet: &[u8]) -> bool {
        let is_publish = packet.first().is_some_and(|first| first >> 4 == PUBLISH);
        let holds = |bytes: &Vec<u8>| packet.windows(bytes.len()).any(|part| part == bytes);
        is_publish && lock(&self.poisons).iter().any(holds)
    }

    fn end(&self, mut node: &TcpStream, broker: &TcpStream, last: &[u8]) {
        self.deaths.fetch_add(1, Ordering::SeqCst);
        let _ = node.write_all(last);
        let _ = node.shutdown(Shutdown::Both);
        let _ = broker.shutdown(Shutdown::Both);
    }
}

/// The next whole packet with its header; `None` at the connection's end.
fn read_packet(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut packet = vec![0];
    stream.read_exact(&mut packet).ok()?;
    let mut length = 0_usize;
    for shift in [0, 7, 14, 21] {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        packet.push(byte[0]);
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            break;
        }
    }
    let head = packet.len();
    packet.resize(head + length, 0);
    stream.read_exact(packet.get_mut(head..)?).ok()?;
    Some(packet)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
