//! The rules of the configuration: to the service, and to the link that subscribes for them.

use std::path::{Path, PathBuf};

use phi_edge_config::Config;
use phi_edge_mqtt::RuleTopics;
use phi_edge_service::Service;
use phi_edge_service::rules::Rule;
use tokio::sync::watch;

use crate::exit::{Exit, Fault};
use crate::setup::rule_conversion;

/// In the store's folder: what is subscribed to for rules, a filter a line. The broker remembers subscriptions over a
/// restart of the daemon, so that those of rules that were removed meanwhile must be known.
const SUBSCRIPTIONS_FILE: &str = "rule-topics";

/// The rules that are in effect.
pub(crate) struct RuleSubscriptions {
    topics: watch::Sender<RuleTopics>,
    subscribed: PathBuf,
}

impl RuleSubscriptions {
    /// The rules that `config` starts with, for the service.
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

    /// What the link subscribes to.
    pub(crate) fn topics(&self) -> watch::Receiver<RuleTopics> {
        self.topics.subscribe()
    }

    /// Takes the rules of a configuration that was read again. If they can't be used, the old ones stay.
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
        // Before the broker is told of any: a crash must not leave a subscription that nobody knows of.
        self.remember(&topics);
        // The service first: what the new subscriptions bring is wanted from the first message on.
        self.topics.send_replace(topics);
        Ok(())
    }

    /// The broker was told of all changes: what was left needs to be left no more.
    pub(crate) fn confirm(&self) {
        let filters: Vec<String> = self.topics.borrow().filters().map(str::to_owned).collect();
        self.write(&filters);
    }

    /// What is left stays noted until it is clear that the broker knows.
    fn remember(&self, topics: &RuleTopics) {
        let lines: Vec<String> = topics
            .filters()
            .chain(topics.former())
            .map(str::to_owned)
            .collect();
        self.write(&lines);
    }

    fn write(&self, lines: &[String]) {
        // A first start has neither rules nor, before its store is opened, a folder.
        if lines.is_empty() && !self.subscribed.exists() {
            return;
        }
        // In one piece: half a list would forget the other half.
        let new = self.subscribed.with_extension("new");
        let written =
            std::fs::write(&new, lines.join("\n")).and_then(|()| std::fs::rename(&new, &self.subscribed));
        if let Err(error) = written {
            // Then a rule that is removed before the next start goes on being sent its messages, which nobody takes.
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
