//! The summary of one window: prompts that fit, asked of the model as jobs of the lowest priority.

use std::sync::Arc;
use std::time::Duration;

use phi_edge_engine::Sampling;
use phi_edge_models::{Message, Role};
use tokio::time::{Instant, sleep};

use crate::jobs::ledger::INTERNAL_CLIENT;
use crate::service::Shared;
use phi_edge_api::{Answer, Refusal};
use phi_edge_api::{JobKey, NewJob, Priority, ReplyAddress, RequestImage, Truncation};
use phi_edge_job::ErrorCode;
use phi_edge_prompts::{PromptError, Prompts};
use phi_edge_rules::changes::{PendingEvent, ShownMessage};
use phi_edge_rules::engine::PendingSummary;
use phi_edge_rules::summary::{self, PromptBudget, PromptMessage, SummaryError, Template, WindowFacts};
use phi_edge_rules::{Event, EventError, Published, Rule, ShownPicture, TextFormat};

use super::pictures::{self, ShownImages};

/// The minimum and the maximum time between two attempts while the service is busy.
const RETRY_INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Returns the event with its summary, or with the error why it has none, and the jobs that were asked for it.
pub(crate) async fn summarise(
    shared: &Arc<Shared>,
    PendingSummary { pending, rule, left }: PendingSummary,
) -> (Published, Vec<JobKey>) {
    let PendingEvent {
        mut event,
        output,
        messages,
        pictures,
        ..
    } = pending;
    let mut jobs = Vec::new();
    let summarised = match &rule {
        None => Err(error(ErrorCode::Unavailable, "the rule is no longer configured")),
        Some(rule) => {
            let mut summariser = Summariser {
                shared,
                rule,
                until: Instant::now() + left,
                shown: ShownImages::default(),
                image_tokens: 0,
                jobs: &mut jobs,
            };
            summariser.run(&mut event, messages, pictures).await
        }
    };
    if let Err(error) = summarised {
        tracing::warn!(
            rule = event.rule,
            event.id = event.event_id,
            code = error.code.as_str(),
            error = error.message,
            "an event has facts only"
        );
        event.error = Some(error);
    }
    (Published { event, output }, jobs)
}

/// The summary of one event in progress.
struct Summariser<'a> {
    shared: &'a Arc<Shared>,
    rule: &'a Arc<Rule>,
    /// The time at which the event is published without a summary.
    until: Instant,
    shown: ShownImages,
    /// The number of tokens that its images take in a prompt.
    image_tokens: usize,
    /// The jobs that were asked, to be forgotten with the event.
    jobs: &'a mut Vec<JobKey>,
}

