//! A hub behind TLS, whose authority only this machine trusts.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use phi_edge_tests::hub::{Faults, HubServer, Manners};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::{expect, phi, repository};

/// An authority, in PEM, and a server of `localhost` that it vouches for.
fn server() -> (String, Arc<ServerConfig>) {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(DnType::CommonName, "phi-edge test authority");
    let pem = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = CertificateDer::from(params.signed_by(&key, &issuer).unwrap().der().to_vec());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    (pem, Arc::new(config))
}

/// Takes TLS off for `upstream`, one request after the other, until the test's process ends.
fn front(listener: TcpListener, upstream: SocketAddr, config: Arc<ServerConfig>) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            std::thread::spawn(move || relay(StreamOwned::new(connection, stream), upstream));
        }
    });
}

fn relay(mut client: StreamOwned<ServerConnection, TcpStream>, upstream: SocketAddr) -> Option<()> {
    let mut server = TcpStream::connect(upstream).ok()?;
    loop {
        let request = head(&mut client)?;
        server.write_all(request.as_bytes()).ok()?;
        let answer = head(&mut server)?;
        let length = answer
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))?;
        client.write_all(answer.as_bytes()).ok()?;
        std::io::copy(&mut (&mut server).take(length.parse().ok()?), &mut client).ok()?;
        client.flush().ok()?;
    }
}

fn head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

#[test]
fn the_machines_own_authorities_are_trusted_and_no_redirect_leaves_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, config) = server();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, authority).unwrap();
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    for encrypted in [true, false] {
        let (hub, files) = (listen(), listen());
        let name =
            |listener: &TcpListener| format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let address = format!("{}/org/Phi-test-onnx", name(&hub));
        let files_name = if encrypted {
            name(&files)
        } else {
            name(&files).replace("https", "http")
        };
        let names = Some((name(&hub), files_name));
        let server = HubServer::start(
            repository(100_000),
            Manners {
                names,
                ..Manners::default()
            },
            Faults::default(),
        );
        front(hub, server.sockets().0, Arc::clone(&config));
        front(files, server.sockets().1, Arc::clone(&config));
        let pull = ["pull", address.as_str(), "--tries", "2", "--name", "m"];
        let run = |trusted: bool| {
            let mut command = phi(folder.path(), &pull);
            if trusted {
                command.env("SSL_CERT_FILE", &ca);
            }
            command.output().unwrap()
        };
        if encrypted {
            expect(&run(false), 69, &["given up after 2 tries", "certificate"]);
            expect(&run(true), 0, &["every file verified"]);
            std::fs::remove_dir_all(folder.path().join("models")).unwrap();
        } else {
            expect(&run(true), 69, &["which is not encrypted"]);
        }
    }
}
