//! The redaction of secrets and prompts.

use std::path::Path;

use phi_edge_config::Config;

use crate::setup::link;

/// The text in place of a secret.
const REPLACEMENT: &str = "***";
/// The length of the shortest secret that is redacted, in bytes: shorter ones occur within ordinary words.
const MIN_SECRET_LEN: usize = 4;

/// Replaces secrets and prompts in texts.
pub(super) struct Redactor {
    secrets: Vec<String>,
}

impl Redactor {
    /// A redactor for the secrets and prompts of the configuration, and for the unit's credentials where they can be
    /// read.
    pub(super) fn new(config: Option<&Config>, flags: &[(String, String)]) -> Self {
        let mut secrets = credentials();
        // Of a configuration that can't be used, too.
        let set = std::env::vars().filter(|(name, _)| name.starts_with("PHI_EDGE__"));
        for (name, value) in set.chain(flags.iter().cloned()) {
            let name = name.to_lowercase();
            if name.ends_with("password") || name.ends_with("system_prompts") {
                secrets.push(value);
            }
        }
        if let Some(config) = config {
            if let Ok(Some((_, password))) = link::credentials(config) {
                secrets.push(password);
            }
            for prompt in config.runtime.system_prompts.iter().flatten() {
                // As they are, and as TOML has them.
                secrets.push(prompt.clone());
                let quoted = format!("{prompt:?}");
                secrets.push(quoted.trim_matches('"').to_owned());
            }
            for rule in &config.rules {
                secrets.extend(rule.words.system.clone());
            }
        }
        secrets.retain(|secret| secret.len() >= MIN_SECRET_LEN);
        // A secret that contains another is replaced first.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self { secrets }
    }

    pub(super) fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets {
            text = text.replace(secret.as_str(), REPLACEMENT);
        }
        text.lines().fold(String::new(), |mut out, line| {
            out.push_str(&user_info(line));
            out.push('\n');
            out
        })
    }
}

/// Redacts the user information of URLs: `scheme://user:password@host`.
fn user_info(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        out.push_str(before);
        let end = after
            .find(|c: char| c == '/' || c.is_whitespace() || c == '"')
            .unwrap_or(after.len());
        let (authority, further) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((user, host)) if user.contains(':') => {
                out.push_str(REPLACEMENT);
                out.push('@');
                out.push_str(host);
            }
            _ => out.push_str(authority),
        }
        rest = further;
    }
    out.push_str(rest);
    out
}

/// The credentials that systemd has given to this process: each line is a secret.
fn credentials() -> Vec<String> {
    let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
        return Vec::new();
    };
    let Ok(files) = std::fs::read_dir(Path::new(&folder)) else {
        return Vec::new();
    };
    files
        .flatten()
        .filter_map(|file| std::fs::read_to_string(file.path()).ok())
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_passwords_of_urls_are_hidden() {
        let redactor = Redactor {
            secrets: vec!["hunter2hunter2".into(), "hunter2".into()],
        };
        let text =
            "a hunter2hunter2 b\nmqtts://me:pass@host:8883/x mqtt://me:pass@host https://docs.rs/x@1\n";
        let out = redactor.redact(text);
        assert!(!out.contains("hunter2") && !out.contains("me:pass@"), "{out}");
        assert!(
            out.contains("a *** b\n") && out.contains("mqtt://***@host https://docs.rs/x@1\n"),
            "{out}"
        );
    }
}
