//! HTTP requests to the hub and to where it redirects: proxies, certificates, the token, and which failures are worth
//! a retry.

use std::sync::Arc;
use std::time::Duration;

use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};
use url::{Host, Url};

use super::retry::RetryPolicy;
use crate::pull_error::PullError;
use crate::redaction::without_user;

/// The most redirects that are followed for one request.
const MAX_REDIRECTS: usize = 10;

/// The proxies of this machine. They must let `CONNECT` through, which is what proxies do for https.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// For `http://` addresses.
    pub http: Option<String>,
    /// For `https://` addresses.
    pub https: Option<String>,
    /// Hosts that are reached directly, with their subdomains; `*` is all.
    pub except: Vec<String>,
}

impl Proxies {
    /// As the environment names them: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in capitals or not.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            [name.to_lowercase(), name.to_owned()]
                .iter()
                .find_map(|name| variable(name).filter(|value| !value.trim().is_empty()))
        };
        let all = either("ALL_PROXY");
        Self {
            http: either("HTTP_PROXY").or_else(|| all.clone()),
            https: either("HTTPS_PROXY").or(all),
            except: either("NO_PROXY")
                .unwrap_or_default()
                .split(',')
                .map(|host| host.trim().to_lowercase())
                .filter(|host| !host.is_empty())
                .collect(),
        }
    }

    /// Whether `host` is reached directly.
    fn spares(&self, host: &str) -> bool {
        let host = host.to_lowercase();
        self.except.iter().any(|except| {
            let except = except.trim_start_matches("*.").trim_start_matches('.');
            except == "*"
                || host == except
                || host.strip_suffix(except).is_some_and(|rest| rest.ends_with('.'))
        })
    }
}

/// The error of a request.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// A failure that a retry may mend.
    Retry {
        why: String,
        /// The wait that the server asks for.
        wait: Option<Duration>,
    },
    /// A permanent failure.
    Final(PullError),
    /// The request was stopped because another file failed.
    Stopped,
}

impl RequestError {
    pub(crate) fn retry(why: impl Into<String>) -> Self {
        Self::Retry {
            why: why.into(),
            wait: None,
        }
    }
}

impl From<PullError> for RequestError {
    fn from(error: PullError) -> Self {
        Self::Final(error)
    }
}

/// A response with a body, and the address that it came from.
pub(crate) struct HubResponse {
    pub(crate) inner: Response<Body>,
    pub(crate) url: Url,
}

impl HubResponse {
    pub(crate) fn status(&self) -> u16 {
        self.inner.status().as_u16()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.inner.headers().get(name)?.to_str().ok()
    }
}

/// The HTTP client of one hub.
pub(crate) struct Client {
    base: Url,
    token: Option<String>,
    proxies: Proxies,
    direct: Agent,
    http: Agent,
    https: Agent,
}

impl Client {
    pub(crate) fn new(
        base: &str,
        token: Option<String>,
        proxies: Proxies,
        policy: &RetryPolicy,
    ) -> Result<Self, PullError> {
        let usage = |given: &str, fault: String| PullError::Usage {
            given: without_user(given),
            fault,
        };
        let url =
            Url::parse(base).map_err(|error| usage(base, format!("is no address of a hub: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(usage(
                base,
                "is no address of a hub: it must begin with https://".to_owned(),
            ));
        }
        let roots = roots();
        let agent = |proxy: Option<&String>| {
            let proxy = proxy
                .map(|proxy| Proxy::new(proxy).map_err(|error| usage(proxy, format!("is no proxy: {error}"))))
                .transpose()?;
            Ok::<Agent, PullError>(agent(proxy, roots.clone(), policy))
        };
        Ok(Self {
            base: url,
            token,
            direct: agent(None)?,
            http: agent(proxies.http.as_ref())?,
            https: agent(proxies.https.as_ref())?,
            proxies,
        })
    }

    /// The hub, as it was named, maybe with a password.
    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// The hub, for people and manifests.
    pub(crate) fn name(&self) -> String {
        redacted(&self.base).trim_end_matches('/').to_owned()
    }

