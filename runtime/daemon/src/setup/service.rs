//! The configurations of the service and its store, and the limits in the status.

use phi_edge_config::{Config, WhenFailing};
use phi_edge_service::{Quota, ServiceConfig, StoreConfig};
use serde_json::{Value, json};

use super::usize_of;

/// The maximum size of the events that wait for the broker, and the divisor of `store.max_size` that bounds it where
/// that is less: most of the store stays for requests.
const MAX_EVENT_BYTES: u64 = 64 << 20;
const EVENT_STORE_DIVISOR: u64 = 4;

/// The service's configuration. After a reload `Service::set_limits` applies what may change.
pub(crate) fn service(config: &Config, model: &str) -> ServiceConfig {
    let (limits, store) = (&config.limits, &config.store);
    ServiceConfig {
        queue: limits.queue,
        max_deadline: limits.max_deadline.get(),
        max_prompt_tokens: limits.max_prompt_tokens,
        image_pixels: limits.image_pixels,
        session_ttl: limits.session_ttl.get(),
        session_memory: usize_of(limits.session_memory.bytes()),
        keep_for: store.keep_for.get(),
        keep_outcomes: store.keep_outcomes,
        keep_bytes: usize_of(store.keep_memory.bytes()),
        quota: Quota {
            requests: limits.client_requests_per_minute,
            tokens: limits.client_tokens_per_minute,
        },
        model: model.to_owned(),
        rule_jobs: limits.rule_jobs,
        rules_bytes: store.max_rules_size.bytes(),
        event_bytes: MAX_EVENT_BYTES.min(store.max_size.bytes() / EVENT_STORE_DIVISOR),
        ..ServiceConfig::default()
    }
}

/// The store's configuration.
pub(crate) fn store(config: &Config) -> StoreConfig {
    let store = &config.store;
    StoreConfig {
        folder: store.path.clone(),
        max_bytes: store.max_size.bytes(),
        memory_fallback: store.when_failing == WhenFailing::Memory,
    }
}

/// The limits that the status tells clients; those of images where the model takes any.
pub(crate) fn status_limits(config: &Config, takes_images: bool) -> Value {
    let limits = &config.limits;
    let mut told = json!({
        "max_payload": limits.max_payload.bytes(),
        "max_tokens": limits.max_tokens,
        "max_prompt_tokens": limits.max_prompt_tokens,
        "max_deadline_ms": limits.max_deadline.as_millis(),
        "queue": limits.queue,
        "slots": config.runtime.slots,
    });
    if takes_images {
        told["images"] = limits.images.into();
        told["image_pixels"] = limits.image_pixels.into();
    }
    told
}
