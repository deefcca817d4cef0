//! The topics of the contract: their names, their parsing, and the check of response topics.

mod clients;
mod form;

pub(crate) use clients::KnownClients;
pub use form::TopicFault;
pub(crate) use form::{brief, is_allowed_text};

/// The most bytes of the level that names a client, since replies go to longer topics with the same level.
const MAX_CLIENT_BYTES: usize = 256;

/// The topics of one node, and of the pool that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    base: String,
    allowed: Vec<String>,
    pool: Option<Pool>,
    max_levels: usize,
}

/// The first level of the node's own topics below its base, and of those below a pool's.
const OWN_LEVELS: [&str; 5] = ["request", "cancel", "status", "stats", "dead-letter"];

/// The default of [`Topics::with_max_levels`]: the levels that mosquitto takes, as it counts them.
const DEFAULT_MAX_LEVELS: usize = 200;

/// A pool that nodes share.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pool {
    /// The name of the shared subscription.
    name: String,
    /// The topic before `/request`.
    base: String,
}

/// The parsed topic of a message to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inbound<'a> {
    pub(crate) kind: InboundKind,
    /// Whether the topic is the node's or its pool's.
    pub(crate) scope: Scope,
    /// The last level, if there is one. It may be no valid client name: see [`Inbound::misnamed`].
    pub(crate) client: Option<&'a str>,
}

impl Inbound<'_> {
    /// Returns the reason why the last level is no valid client name, if so: such a request is refused.
    pub(crate) fn misnamed(&self) -> Option<String> {
        let client = self.client?;
        if client.is_empty() {
            return Some("topic: its last level, which names the client, is empty".to_owned());
        }
        (client.len() > MAX_CLIENT_BYTES).then(|| {
            format!(
                "topic: its last level, which names the client, has {} bytes; at most {MAX_CLIENT_BYTES} are taken",
                client.len()
            )
        })
    }
}

/// The kind of a message to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InboundKind {
    Request,
    Cancel,
}

/// The addressee of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// This node.
    Node,
    /// Any node of the pool.
    Pool,
}

/// The reason why a topic is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// No broker accepts the topic.
    #[error("{0}")]
    Invalid(TopicFault),
    /// The node itself publishes or listens on the topic.
    #[error("topic \"{}\" is one of the node's own", brief(.0))]
    Own(String),
    /// The topic is not in `mqtt.reply_topics`.
    #[error("response topic \"{}\" is not allowed: mqtt.reply_topics lists what is", brief(.0))]
    NotAllowed(String),
    /// The topic belongs to a client with a request topic of its own, and the request names no client.
    #[error(
        "response topic \"{}\" is not allowed on this request topic: a client asks on {request}, and its replies are there, \
         unless a filter of mqtt.reply_topics other than \"{below}#\" begins so and matches it",
        brief(.topic)
    )]
    OfAnotherClient {
        /// The topic asked for.
        topic: String,
        /// The request topic of that client.
        request: String,
        /// The topic before the client's name.
        below: String,
    },
    /// The topic is not below the client's own response topic.
    #[error("response topic \"{}\" is not allowed on this request topic: it must be below {below}", brief(.topic))]
    NotOfClient {
        /// The topic asked for.
        topic: String,
        /// The topic that it must be below.
        below: String,
    },
}

impl Topics {
    /// Creates the topics below `base` (no trailing slash). A response topic must match one of the filters `allowed`.
    pub fn new(base: impl Into<String>, allowed: Vec<String>) -> Self {
        Self {
            base: base.into(),
            allowed,
            pool: None,
            max_levels: DEFAULT_MAX_LEVELS,
        }
    }

    /// Sets the most levels of a topic that the broker accepts, counted as mosquitto does: by the `/`.
    #[must_use]
    pub fn with_max_levels(self, levels: usize) -> Self {
        Self {
            max_levels: levels,
            ..self
        }
    }

