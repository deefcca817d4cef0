//! The rules in effect and their subscriptions at the broker.

use std::path::{Path, PathBuf};

use phi_edge_config::Config;
use phi_edge_mqtt::RuleTopics;
use phi_edge_rules::Rule;
use phi_edge_service::Service;
use tokio::sync::watch;

use crate::exit::{Exit, Fault};
use crate::setup::rule_conversion;

/// The file in the store's folder that lists the subscriptions of rules, one filter a line. The broker keeps
/// subscriptions over a restart of the daemon, so those of rules that were removed meanwhile must be known.
const SUBSCRIPTIONS_FILE: &str = "rule-topics";

/// The subscriptions of the rules in effect, with the file that lists them.
pub(crate) struct RuleSubscriptions {
    topics: watch::Sender<RuleTopics>,
    subscribed: PathBuf,
}

impl RuleSubscriptions {
    /// Reads the rules that `config` starts with, and returns them for the service.
    pub(crate) fn start(config: &Config) -> Result<(Self, Vec<Rule>), Fault> {
        let rules = rule_conversion::convert_all(config)?;
        let subscribed = config.store.path.join(SUBSCRIPTIONS_FILE);
        let topics = topics(&rules, config).in_place_of(remembered(&subscribed));
        let this = Self {
            topics: watch::Sender::new(topics),
            subscribed,
        };
        this.remember(&this.topics.borrow());
        Ok((this, rules))
    }

    /// The filters for the link to subscribe to.
    pub(crate) fn topics(&self) -> watch::Receiver<RuleTopics> {
        self.topics.subscribe()
    }

    /// Replaces the rules by those of a configuration that was read again. If they can't be used, the old ones stay.
    pub(crate) fn reload(&self, config: &Config, service: &Service) -> Result<(), Fault> {
        let rules = rule_conversion::convert_all(config)?;
        let former: Vec<String> = {
            let topics = self.topics.borrow();
            topics
                .filters()
                .chain(topics.former())
                .map(str::to_owned)
                .collect()
        };
        let topics = topics(&rules, config).in_place_of(former);
        service
            .set_rules(rules)
            .map_err(|error| Fault::new(Exit::Config, error))?;
        // Before the broker is told: a crash must not leave a subscription that is not in the file.
        self.remember(&topics);
        // After the service: it must know the rules before their first message arrives.
        self.topics.send_replace(topics);
        Ok(())
    }

    /// Removes the former filters from the file, once the broker has taken all changes.
    pub(crate) fn confirm(&self) {
        let filters: Vec<String> = self.topics.borrow().filters().map(str::to_owned).collect();
        self.write(&filters);
    }

    /// Writes the current and the former filters: former ones stay listed until the broker has certainly removed
    /// them.
    fn remember(&self, topics: &RuleTopics) {
        let lines: Vec<String> = topics
            .filters()
            .chain(topics.former())
            .map(str::to_owned)
            .collect();
        self.write(&lines);
    }

    fn write(&self, lines: &[String]) {
        // A first start without rules has no folder yet: the store creates it later.
        if lines.is_empty() && !self.subscribed.exists() {
            return;
        }
        // Atomically: a partial list would lose the rest.
        let new = self.subscribed.with_extension("new");
        let written =
            std::fs::write(&new, lines.join("\n")).and_then(|()| std::fs::rename(&new, &self.subscribed));
        if let Err(error) = written {
            // The broker will go on sending the messages of a rule that is removed before the next start; they are
            // dropped.
            tracing::warn!(%error, file = %self.subscribed.display(), "the rules' subscriptions can't be noted");
        }
    }
}

fn topics(rules: &[Rule], config: &Config) -> RuleTopics {
    let topics = RuleTopics::new(
        rules
            .iter()
            .map(|rule| (rule.name.as_str(), rule.topics.as_slice())),
    );
    // With access rules the node may not be allowed to read everything.
    if config.mqtt.embedded && config.mqtt.embedded_acl_file.is_none() {
        topics.in_one()
    } else {
        topics
    }
}

fn remembered(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
