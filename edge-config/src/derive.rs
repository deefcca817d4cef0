//! Derived values: the name from the host, the port from TLS, placeholders, credentials.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Value;

use crate::layer::{Entry, Layer};
use crate::schema::KEYS;
use crate::shape::CREDENTIAL_PREFIX;
use crate::topic::{MAX_NAME_LEN, is_name_char};
use crate::{ConfigError, LoadOptions, Origin, Shape, topic};

const PLAIN_PORT: i64 = 1883;
const TLS_PORT: i64 = 8883;

/// The key of the folder of rule files.
pub(crate) const RULES_DIR_KEY: &str = "node.rules_dir";

/// The values of all layers, the later ones over the earlier.
pub(crate) type Effective = BTreeMap<&'static str, Entry>;

/// Derives unset values and fills in placeholders; the result is the topmost layer.
pub(crate) fn derive(
    effective: &Effective,
    options: &LoadOptions,
    credentials: Option<&str>,
) -> Result<Layer, ConfigError> {
    let mut derived = Layer::default();
    let name = if let Some(name) = text(effective, "node.name") {
        name.to_owned()
    } else {
        let name = name_from_host(&options.hostname);
        add(
            &mut derived,
            "node.name",
            Value::String(name.clone()),
            Origin::Derived("the host name"),
        );
        name
    };
    if !is_set(effective, "mqtt.port") {
        let tls = ["mqtt.tls.ca", "mqtt.tls.cert", "mqtt.tls.key"]
            .iter()
            .any(|key| is_set(effective, key));
        let (port, from) = if tls {
            (TLS_PORT, "mqtt.tls being set")
        } else {
            (PLAIN_PORT, "mqtt.tls not being set")
        };
        add(
            &mut derived,
            "mqtt.port",
            Value::Integer(port),
            Origin::Derived(from),
        );
    }
    for (key, folder, name) in [
        (RULES_DIR_KEY, &options.system_dir, "rules.d"),
        ("model.path", &options.state_dir, "model"),
        ("store.path", &options.state_dir, "store"),
    ] {
        place(&mut derived, effective, key, folder, name);
    }
    let base = text(effective, "node.base")
        .unwrap_or_default()
        .replace("{node.name}", &name);
    fill(&mut derived, effective, "node.base", topic::is_base, |text| {
        text.replace("{node.name}", &name)
    })?;
    fill(
        &mut derived,
        effective,
        "mqtt.reply_topics",
        topic::is_filter,
        |text| text.replace("{base}", &base).replace("{node.name}", &name),
    )?;
    find_credentials(&mut derived, effective, credentials)?;
    Ok(derived)
}

/// Puts what `key` names into the system's `folder`, if it has its built-in default and there is such a folder.
fn place(derived: &mut Layer, effective: &Effective, key: &'static str, folder: &Path, name: &str) {
    if let Some(entry) = effective.get(key)
        && entry.origin == Origin::Default
        && !folder.as_os_str().is_empty()
        && let Some(path) = folder.join(name).to_str()
        && text(effective, key) != Some(path)
    {
        let path = Value::String(path.to_owned());
        add(derived, key, path, Origin::Derived("the system's folder"));
    }
}

/// The host name as a node name: characters that a name can't have become `-`.
fn name_from_host(hostname: &str) -> String {
    let kept = |c: char| if is_name_char(c) { c } else { '-' };
    let name: String = hostname.trim().chars().map(kept).take(MAX_NAME_LEN).collect();
    if name.is_empty() {
        "phi-edge".to_owned()
    } else {
        name
    }
}

/// Fills in the placeholders of a text or list; its origin stays.
fn fill(
    derived: &mut Layer,
    effective: &Effective,
    key: &'static str,
    accepts: fn(&str) -> bool,
    replace: impl Fn(&str) -> String,
) -> Result<(), ConfigError> {
    let Some(Entry {
        value: Some(value),
        origin,
    }) = effective.get(key)
    else {
        return Ok(());
    };
    let one = |item: &Value| {
        let filled = replace(item.as_str().unwrap_or_default());
        if accepts(&filled) {
            return Ok(Value::String(filled));
        }
        // Each part was checked by itself: only the length can be wrong, or a name within a wildcard level.
        let problem = format!("becomes {filled:?}, which is no valid topic; shorten it or write it out");
        Err(ConfigError::Conflict {
            key,
            origin: origin.clone(),
            problem,
        })
    };
    let filled = match value {
        Value::Array(items) => Value::Array(items.iter().map(one).collect::<Result<_, _>>()?),
        other => one(other)?,
    };
    if filled != *value {
        add(derived, key, filled, origin.clone());
    }
    Ok(())
}

/// Replaces `credential:NAME` by the path of the systemd credential. In a process without credentials the link's
/// paths stay as they are, since most commands never read them.
fn find_credentials(
    derived: &mut Layer,
    effective: &Effective,
    folder: Option<&str>,
) -> Result<(), ConfigError> {
    for key in KEYS.iter().filter(|key| matches!(key.shape, Shape::Path)) {
        let Some(Entry {
            value: Some(Value::String(text)),
            origin,
        }) = effective.get(key.path)
        else {
            continue;
        };
        let Some(name) = text.strip_prefix(CREDENTIAL_PREFIX) else {
            continue;
        };
        if folder.is_none() && key.path.starts_with("mqtt.") {
            continue;
        }
        let file = folder.map(|folder| Path::new(folder).join(name));
        let Some(file) = file.as_deref().and_then(Path::to_str) else {
            let problem = format!(
                "the credential {name:?} needs $CREDENTIALS_DIRECTORY, which is not set; run under systemd with \
                 LoadCredential={name}:/path/of/the/file in the unit, or name a file"
            );
            return Err(ConfigError::Conflict {
                key: key.path,
                origin: origin.clone(),
                problem,
            });
        };
        add(derived, key.path, Value::String(file.to_owned()), origin.clone());
    }
    Ok(())
}

fn add(layer: &mut Layer, key: &'static str, value: Value, origin: Origin) {
    layer.entries.insert(
        key,
        Entry {
            value: Some(value),
            origin,
        },
    );
}

fn is_set(effective: &Effective, key: &str) -> bool {
    effective.get(key).is_some_and(|entry| entry.value.is_some())
}

fn text<'a>(effective: &'a Effective, key: &str) -> Option<&'a str> {
    effective.get(key)?.value.as_ref()?.as_str()
}
