//! The reload of the configuration while the daemon runs.

use phi_edge_config::Config;
use phi_edge_mqtt::{Link, RequestLimits, TlsFiles};
use phi_edge_service::Service;
use tokio::sync::watch;

#[cfg(unix)]
use super::notify;
use super::rule_subscriptions::RuleSubscriptions;
use super::{App, IMAGE_FEATURE};
use crate::exit::{Exit, Fault};
use crate::setup::{link, service, settings};

/// The parts that take over a configuration that was read again.
pub(super) struct Reloadable<'a> {
    pub(super) rules: &'a RuleSubscriptions,
    pub(super) service: &'a Service,
    pub(super) link: &'a Link,
    /// The link's files, whose content may have changed.
    pub(super) tls: Option<&'a TlsFiles>,
    pub(super) request_limits: &'a watch::Sender<RequestLimits>,
    /// The model's name.
    pub(super) model: &'a str,
    /// Told when files may have changed under their names.
    pub(super) reloaded: &'a watch::Sender<()>,
}

/// Reads the configuration again and takes over what can change while the daemon runs. A configuration that is wrong is
/// logged and changes nothing.
pub(super) fn reload(app: &App<'_>, parts: &Reloadable<'_>) {
    #[cfg(unix)]
    let _reloading = notify::Reloading::begin();
    let reloaded = settings::reload(app.args, app.loaded).and_then(|read| {
        take(app, parts, &read.loaded.config)?;
        Ok(read)
    });
    match reloaded {
        Ok(read) => {
            for key in read.held {
                tracing::warn!(
                    key,
                    "a change of this key needs a restart; the value in effect stays"
                );
            }
            let config = &read.loaded.config;
            app.status.send_modify(|status| {
                let takes_images = status.features.iter().any(|feature| feature == IMAGE_FEATURE);
                status.limits = service::status_limits(config, takes_images);
            });
            tracing::info!(rules = config.rules.len(), "the configuration is read again");
        }
        Err(fault) => {
            tracing::error!(
                error = fault.message,
                "the configuration can't be used; the old one stays in effect"
            );
        }
    }
}

/// Applies the configuration, certificates and rules first: only they can be wrong, and then nothing else has
/// changed.
fn take(app: &App<'_>, parts: &Reloadable<'_>, config: &Config) -> Result<(), Fault> {
    if let Some(tls) = parts.tls {
        tls.check()
            .map_err(|error| Fault::new(Exit::Config, error.to_string()))?;
    }
    parts.rules.reload(config, parts.service)?;
    parts.service.set_limits(&service::service(config, parts.model));
    parts.request_limits.send_replace(link::request_limits(config));
    app.limits.send_replace(config.limits.clone());
    (app.set_level)(&config.log).map_err(Fault::failed)?;
    if let Err(error) = parts.link.renew_certificates() {
        // They were right a moment ago.
        tracing::error!(%error, "a file of TLS is being changed; the connection keeps the old ones until the next reload");
    }
    parts.reloaded.send_replace(());
    Ok(())
}
