//! The listing of a repository: its commit, its licence, its files.

use std::collections::BTreeSet;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use url::Url;

use super::http::{Client, HubResponse, RequestError};
use crate::digest::ExpectedHash;
use crate::pull_error::PullError;
use crate::safe_path::is_safe;

/// The most pages of a listing; published repositories have one or two.
const MAX_PAGES: usize = 1000;

/// The most bytes of one page.
const MAX_PAGE_BYTES: u64 = 64 << 20;

/// The characters that a path segment has unescaped.
const UNESCAPED_IN_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A revision, as the hub names it.
#[derive(Debug, Clone)]
pub(crate) struct Revision {
    pub(crate) commit: String,
    pub(crate) licence: Option<String>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RepositoryFile {
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) expected: ExpectedHash,
}

/// Asks for the commit of `revision` and for the model card's licence.
pub(crate) fn revision(client: &Client, repository: &str, revision: &str) -> Result<Revision, RequestError> {
    let what = format!("{repository} at {revision}");
    let path = format!(
        "api/models/{}/revision/{}",
        encoded_path(repository),
        encoded(revision)
    );
    let json = json(&what, client.get(&what, &address(client, &path)?, &[])?)?;
    let commit = json["sha"].as_str().unwrap_or_default();
    let is_commit = (7..=64).contains(&commit.len()) && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_commit {
        return Err(protocol(&what, "it names no commit").into());
    }
    Ok(Revision {
        commit: commit.to_owned(),
        licence: licence(&json),
    })
}

/// The model card's licence; several are joined.
fn licence(json: &Value) -> Option<String> {
    let card = &json["cardData"]["license"];
    let several = || {
        let names: Vec<&str> = card.as_array()?.iter().filter_map(Value::as_str).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let tagged = || {
        let mut tags = json["tags"].as_array()?.iter().filter_map(Value::as_str);
        tags.find_map(|tag| tag.strip_prefix("license:"))
            .map(ToOwned::to_owned)
    };
    card.as_str()
        .map(ToOwned::to_owned)
        .or_else(several)
        .or_else(tagged)
}

/// All files of `repository` at `commit`.
pub(crate) fn files(
    client: &Client,
    repository: &str,
    commit: &str,
    ask: impl Fn(&str, &Url) -> Result<Page, PullError>,
) -> Result<Vec<RepositoryFile>, PullError> {
    let what = format!("the files of {repository} at {commit}");
    let path = format!("api/models/{}/tree/{}", encoded_path(repository), encoded(commit));
    let mut url = address(client, &path)?;
    url.set_query(Some("recursive=true"));
    let mut entries = Vec::new();
    let mut asked = BTreeSet::new();
    while asked.insert(url.to_string()) {
        if asked.len() > MAX_PAGES {
            return Err(protocol(
                &what,
                format!("its listing has more than {MAX_PAGES} pages"),
            ));
        }
        let page = ask(&what, &url)?;
        let list = page
            .json
            .as_array()
            .ok_or_else(|| protocol(&what, "it is no list"))?;
        for item in list {
            if item["type"] == "file" {
                entries.push(entry(&what, item)?);
            }
        }
        match page.next {
            // A mirror may pass on the hub's own address: only its query is followed.
            Some(next) => url.set_query(next.query()),
            None => return Ok(entries),
        }
    }
    Err(protocol(&what, "its listing goes in a circle"))
}

/// One page of a listing.
pub(crate) struct Page {
    json: Value,
    next: Option<Url>,
}

/// Asks for one page.
pub(crate) fn page(client: &Client, what: &str, url: &Url) -> Result<Page, RequestError> {
    let response = client.get(what, url, &[])?;
    let next = response
        .header("link")
        .and_then(next_page)
        .and_then(|link| response.url.join(link).ok());
    Ok(Page {
        json: json(what, response)?,
        next,
    })
}

/// The address in `<address>; rel="next"`, of several separated by commas.
fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|part| {
        let (address, relation) = part.trim().strip_prefix('<')?.split_once('>')?;
        relation.contains("rel=\"next\"").then_some(address)
    })
}

fn entry(what: &str, item: &Value) -> Result<RepositoryFile, PullError> {
    let path = item["path"].as_str().unwrap_or_default();
    if !is_safe(path) {
        return Err(protocol(
            what,
            format!("it lists {path:?}, which is no path to write to"),
        ));
    }
    let large = &item["lfs"];
    let (size, expected) = if large.is_object() {
        (
            &large["size"],
            ExpectedHash::Sha256(hash(what, path, &large["oid"], 64)?),
        )
    } else {
        (
            &item["size"],
            ExpectedHash::GitBlob(hash(what, path, &item["oid"], 40)?),
        )
    };
    let size = size
        .as_u64()
        .ok_or_else(|| protocol(what, format!("it gives no size of {path}")))?;
    Ok(RepositoryFile {
        path: path.to_owned(),
        size,
        expected,
    })
}

fn hash(what: &str, path: &str, value: &Value, digits: usize) -> Result<String, PullError> {
    let text = value.as_str().unwrap_or_default();
    let text = text.strip_prefix("sha256:").unwrap_or(text);
    if text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_lowercase())
    } else {
        Err(protocol(what, format!("it gives no hash of {path}")))
    }
}

/// The address of a file.
pub(crate) fn file_address(
    client: &Client,
    repository: &str,
    commit: &str,
    path: &str,
) -> Result<Url, PullError> {
    let path = format!(
        "{}/resolve/{}/{}",
        encoded_path(repository),
        encoded(commit),
        encoded_path(path)
    );
    address(client, &path)
}

/// `path` below the hub, whose own address may have a path.
fn address(client: &Client, path: &str) -> Result<Url, PullError> {
    let base = client.base().as_str().trim_end_matches('/');
    Url::parse(&format!("{base}/{path}"))
        .map_err(|error| protocol(path, format!("it makes no address: {error}")))
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, UNESCAPED_IN_SEGMENT).to_string()
}

fn encoded_path(path: &str) -> String {
    path.split('/').map(encoded).collect::<Vec<_>>().join("/")
}

/// The JSON of a response. A truncated one is worth a retry.
fn json(what: &str, mut response: HubResponse) -> Result<Value, RequestError> {
    if response.status() != 200 {
        return Err(protocol(what, format!("HTTP {}", response.status())).into());
    }
    let bytes = response
        .inner
        .body_mut()
        .with_config()
        .limit(MAX_PAGE_BYTES)
        .read_to_vec()
        .map_err(|error| RequestError::retry(format!("{what}: {error}")))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| RequestError::retry(format!("{what}: no JSON came: {error}")))
}

fn protocol(what: &str, fault: impl Into<String>) -> PullError {
    PullError::Protocol {
        what: what.to_owned(),
        fault: fault.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn licences_are_read_as_cards_have_them() {
        let check = |json: Value, expected: Option<&str>| assert_eq!(licence(&json).as_deref(), expected);
        check(json!({"cardData": {"license": "mit"}}), Some("mit"));
        check(
            json!({"cardData": {"license": ["mit", "apache-2.0"]}}),
            Some("mit, apache-2.0"),
        );
        check(json!({"tags": ["onnx", "license:mit"]}), Some("mit"));
        check(json!({}), None);
    }

    #[test]
    fn the_next_page_is_found_among_links() {
        let link = "<https://h/a>; rel=\"prev\", <https://h/b?cursor=x>; rel=\"next\"";
        assert_eq!(next_page(link), Some("https://h/b?cursor=x"));
        assert_eq!(next_page("<https://h/a>; rel=\"prev\""), None);
    }
}