impl Summariser<'_> {
    async fn run(
        &mut self,
        event: &mut Event,
        messages: Vec<ShownMessage>,
        pictures: Vec<ShownPicture>,
    ) -> Result<(), EventError> {
        self.shown = pictures::shown(self.rule, event.window.messages, pictures, self.shared).await?;
        self.image_tokens = pictures::tokens(self.shared.prompts(), &self.shown.images).await?;
        let Some(mut plan) = self.plan(event, messages).await? else {
            return Ok(());
        };
        event.window.left_out += plan.left_out;
        let answer = if plan.prompts.len() == 1 {
            let prompt = plan.prompts.swap_remove(0);
            let images = self.shown.images.clone();
            self.ask(0, prompt, images, event).await?
        } else {
            let mut texts = Vec::with_capacity(plan.prompts.len());
            for (part, prompt) in plan.prompts.iter().enumerate() {
                let images = self.shown.images.clone();
                let answer = self.ask(part, prompt.clone(), images, event).await?;
                texts.push(summary::clean(&answer.text));
            }
            let prompt = self.reduce(event, &texts).await?;
            // The parts' texts say what is to be seen.
            self.ask(texts.len(), prompt, Vec::new(), event).await?
        };
        event.finish_reason = Some(answer.finish_reason);
        event.model = Arc::clone(&answer.model);
        let text = summary::clean(&answer.text);
        if self.rule.summary.check_numbers {
            let settings = &self.rule.summary;
            let written = [
                plan.template.as_str(),
                settings.system.as_deref().unwrap_or_default(),
            ];
            event.unsupported_numbers = Some(summary::unsupported_numbers(
                &text,
                &WindowFacts::new(self.rule, event),
                &plan.records,
                &written,
            ));
        }
        let data = match self.rule.summary.format {
            TextFormat::Text => Ok(None),
            TextFormat::Json => summary::json_document(&text).map(Some),
        };
        event.text = Some(text);
        event.data =
            data.map_err(|reason| error(ErrorCode::Internal, format!("the text is no JSON: {reason}")))?;
        Ok(())
    }

    /// Renders the prompts and counts their tokens, off the runtime's threads. `None` for a rule without a summary.
    async fn plan(&self, event: &Event, messages: Vec<ShownMessage>) -> Result<Option<Planned>, EventError> {
        let (rule, event) = (Arc::clone(self.rule), event.clone());
        let (counter, pictures) = (self.counter(), Arc::clone(&self.shown.pictures));
        blocking(move || {
            let records: Vec<PromptMessage> = messages.iter().map(ShownMessage::prompt_message).collect();
            let Some(template) = Template::compile(&rule.summary.prompt, &rule.fields)? else {
                return Ok(None);
            };
            let count = |prompt: &str| counter.count(prompt);
            let budget = counter.budget(&count);
            let facts = WindowFacts::new(&rule, &event).with_pictures(&pictures);
            let plan = summary::plan_prompts(&template, &facts, &records, &budget)?;
            Ok(Some(Planned {
                prompts: plan.prompts,
                left_out: plan.left_out,
                records,
                template: template.text().to_owned(),
            }))
        })
        .await
        .map_err(|fault| pictures::with_tokens(fault, self.image_tokens))
    }

    async fn reduce(&self, event: &Event, texts: &[String]) -> Result<String, EventError> {
        let (rule, event) = (Arc::clone(self.rule), event.clone());
        let (counter, texts) = (self.counter(), texts.to_vec());
        blocking(move || {
            let Some(template) = Template::compile(&rule.summary.prompt, &rule.fields)? else {
                return Ok(String::new());
            };
            let count = |prompt: &str| counter.count(prompt);
            let budget = counter.budget(&count);
            summary::reduction_prompt(&template, &WindowFacts::new(&rule, &event), &texts, &budget)
        })
        .await
    }

    fn counter(&self) -> Counter {
        let settings = &self.rule.summary;
        let room = self.shared.room_for_prompt(settings.max_tokens);
        let room = settings.max_prompt_tokens.map_or(room, |most| room.min(most));
        Counter {
            prompts: Arc::clone(self.shared.prompts()),
            rule: Arc::clone(self.rule),
            tokens: room.saturating_sub(self.image_tokens),
        }
    }

    /// Asks until there is an answer or no time left. A prompt from before a restart gets the answer it got then.
    async fn ask(
        &mut self,
        part: usize,
        prompt: String,
        images: Vec<RequestImage>,
        event: &mut Event,
    ) -> Result<Answer, EventError> {
        let settings = &self.rule.summary;
        let key = JobKey {
            client: Some(INTERNAL_CLIENT.to_owned()),
            id: format!("{}.{part}", event.event_id),
        };
        self.jobs.push(key.clone());
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            let job = NewJob {
                key: key.clone(),
                // The id identifies the body: an event has one prompt for each part.
                body_digest: [0; 32],
                messages: conversation(self.rule, &prompt, images.len()),
                images: images.clone(),
                max_tokens: settings.max_tokens,
                sampling: Sampling {
                    temperature: settings.temperature,
                    top_p: settings.top_p,
                    seed: settings.seed,
                    ..Sampling::default()
                },
                stop: settings.stop.clone(),
                // Prompts of rules are made to fit by their parts.
                truncation: Truncation::Error,
                stream: false,
                progress: false,
                priority: Priority::Background,
                deadline: Some(left),
                session: None,
                reply: ReplyAddress::nowhere(),
                payload_bytes: None,
                receipt: None,
            };
            match Arc::clone(self.shared).ask(job).await {
                Ok(answer) => {
                    event.prompt_tokens += answer.prompt_tokens;
                    event.completion_tokens += answer.completion_tokens;
                    event.cached_tokens += answer.cached_tokens;
                    return Ok(answer);
                }
                Err(Refusal {
                    code: ErrorCode::Busy | ErrorCode::Unavailable,
                    retry_after,
                    ..
                }) if !left.is_zero() => {
                    let wait = retry_after
                        .unwrap_or(RETRY_INTERVAL.1)
                        .clamp(RETRY_INTERVAL.0, RETRY_INTERVAL.1);
                    sleep(wait.min(left)).await;
                }
                Err(refusal) => return Err(error(refusal.code, refusal.message)),
            }
        }
    }
}

/// The prompts of a window, and what they were made of.
struct Planned {
    prompts: Vec<String>,
    left_out: u64,
    records: Vec<PromptMessage>,
    /// The text that the operator wrote, whose numbers count as supported.
    template: String,
}

/// A counter of the tokens of a rule's prompts.
struct Counter {
    prompts: Arc<dyn Prompts>,
    rule: Arc<Rule>,
    tokens: usize,
}

impl Counter {
    fn count(&self, prompt: &str) -> Result<usize, String> {
        let conversation = conversation(&self.rule, prompt, 0);
        // By how much a prompt exceeds the limit does not matter.
        match self.prompts.encode_within(&conversation, self.tokens) {
            Ok(ids) => Ok(ids.len()),
            Err(PromptError::TooLong { tokens, .. }) => Ok(tokens),
            Err(PromptError::Refused(message)) => Err(message),
        }
    }

    fn budget<'a>(&self, count: &'a dyn Fn(&str) -> Result<usize, String>) -> PromptBudget<'a> {
        PromptBudget {
            tokens: self.tokens,
            max_parts: self.rule.summary.max_parts,
            count,
        }
    }
}

fn conversation(rule: &Rule, prompt: &str, images: usize) -> Vec<Message> {
    let system = rule
        .summary
        .system
        .clone()
        .map(|content| Message::new(Role::System, content));
    let user = pictures::user_turn(prompt, images);
    system.into_iter().chain([user]).collect()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SummaryError> + Send + 'static,
) -> Result<T, EventError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(fault @ SummaryError::DoesNotFit { .. })) => {
            Err(error(ErrorCode::ContextOverflow, fault.to_string()))
        }
        Ok(Err(fault)) => Err(error(ErrorCode::Internal, fault.to_string())),
        Err(fault) => {
            tracing::error!(error = %fault, "rendering a prompt panicked");
            Err(error(ErrorCode::Internal, "the prompt can't be rendered"))
        }
    }
}

fn error(code: ErrorCode, message: impl Into<String>) -> EventError {
    EventError {
        code,
        message: message.into(),
    }
}
