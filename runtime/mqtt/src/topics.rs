//! Topics of the contract: building them, telling them apart, and what a response topic may be.

/// The topics of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    base: String,
    allowed: Vec<String>,
}

/// What a message on one of our subscriptions is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inbound<'a> {
    /// `{base}/request[/{client}]`
    Request(Option<&'a str>),
    /// `{base}/cancel[/{client}]`
    Cancel(Option<&'a str>),
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
        }
    }

    /// What stands before `/request`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What the node subscribes to.
    pub fn subscriptions(&self) -> [String; 4] {
        ["request", "request/+", "cancel", "cancel/+"].map(|tail| format!("{}/{tail}", self.base))
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

    /// Tells what a message is; `None` for a topic that was never subscribed to.
    pub(crate) fn inbound<'a>(&self, topic: &'a str) -> Option<Inbound<'a>> {
        let tail = topic.strip_prefix(&self.base)?.strip_prefix('/')?;
        let (what, client) = match tail.split_once('/') {
            None => (tail, None),
            Some((what, client)) if !client.contains('/') => (what, Some(client)),
            Some(_) => return None,
        };
        match what {
            "request" => Some(Inbound::Request(client)),
            "cancel" => Some(Inbound::Cancel(client)),
            _ => None,
        }
    }

    /// Whether replies to a request of `client` may go to `topic`.
    pub fn check_response(&self, topic: &str, client: Option<&str>) -> Result<(), TopicError> {
        if topic.is_empty()
            || topic.len() > usize::from(u16::MAX)
            || topic.starts_with('$')
            || topic.contains(['+', '#', '\0'])
        {
            return Err(TopicError::Invalid(topic.to_owned()));
        }
        if !self.allowed.iter().any(|filter| filter_matches(filter, topic)) {
            return Err(TopicError::NotAllowed(topic.to_owned()));
        }
        let Some(client) = client else {
            return Ok(());
        };
        let below = format!("{}/", self.below("response", Some(client)));
        if topic.len() > below.len() && topic.starts_with(&below) {
            return Ok(());
        }
        Err(TopicError::NotOfClient {
            topic: topic.to_owned(),
            below,
        })
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
        let t = topics();
        assert_eq!(t.inbound("phi-edge/v1/box/request"), Some(Inbound::Request(None)));
        assert_eq!(
            t.inbound("phi-edge/v1/box/request/till-3"),
            Some(Inbound::Request(Some("till-3")))
        );
        assert_eq!(
            t.inbound("phi-edge/v1/box/cancel/x"),
            Some(Inbound::Cancel(Some("x")))
        );
        for other in [
            "phi-edge/v1/box",
            "phi-edge/v1/box/request/a/b",
            "phi-edge/v1/box/status",
            "phi-edge/v1/boxer/request",
            "x",
        ] {
            assert_eq!(t.inbound(other), None, "{other}");
        }
    }

    #[test]
    fn response_topics_are_bounded() {
        let t = topics();
        assert!(t.check_response("phi-edge/v1/box/response/1", None).is_ok());
        assert!(t.check_response("apps/till/answers", None).is_ok());
        for bad in ["", "a/+", "a/#", "$SYS/x", "a\0b"] {
            assert!(
                matches!(t.check_response(bad, None), Err(TopicError::Invalid(_))),
                "{bad:?}"
            );
        }
        assert!(matches!(
            t.check_response("elsewhere", None),
            Err(TopicError::NotAllowed(_))
        ));
        assert!(
            t.check_response("phi-edge/v1/box/response/c/1", Some("c"))
                .is_ok()
        );
        for bad in [
            "phi-edge/v1/box/response/d/1",
            "phi-edge/v1/box/response/c/",
            "apps/c/answers",
        ] {
            assert!(
                matches!(
                    t.check_response(bad, Some("c")),
                    Err(TopicError::NotOfClient { .. })
                ),
                "{bad}"
            );
        }
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
