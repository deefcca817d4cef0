//! The identities of this machine and of this start of the daemon.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::exit::{Exit, Fault};

/// The machine's host name, without its domain.
pub(crate) fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"))
        .ok()
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .unwrap_or_default();
    let name = name.trim().split('.').next().unwrap_or_default();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name.to_owned()
    }
}

/// A random id of this start, 16 hexadecimal digits.
pub(crate) fn start_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// An id of this machine that stays the same over restarts, eight hexadecimal digits. It is a digest of the machine
/// id, which must not be published; where the machine has none, one is made and kept in `state`.
pub(crate) fn machine_id(state: &Path) -> Result<String, Fault> {
    if let Ok(id) = std::fs::read_to_string("/etc/machine-id")
        && !id.trim().is_empty()
    {
        return Ok(digest(id.trim()));
    }
    let file = state.join("machine-id");
    if let Ok(id) = std::fs::read_to_string(&file)
        && !id.trim().is_empty()
    {
        return Ok(digest(id.trim()));
    }
    let id = start_id();
    std::fs::create_dir_all(state)
        .and_then(|()| std::fs::write(&file, &id))
        .map_err(|error| {
            Fault::new(
                Exit::Config,
                format!(
                    "{}: can't be written: {error}; this machine has no /etc/machine-id, so store.path must be \
                     writable or mqtt.client_id set",
                    file.display()
                ),
            )
        })?;
    Ok(digest(&id))
}

fn digest(id: &str) -> String {
    let digest = Sha256::digest(format!("phi-edge {id}"));
    format!(
        "{:02x}{:02x}{:02x}{:02x}",
        digest[0], digest[1], digest[2], digest[3]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_keeps_its_id() {
        let state = tempfile::tempdir().expect("a folder");
        let first = machine_id(state.path()).expect("an id");
        assert_eq!(first.len(), 8);
        assert_eq!(machine_id(state.path()).expect("an id"), first);
    }

    #[test]
    fn starts_differ() {
        assert_ne!(start_id(), start_id());
    }
}
