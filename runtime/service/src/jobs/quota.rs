//! The quotas of clients: requests and tokens a minute.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

const SECONDS_PER_MINUTE: f64 = 60.0;
/// The maximum number of clients with a budget of their own: a name may be new with each request.
const MAX_CLIENTS: usize = 16_384;

/// The budgets of one client a minute; `None` is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// Requests.
    pub requests: Option<u32>,
    /// Tokens of prompts and answers. What is promised counts when a request is accepted; what an answer did not need
    /// is given back at its end.
    pub tokens: Option<u32>,
}

/// The budgets of all clients. Clients without a topic of their own share one.
#[derive(Debug)]
pub(crate) struct Quotas {
    quota: Quota,
    clients: HashMap<Option<String>, Used>,
    /// The number of clients after those with full budgets were last forgotten.
    swept: usize,
}

/// The token buckets of a client: filled at a steady rate up to a minute's worth. The last request that was let in may
/// overdraw that of tokens.
#[derive(Debug)]
struct Used {
    requests: f64,
    tokens: f64,
    at: Instant,
}

impl Quotas {
    pub(crate) fn new(quota: Quota) -> Self {
        Self {
            quota,
            clients: HashMap::new(),
            swept: 0,
        }
    }

    /// Replaces the quota from now on.
    pub(crate) fn set(&mut self, quota: Quota) {
        if quota != self.quota {
            self.quota = quota;
            self.clients.clear();
        }
    }

    /// Admits one more request, or returns the time until a retry and the budget that is used up.
    pub(crate) fn enter(
        &mut self,
        client: Option<&String>,
        now: Instant,
    ) -> Result<(), (Duration, &'static str)> {
        if self.quota == Quota::default() {
            return Ok(());
        }
        self.forget_rested(now);
        let quota = self.quota;
        let used = self.of(client, now);
        if let Some(requests) = quota.requests
            && used.requests < 1.0
        {
            return Err((
                wait(1.0 - used.requests, requests),
                "limits.client_requests_per_minute",
            ));
        }
        if let Some(tokens) = quota.tokens
            && used.tokens <= 0.0
        {
            return Err((wait(1.0 - used.tokens, tokens), "limits.client_tokens_per_minute"));
        }
        used.requests -= 1.0;
        Ok(())
    }

    /// Charges tokens to a client's budget; a negative number gives them back.
    pub(crate) fn charge(&mut self, client: Option<&String>, tokens: i64, now: Instant) {
        if self.quota.tokens.is_some() {
            // Token counts are far below 2^52.
            #[expect(
                clippy::cast_precision_loss,
                reason = "a budget need not be exact to the token"
            )]
            let tokens = tokens as f64;
            self.of(client, now).tokens -= tokens;
        }
    }

    fn of(&mut self, client: Option<&String>, now: Instant) -> &mut Used {
        let full = |budget: Option<u32>| budget.map_or(0.0, f64::from);
        let (requests, tokens) = (full(self.quota.requests), full(self.quota.tokens));
        // Beyond so many, new clients share the budget of those without a topic of their own.
        let known = self.clients.len() < MAX_CLIENTS;
        let client = client.filter(|client| known || self.clients.contains_key(&Some((*client).clone())));
        let used = self.clients.entry(client.cloned()).or_insert(Used {
            requests,
            tokens,
            at: now,
        });
        let minutes = now.saturating_duration_since(used.at).as_secs_f64() / SECONDS_PER_MINUTE;
        used.requests = (used.requests + requests * minutes).min(requests);
        used.tokens = (used.tokens + tokens * minutes).min(tokens);
        used.at = now;
        used
    }

    /// Forgets the clients whose budgets are full again: names come from outside, and must not take memory for ever.
    fn forget_rested(&mut self, now: Instant) {
        const MIN_SWEEP_CLIENTS: usize = 1024;
        let most = (2 * self.swept).clamp(MIN_SWEEP_CLIENTS, MAX_CLIENTS);
        if self.clients.len() >= most {
            self.clients
                .retain(|_, used| now.saturating_duration_since(used.at) < Duration::from_mins(2));
            self.swept = self.clients.len();
        }
    }
}

fn wait(missing: f64, per_minute: u32) -> Duration {
    let seconds = missing / f64::from(per_minute.max(1)) * SECONDS_PER_MINUTE;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_mins(10))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_are_let_in_at_the_pace_of_the_budget() {
        let start = Instant::now();
        let mut quotas = Quotas::new(Quota {
            requests: Some(2),
            tokens: None,
        });
        let client = Some("a".to_owned());
        assert_eq!(quotas.enter(client.as_ref(), start), Ok(()));
        assert_eq!(quotas.enter(client.as_ref(), start), Ok(()));
        let (wait, which) = quotas.enter(client.as_ref(), start).unwrap_err();
        assert_eq!(
            (wait, which),
            (Duration::from_secs(30), "limits.client_requests_per_minute")
        );
        assert_eq!(quotas.enter(None, start), Ok(()), "another client has its own");
        assert_eq!(quotas.enter(client.as_ref(), start + wait), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_clients_are_remembered_than_there_is_room_for() {
        let start = Instant::now();
        let mut quotas = Quotas::new(Quota {
            requests: Some(1),
            tokens: None,
        });
        for name in 0..2 * MAX_CLIENTS {
            let _ = quotas.enter(Some(&name.to_string()), start);
        }
        assert!(
            quotas.clients.len() <= MAX_CLIENTS + 1,
            "{}",
            quotas.clients.len()
        );
        assert!(quotas.enter(Some(&"new".to_owned()), start).is_err());
        assert_eq!(
            quotas.enter(Some(&"new".to_owned()), start + Duration::from_mins(3)),
            Ok(())
        );
        assert!(quotas.clients.len() < 3);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_that_were_not_needed_are_given_back() {
        let start = Instant::now();
        let mut quotas = Quotas::new(Quota {
            requests: None,
            tokens: Some(60),
        });
        assert_eq!(quotas.enter(None, start), Ok(()));
        quotas.charge(None, 100, start);
        let (wait, _) = quotas.enter(None, start).unwrap_err();
        assert_eq!(wait, Duration::from_secs(41));
        quotas.charge(None, -80, start);
        assert_eq!(quotas.enter(None, start), Ok(()));
    }
}
