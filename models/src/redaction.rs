//! Redaction: addresses as they may be stored, shown and logged.

/// The address without user and password, which may stand before its host.
pub(crate) fn without_user(address: &str) -> String {
    let begin = address.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = address.split_at(begin);
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, further) = rest.split_at(end);
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}{host}{further}"),
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_user_and_password_go() {
        for (address, shown) in [
            (
                "https://me:pa@ss@hub.local/api?x=a@b",
                "https://hub.local/api?x=a@b",
            ),
            ("http://token@hub.local:8080", "http://hub.local:8080"),
            ("me:pass@proxy:3128", "proxy:3128"),
            ("https://hub.local/a@b", "https://hub.local/a@b"),
            ("https://hub.local", "https://hub.local"),
            ("", ""),
        ] {
            assert_eq!(without_user(address), shown);
        }
    }
}