    /// Adds the pool `name`, whose topics are below `{pool_base}/{name}`.
    #[must_use]
    pub fn in_pool(mut self, pool_base: &str, name: &str) -> Self {
        self.pool = Some(Pool {
            name: name.to_owned(),
            base: format!("{pool_base}/{name}"),
        });
        self
    }

    /// Returns the topic before `/request`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns the filters that the node always subscribes to: its requests and cancellations, and the pool's cancellations,
    /// since only the node that serves a request knows it.
    pub fn subscriptions(&self) -> Vec<String> {
        let below = |base: &str, tails: &[&str]| -> Vec<String> {
            tails.iter().map(|tail| format!("{base}/{tail}")).collect()
        };
        let mut filters = below(&self.base, &["request", "request/+", "cancel", "cancel/+"]);
        if let Some(pool) = &self.pool {
            filters.extend(below(&pool.base, &["cancel", "cancel/+"]));
        }
        filters
    }

    /// Returns the shared subscriptions to the pool's requests, of which the broker gives each to one member; none without a
    /// pool.
    pub fn shared_subscriptions(&self) -> Vec<String> {
        let pool = self.pool.iter();
        pool.flat_map(|pool| {
            ["request", "request/+"].map(|tail| format!("$share/{}/{}/{tail}", pool.name, pool.base))
        })
        .collect()
    }

    /// Returns the topic of requests.
    pub fn request(&self, client: Option<&str>) -> String {
        self.below("request", client)
    }

    /// Returns the topic of cancellations.
    pub fn cancel(&self, client: Option<&str>) -> String {
        self.below("cancel", client)
    }

    /// Returns the topic of replies to a request without a response topic.
    pub fn response(&self, client: Option<&str>, id: &str) -> String {
        format!("{}/{id}", self.below("response", client))
    }

    /// Returns the topic of the status.
    pub fn status(&self) -> String {
        self.below("status", None)
    }

    /// Returns the topic of the stats.
    pub fn stats(&self) -> String {
        self.below("stats", None)
    }

    /// Returns the topic of dead letters.
    pub fn dead_letter(&self) -> String {
        self.below("dead-letter", None)
    }

    fn below(&self, what: &str, client: Option<&str>) -> String {
        match client {
            Some(client) => format!("{}/{what}/{client}", self.base),
            None => format!("{}/{what}", self.base),
        }
    }

    /// Returns the topic of replies to a request of this scope without a response topic.
    pub(crate) fn response_in(&self, scope: Scope, client: Option<&str>, id: &str) -> String {
        let base = self.base_of(scope);
        match client {
            Some(client) => format!("{base}/response/{client}/{id}"),
            None => format!("{base}/response/{id}"),
        }
    }

    fn base_of(&self, scope: Scope) -> &str {
        match (scope, &self.pool) {
            (Scope::Pool, Some(pool)) => &pool.base,
            _ => &self.base,
        }
    }

