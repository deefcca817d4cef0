//! Topics of the contract: building them, telling them apart, and what a response topic may be.

/// The most bytes of the level that names a client: replies go below it, on a topic that must itself be one.
const CLIENT: usize = 256;

/// The topics of one node, and of the pool that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    base: String,
    allowed: Vec<String>,
    pool: Option<Pool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pool {
    /// The share's name.
    name: String,
    /// What stands before `/request`.
    base: String,
}

/// What a message on one of our subscriptions is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inbound<'a> {
    pub(crate) kind: Kind,
    /// Below whose base.
    pub(crate) scope: Scope,
    /// The last level, where there is one. It may be none that names a client: see [`Inbound::misnamed`].
    pub(crate) client: Option<&'a str>,
}

impl Inbound<'_> {
    /// Why the last level names no client, if so: nothing may be asked or answered in its name.
    pub(crate) fn misnamed(&self) -> Option<String> {
        let client = self.client?;
        if client.is_empty() {
            return Some("topic: its last level, which names the client, is empty".to_owned());
        }
        (client.len() > CLIENT).then(|| {
            format!(
                "topic: its last level, which names the client, has {} bytes; at most {CLIENT} are taken",
                client.len()
            )
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Cancel,
}

/// Who was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// This node.
    Node,
    /// Any node of the pool.
    Pool,
}

/// Why a response topic is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Empty, too long, with a wildcard, a NUL or a leading `$`.
    #[error(
        "response topic {0:?} is no topic to publish on: it may hold no +, # or NUL and must not begin with $"
    )]
    Invalid(String),
    /// Not in `mqtt.reply_topics`.
    #[error("response topic {0:?} is not allowed: mqtt.reply_topics lists what is")]
    NotAllowed(String),
    /// A client's replies go below its own topic.
    #[error("response topic {topic:?} is not allowed on this request topic: it must be below {below}")]
    NotOfClient {
        /// The topic asked for.
        topic: String,
        /// Where it must be.
        below: String,
    },
}

impl Topics {
    /// Topics below `base` (no trailing slash), with the filters that response topics must match one of.
    pub fn new(base: impl Into<String>, allowed: Vec<String>) -> Self {
        Self {
            base: base.into(),
            allowed,
            pool: None,
        }
    }

    /// The same node as a member of the pool `name`, whose topics are below `{pool_base}/{name}`.
    #[must_use]
    pub fn in_pool(mut self, pool_base: &str, name: &str) -> Self {
        self.pool = Some(Pool {
            name: name.to_owned(),
            base: format!("{pool_base}/{name}"),
        });
        self
    }

    /// What stands before `/request`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What the node always subscribes to: its own requests, and cancellations, also of the pool's, as nobody but the node
    /// that serves a request knows that it does.
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

    /// The pool's requests, of which the broker gives each to one member; empty without a pool.
    pub fn shared_subscriptions(&self) -> Vec<String> {
        let pool = self.pool.iter();
        pool.flat_map(|pool| {
            ["request", "request/+"].map(|tail| format!("$share/{}/{}/{tail}", pool.name, pool.base))
        })
        .collect()
    }

    /// Where a request goes.
    pub fn request(&self, client: Option<&str>) -> String {
        self.below("request", client)
    }

    /// Where a cancellation goes.
    pub fn cancel(&self, client: Option<&str>) -> String {
        self.below("cancel", client)
    }

    /// Where replies go if the request names no response topic.
    pub fn response(&self, client: Option<&str>, id: &str) -> String {
        format!("{}/{id}", self.below("response", client))
    }

    /// Retained: how the node is.
    pub fn status(&self) -> String {
        self.below("status", None)
    }

    /// Retained: how much it does.
    pub fn stats(&self) -> String {
        self.below("stats", None)
    }

    /// What could not be served.
    pub fn dead_letter(&self) -> String {
        self.below("dead-letter", None)
    }

    fn below(&self, what: &str, client: Option<&str>) -> String {
        match client {
            Some(client) => format!("{}/{what}/{client}", self.base),
            None => format!("{}/{what}", self.base),
        }
    }