    /// Requests `url`, follows redirects, and sorts the responses: 200, 206 and 416 are returned.
    pub(crate) fn get(
        &self,
        what: &str,
        url: &Url,
        headers: &[(&str, String)],
    ) -> Result<HubResponse, RequestError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self
                .agent(&url)
                .get(url.as_str())
                .header("accept-encoding", "identity");
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            if let Some(token) = self.token.as_ref().filter(|_| self.may_see_token(&url)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let inner = request
                .call()
                .map_err(|error| RequestError::retry(format!("{}: {error}", redacted(&url))))?;
            let response = HubResponse { inner, url };
            match response.status() {
                200 | 206 | 416 => return Ok(response),
                301 | 302 | 303 | 307 | 308 => url = target(&response)?,
                _ => return Err(self.refusal(what, &response)),
            }
        }
        Err(RequestError::retry(format!(
            "{}: more than {MAX_REDIRECTS} redirects",
            redacted(&url)
        )))
    }

    fn agent(&self, url: &Url) -> &Agent {
        match url.scheme() {
            _ if self.proxies.spares(url.host_str().unwrap_or_default()) => &self.direct,
            "http" => &self.http,
            _ => &self.https,
        }
    }

    /// The token is for the hub alone, never for where it redirects, and never in clear over a network.
    fn may_see_token(&self, url: &Url) -> bool {
        let loopback = match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        self.is_hub(url) && (url.scheme() == "https" || loopback)
    }

    pub(crate) fn is_hub(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// The error of a response without a usable body. Only the hub itself may say that something does not exist:
    /// other servers see signed addresses, which expire.
    fn refusal(&self, what: &str, response: &HubResponse) -> RequestError {
        let status = response.status();
        let what = what.to_owned();
        let hub = self.is_hub(&response.url);
        match status {
            401 | 403 if hub => PullError::Refused { what, status }.into(),
            404 | 410 if hub => PullError::NotFound { what, status }.into(),
            400 | 402 | 405 | 406 | 409 | 411..=415 | 451 if hub => PullError::Protocol {
                what,
                fault: format!("HTTP {status}"),
            }
            .into(),
            _ => RequestError::Retry {
                why: format!("{} answers HTTP {status}", redacted(&response.url)),
                wait: response
                    .header("retry-after")
                    .and_then(|text| text.trim().parse().ok())
                    .map(Duration::from_secs),
            },
        }
    }
}

/// The target of a redirect.
fn target(response: &HubResponse) -> Result<Url, RequestError> {
    let from = redacted(&response.url);
    let location = response
        .header("location")
        .ok_or_else(|| RequestError::retry(format!("{from} redirects to nowhere")))?;
    let to = response
        .url
        .join(location)
        .map_err(|error| RequestError::retry(format!("{from} redirects to no address: {error}")))?;
    match (response.url.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(to),
        _ => Err(RequestError::retry(format!(
            "{from} redirects to {}, which is not encrypted",
            redacted(&to)
        ))),
    }
}

/// An address without user, password and query: signed addresses are secrets, and long.
fn redacted(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    without_user(url.as_str())
}

/// The authorities that this machine trusts, which cover a company's own proxy or mirror; where it has none, those
/// that come with the TLS library.
fn roots() -> RootCerts {
    let found = rustls_native_certs::load_native_certs();
    let roots: Vec<Certificate<'static>> = found
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    if roots.is_empty() {
        RootCerts::WebPki
    } else {
        RootCerts::Specific(Arc::new(roots))
    }
}

fn agent(proxy: Option<Proxy>, roots: RootCerts, policy: &RetryPolicy) -> Agent {
    Agent::config_builder()
        .proxy(proxy)
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .http_status_as_error(false)
        .max_redirects(0)
        .user_agent(concat!("phi-edge/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(policy.stall_timeout / 2))
        .timeout_recv_response(Some(policy.stall_timeout))
        .timeout_per_read(Some(policy.stall_timeout))
        .build()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_come_from_the_environment() {
        let proxies = Proxies::from_environment(|name| match name {
            "https_proxy" => Some("http://proxy:3128".into()),
            "ALL_PROXY" => Some("http://all:1".into()),
            "NO_PROXY" => Some("hub.local, .example.com".into()),
            _ => None,
        });
        assert_eq!(proxies.https.as_deref(), Some("http://proxy:3128"));
        assert_eq!(proxies.http.as_deref(), Some("http://all:1"));
        for spared in ["hub.local", "a.hub.local", "EXAMPLE.com", "x.example.com"] {
            assert!(proxies.spares(spared), "{spared}");
        }
        for other in ["local", "myhub.local", "example.com.evil"] {
            assert!(!proxies.spares(other), "{other}");
        }
    }

    #[test]
    fn a_password_of_the_hub_is_asked_with_and_never_told() {
        let client = |base: &str| Client::new(base, None, Proxies::default(), &RetryPolicy::default());
        let hub = client("https://me:pass@hub.local/path/").unwrap();
        assert_eq!(hub.base().password(), Some("pass"));
        assert_eq!(hub.name(), "https://hub.local/path");
        let url = Url::parse("https://me:pass@hub.local/a?signature=x").unwrap();
        assert_eq!(redacted(&url), "https://hub.local/a");
        let Err(error) = client("ftp://me:pass@hub.local") else {
            panic!("ftp is not spoken");
        };
        assert!(error.to_string().starts_with("ftp://hub.local: "), "{error}");
    }

    #[test]
    fn the_token_is_for_the_hub_alone() {
        let client = |base: &str| {
            Client::new(
                base,
                Some("t".into()),
                Proxies::default(),
                &RetryPolicy::default(),
            )
            .unwrap()
        };
        let sees = |base: &str, url: &str| client(base).may_see_token(&Url::parse(url).unwrap());
        assert!(sees("https://hub.local", "https://hub.local/a"));
        assert!(sees("http://127.0.0.1:81", "http://127.0.0.1:81/a"));
        assert!(!sees("https://hub.local", "https://cdn.local/a"));
        assert!(!sees("https://hub.local", "https://hub.local:8443/a"));
        assert!(!sees("http://hub.local", "http://hub.local/a"));
        assert!(!sees("http://127.0.0.1:81", "http://127.0.0.1:82/a"));
    }
}