    /// Whether a topic is below the node's or its pool's base: no message there is a device's.
    pub(crate) fn is_own(&self, topic: &str) -> bool {
        let below = |base: &str| {
            topic
                .strip_prefix(base)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        below(&self.base) || self.pool.as_ref().is_some_and(|pool| below(&pool.base))
    }

    /// Checks that an event may be published on a topic: brokers accept it, and it is none of the contract's.
    pub(crate) fn check_event(&self, topic: &str) -> Result<(), TopicError> {
        self.check_form(topic).map_err(TopicError::Invalid)?;
        if self.is_of_contract(topic, &["response"]) {
            return Err(TopicError::Own(topic.to_owned()));
        }
        Ok(())
    }

    /// Checks that brokers accept a topic, as far as its text tells.
    pub(crate) fn check_form(&self, topic: &str) -> Result<(), TopicFault> {
        form::check(topic, self.max_levels)
    }

    /// Whether a topic is one of the contract's, or below one: of the node or its pool, with the `further` levels.
    fn is_of_contract(&self, topic: &str, further: &[&str]) -> bool {
        let first = |base: &str| {
            let tail = topic.strip_prefix(base)?.strip_prefix('/')?;
            tail.split('/').next()
        };
        let of_pool = self.pool.as_ref().and_then(|pool| first(&pool.base));
        let own = |level: &str| OWN_LEVELS.contains(&level) || further.contains(&level);
        first(&self.base).is_some_and(own) || of_pool.is_some_and(own)
    }

    /// Parses the topic of a message; `None` if the node does not subscribe to it for itself.
    pub(crate) fn inbound<'a>(&self, topic: &'a str) -> Option<Inbound<'a>> {
        let tail = |base: &str| topic.strip_prefix(base)?.strip_prefix('/');
        let of_pool = || tail(&self.pool.as_ref()?.base);
        let (scope, tail) = match tail(&self.base) {
            Some(tail) => (Scope::Node, tail),
            None => (Scope::Pool, of_pool()?),
        };
        let (what, client) = match tail.split_once('/') {
            None => (tail, None),
            Some((what, client)) if !client.contains('/') => (what, Some(client)),
            Some(_) => return None,
        };
        let kind = match what {
            "request" => InboundKind::Request,
            "cancel" => InboundKind::Cancel,
            _ => return None,
        };
        Some(Inbound { kind, scope, client })
    }

    /// Checks that replies to a request of `client` may go to `topic`.
    pub(crate) fn check_response(
        &self,
        topic: &str,
        scope: Scope,
        client: Option<&str>,
        known: &KnownClients,
    ) -> Result<(), TopicError> {
        self.check_form(topic).map_err(TopicError::Invalid)?;
        let responses = format!("{}/response/", self.base_of(scope));
        let of_pool = scope == Scope::Pool && topic.starts_with(&responses);
        // A reply on a request topic would be a request to the node, without end; the others speak for the node.
        if self.is_of_contract(topic, &["event"]) {
            return Err(TopicError::Own(topic.to_owned()));
        }
        if !(of_pool || self.allowed.iter().any(|filter| filter_matches(filter, topic))) {
            return Err(TopicError::NotAllowed(topic.to_owned()));
        }
        let Some(client) = client else {
            return self.check_unnamed(topic, known);
        };
        let below = format!("{responses}{client}/");
        if topic.len() > below.len() && topic.starts_with(&below) {
            return Ok(());
        }
        Err(TopicError::NotOfClient {
            topic: topic.to_owned(),
            below,
        })
    }

    /// Checks the response topic of a request that names no client. It must not be a client's that has asked on a request
    /// topic of its own, whose name only the broker checks: `{base}/request` would be a way to write to all of them.
    fn check_unnamed(&self, topic: &str, known: &KnownClients) -> Result<(), TopicError> {
        let bases = [Some(&self.base), self.pool.as_ref().map(|pool| &pool.base)];
        for base in bases.into_iter().flatten() {
            let below = format!("{base}/response/");
            let Some(rest) = topic.strip_prefix(&below) else {
                continue;
            };
            let client = rest.split('/').next().unwrap_or_default();
            let named =
                |filter: &&String| filter.starts_with(&below) && filter.strip_prefix(&below) != Some("#");
            let mut named = self.allowed.iter().filter(named);
            if known.contains(client) && !named.any(|filter| filter_matches(filter, topic)) {
                return Err(TopicError::OfAnotherClient {
                    topic: topic.to_owned(),
                    request: format!("{base}/request/{}", brief(client)),
                    below,
                });
            }
        }
        Ok(())
    }
}

/// Whether an MQTT topic filter matches a topic (MQTT 5, section 4.7).
pub fn filter_matches(filter: &str, topic: &str) -> bool {
    // Wildcards at the first level don't match the broker's own topics.
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    let mut filters = filter.split('/').peekable();
    while let Some(filter) = filters.next() {
        if filter == "#" {
            return filters.peek().is_none();
        }
        match levels.next() {
            Some(level) if filter == "+" || filter == level => {}
            // `a/#` matches `a` itself.
            _ => return false,
        }
        if filters.peek() == Some(&"#") && levels.clone().next().is_none() {
            filters.next();
            return filters.next().is_none();
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests;