    /// Where replies go to a request that reached us in this way and names no response topic.
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

    /// Whether a topic is below what is ours: nothing there is taken for a machine's message.
    pub(crate) fn is_own(&self, topic: &str) -> bool {
        let below = |base: &str| {
            topic
                .strip_prefix(base)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        below(&self.base) || self.pool.as_ref().is_some_and(|pool| below(&pool.base))
    }

    /// Whether an event may be published on a topic: one that can be published on, and that nobody takes for a request.
    pub(crate) fn check_event(&self, topic: &str) -> Result<(), TopicError> {
        if !is_topic(topic) {
            return Err(TopicError::Invalid(topic.to_owned()));
        }
        if self.inbound(topic).is_some() {
            return Err(TopicError::NotAllowed(topic.to_owned()));
        }
        Ok(())
    }

    /// Tells what a message is; `None` for a topic that was never subscribed to.
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
            "request" => Kind::Request,
            "cancel" => Kind::Cancel,
            _ => return None,
        };
        Some(Inbound { kind, scope, client })
    }

    /// Whether replies to a request of `client` may go to `topic`.
    pub(crate) fn check_response(
        &self,
        topic: &str,
        scope: Scope,
        client: Option<&str>,
    ) -> Result<(), TopicError> {
        if !is_topic(topic) {
            return Err(TopicError::Invalid(topic.to_owned()));
        }
        let responses = format!("{}/response/", self.base_of(scope));
        let of_pool = scope == Scope::Pool && topic.starts_with(&responses);
        // Own requests would be answers to ourselves, and so for ever.
        let own = self.inbound(topic).is_some();
        if own || !(of_pool || self.allowed.iter().any(|filter| filter_matches(filter, topic))) {
            return Err(TopicError::NotAllowed(topic.to_owned()));
        }
        let Some(client) = client else {
            return Ok(());
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
}

/// Whether a topic can be published on.
pub(crate) fn is_topic(topic: &str) -> bool {
    !topic.is_empty()
        && u16::try_from(topic.len()).is_ok()
        && !topic.starts_with('$')
        && !topic.contains(['+', '#', '\0'])
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topics() -> Topics {
        Topics::new(
            "phi-edge/v1/box",
            vec!["phi-edge/v1/box/response/#".into(), "apps/+/answers".into()],
        )
    }

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("#", "a/b", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("+/+", "/x", true),
            ("a/#/b", "a/c/b", false),
        ] {
            assert_eq!(filter_matches(filter, topic), expected, "{filter} on {topic}");
        }
    }

    #[test]
    fn inbound_topics_are_told_apart() {
        let t = topics().in_pool("phi-edge/v1/pool", "plant");
        for (topic, kind, scope, client) in [
            ("phi-edge/v1/box/request", Kind::Request, Scope::Node, None),
            (
                "phi-edge/v1/box/request/till-3",
                Kind::Request,
                Scope::Node,
                Some("till-3"),
            ),
            ("phi-edge/v1/box/cancel/x", Kind::Cancel, Scope::Node, Some("x")),
            (
                "phi-edge/v1/pool/plant/request/x",
                Kind::Request,
                Scope::Pool,
                Some("x"),
            ),
            ("phi-edge/v1/pool/plant/cancel", Kind::Cancel, Scope::Pool, None),
        ] {
            assert_eq!(t.inbound(topic), Some(Inbound { kind, scope, client }), "{topic}");
        }
        for other in [
            "phi-edge/v1/box",
            "phi-edge/v1/box/request/a/b",
            "phi-edge/v1/box/status",
            "phi-edge/v1/boxer/request",
            "phi-edge/v1/pool/other/request",
            "x",
        ] {
            assert_eq!(t.inbound(other), None, "{other}");
        }
    }

    #[test]
    fn a_client_has_a_name_of_bounded_length() {
        let t = topics();
        let misnamed = |client: &str| {
            let topic = format!("phi-edge/v1/box/request/{client}");
            t.inbound(&topic).expect("a request").misnamed()
        };
        assert_eq!(misnamed("till-3"), None);
        assert_eq!(misnamed(&"c".repeat(CLIENT)), None);
        assert!(misnamed(&"c".repeat(CLIENT + 1)).is_some());
        assert!(misnamed("").is_some());
        assert_eq!(
            t.inbound("phi-edge/v1/box/request").and_then(|i| i.misnamed()),
            None
        );
    }

    #[test]
    fn response_topics_are_bounded() {
        let t = topics();
        assert!(
            t.check_response("phi-edge/v1/box/response/1", Scope::Node, None)
                .is_ok()
        );
        assert!(t.check_response("apps/till/answers", Scope::Node, None).is_ok());
        for bad in ["", "a/+", "a/#", "$SYS/x", "a\0b"] {
            assert!(
                matches!(
                    t.check_response(bad, Scope::Node, None),
                    Err(TopicError::Invalid(_))
                ),
                "{bad:?}"
            );
        }
        assert!(matches!(
            t.check_response("elsewhere", Scope::Node, None),
            Err(TopicError::NotAllowed(_))
        ));
        assert!(
            t.check_response("phi-edge/v1/box/response/c/1", Scope::Node, Some("c"))
                .is_ok()
        );
        for bad in [
            "phi-edge/v1/box/response/d/1",
            "phi-edge/v1/box/response/c/",
            "apps/c/answers",
        ] {
            assert!(
                matches!(
                    t.check_response(bad, Scope::Node, Some("c")),
                    Err(TopicError::NotOfClient { .. })
                ),
                "{bad}"
            );
        }
    }

    #[test]
    fn own_topics_are_never_answered_on() {
        let t = Topics::new("b", vec!["#".into()]).in_pool("p", "x");
        for own in ["b/request", "b/cancel/c", "p/x/request"] {
            assert!(
                matches!(
                    t.check_response(own, Scope::Node, None),
                    Err(TopicError::NotAllowed(_))
                ),
                "{own}"
            );
        }
        assert!(t.check_response("elsewhere", Scope::Node, None).is_ok());
    }

    #[test]
    fn a_pool_shares_its_requests_and_has_responses_of_its_own() {
        let t = topics().in_pool("phi-edge/v1/pool", "plant");
        assert_eq!(
            t.shared_subscriptions(),
            [
                "$share/plant/phi-edge/v1/pool/plant/request",
                "$share/plant/phi-edge/v1/pool/plant/request/+"
            ]
        );
        assert!(
            t.check_response("phi-edge/v1/pool/plant/response/c/1", Scope::Pool, Some("c"))
                .is_ok()
        );
        assert!(
            t.check_response("phi-edge/v1/pool/plant/response/d/1", Scope::Pool, Some("c"))
                .is_err()
        );
        assert!(
            t.check_response("phi-edge/v1/pool/plant/response/1", Scope::Node, None)
                .is_err()
        );
        assert_eq!(
            t.response_in(Scope::Pool, Some("c"), "1"),
            "phi-edge/v1/pool/plant/response/c/1"
        );
        assert!(topics().shared_subscriptions().is_empty());
    }

    /// The standard's rules, written down level by level.
    fn plainly(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            ([], []) => true,
            (["#"], _) => true,
            ([f, fs @ ..], [t, ts @ ..]) => (*f == "+" || f == t) && plainly(fs, ts),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_plain_rules(
            filter in proptest::collection::vec(prop_oneof!["[ab]", Just("+".to_owned()), Just(String::new())], 1..5),
            hash in any::<bool>(),
            topic in proptest::collection::vec(prop_oneof!["[ab]", Just(String::new())], 1..5),
        ) {
            let mut filter: Vec<&str> = filter.iter().map(String::as_str).collect();
            if hash { filter.push("#"); }
            let topic: Vec<&str> = topic.iter().map(String::as_str).collect();
            prop_assert_eq!(filter_matches(&filter.join("/"), &topic.join("/")), plainly(&filter, &topic));
        }
    }
}
