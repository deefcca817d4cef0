//! The plan of a window's prompts: one, or one for each of several consecutive parts.

use std::collections::HashMap;

use minijinja::value::Value;

use super::budget::{MAX_PROBES, PromptBudget, largest_fitting};
use super::error::SummaryError;
use super::prompt_message::PromptMessage;
use super::template::{BoundTemplate, Template};
use super::window_facts::WindowFacts;

/// The most plans that are made, each with a smaller budget, because the prompts with their final numbers were too long.
const MAX_PLANNING_ROUNDS: usize = 5;
/// The most messages of a prompt: no context holds as many, and a template's fuel is enough for them.
const MAX_MESSAGES_PER_PROMPT: usize = 50_000;
/// The most messages that fit in no prompt even with empty texts; the older ones are then left out.
const MAX_UNFITTING_MESSAGES: usize = 8;

/// The prompts of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptPlan {
    /// One prompt, whose answer is the summary; or one for each part, the oldest first, whose answers
    /// [`super::reduction_prompt`] reduces to one.
    pub prompts: Vec<String>,
    /// The messages in none of the prompts, beside those that the window had left out already: the oldest, and
    /// those that fit in no prompt.
    pub left_out: u64,
    /// The messages whose texts are cut.
    pub cut: u64,
}

/// Plans the prompts of a window: one where it fits, else as few consecutive parts as are filled from the newest
/// message backwards.
///
/// Each prompt is counted as it is. A message that fits in no prompt is cut to what fits, or left out.
pub fn plan_prompts(
    template: &Template,
    window_facts: &WindowFacts<'_>,
    records: &[PromptMessage],
    budget: &PromptBudget<'_>,
) -> Result<PromptPlan, SummaryError> {
    let bound = BoundTemplate::new(template, window_facts);
    let (beyond, records) = records.split_at(records.len().saturating_sub(MAX_MESSAGES_PER_PROMPT));
    let beyond = beyond.len() as u64;
    let messages: Vec<Value> = records
        .iter()
        .map(|record| window_facts.message_value(record))
        .collect();
    let whole = bound.render(&messages, beyond, None)?;
    if budget.tokens_of(&whole)? <= budget.tokens {
        return Ok(PromptPlan {
            prompts: vec![whole],
            left_out: beyond,
            cut: 0,
        });
    }
    let mut planner = Planner {
        bound,
        window_facts,
        beyond,
        records,
        messages,
        budget,
        lines: HashMap::new(),
    };
    // The numbers in a prompt (of parts, of messages left out) are known only when all parts are made; parts are made
    // with the longest such numbers, and again with a smaller budget should that not have been enough.
    let mut room = budget.tokens;
    let mut needed = budget.tokens;
    for _ in 0..MAX_PLANNING_ROUNDS {
        let parts = planner.partition(room)?;
        let prompts = planner.prompts(&parts)?;
        needed = 0;
        for prompt in &prompts {
            needed = needed.max(budget.tokens_of(prompt)?);
        }
        if needed <= budget.tokens {
            return Ok(PromptPlan {
                prompts,
                left_out: parts.left_out,
                cut: parts.cut,
            });
        }
        room = room.saturating_sub((needed - budget.tokens).max(4));
    }
    Err(budget.refusal(needed))
}

/// Consecutive parts, the oldest first.
#[derive(Debug, Default)]
struct Parts {
    messages: Vec<Vec<Value>>,
    left_out: u64,
    cut: u64,
}

struct Planner<'a> {
    bound: BoundTemplate<'a>,
    window_facts: &'a WindowFacts<'a>,
    /// The number of messages before `records`, which are left out in any case.
    beyond: u64,
    records: &'a [PromptMessage],
    messages: Vec<Value>,
    budget: &'a PromptBudget<'a>,
    /// The tokens of messages' lines, by their index, from which a part's size is estimated.
    lines: HashMap<usize, usize>,
}

impl Planner<'_> {
    fn partition(&mut self, room: usize) -> Result<Parts, SummaryError> {
        let base = self.tokens(&[])?;
        if base > room {
            return Err(self.budget.refusal(base + self.budget.tokens - room));
        }
        let mut found = Parts::default();
        let (mut end, mut unfitting) = (self.messages.len(), 0);
        while end > 0
            && found.messages.len() < self.budget.max_parts.max(1)
            && unfitting < MAX_UNFITTING_MESSAGES
        {
            let taken = self.newest_that_fit(end, base, room)?;
            if taken > 0 {
                found.messages.push(self.messages[end - taken..end].to_vec());
            } else if let Some(message) = self.cut_to_fit(end - 1, room)? {
                found.messages.push(vec![message]);
                found.cut += 1;
            } else {
                found.left_out += 1;
                unfitting += 1;
            }
            end -= taken.max(1);
        }
        found.left_out += end as u64 + self.beyond;
        found.messages.reverse();
        Ok(found)
    }

    /// The number of messages before `end` that a part holds; 0 if not even the last of them.
    fn newest_that_fit(&mut self, end: usize, base: usize, room: usize) -> Result<usize, SummaryError> {
        let mut probe = self.estimate_part(end, base, room)?;
        let (mut fits, mut too_many) = (0, end + 1);
        for _ in 0..MAX_PROBES {
            let used = self.tokens(&self.messages[end - probe..end])?;
            if used <= room {
                fits = probe;
                // A part that is nearly full is full: the last messages would cost as many probes again.
                if used + room / 10 >= room && too_many > end {
                    break;
                }
            } else {
                too_many = probe;
            }
            if too_many - fits <= 1 {
                break;
            }
            // The next size is scaled by the tokens of this one; bisection guarantees an end.
            let scaled = probe * (room - base) / used.saturating_sub(base).max(1);
            let sure = fits.midpoint(too_many);
            probe = if used <= room {
                scaled.max(sure)
            } else {
                scaled.min(sure)
            };
            probe = probe.clamp(fits + 1, too_many - 1);
        }
        Ok(fits)
    }

    /// The estimated number of messages before `end` that a part holds, by the lengths of their lines; at least 1.
    fn estimate_part(&mut self, end: usize, base: usize, room: usize) -> Result<usize, SummaryError> {
        let mut sum = base;
        for index in (0..end).rev() {
            sum += self.line_tokens(index)?;
            if sum > room {
                return Ok((end - index - 1).max(1));
            }
        }
        Ok(end)
    }

    fn line_tokens(&mut self, index: usize) -> Result<usize, SummaryError> {
        if let Some(&known) = self.lines.get(&index) {
            return Ok(known);
        }
        let line = self.messages[index]
            .downcast_object_ref::<super::values::TemplateMessage>()
            .map_or("", |message| message.line.as_str());
        // The tokens around every prompt are counted with it, and subtracted.
        let around = self.budget.tokens_of("")?;
        let tokens = self.budget.tokens_of(line)?.saturating_sub(around) + 1;
        self.lines.insert(index, tokens);
        Ok(tokens)
    }

    /// The message at `index` cut to fit a part; `None` if not even its topic and names fit.
    fn cut_to_fit(&self, index: usize, room: usize) -> Result<Option<Value>, SummaryError> {
        let record = &self.records[index];
        let cut = |cap| self.window_facts.message_value(&record.cut(cap));
        if self.tokens(&[cut(0)])? > room {
            return Ok(None);
        }
        let cap = largest_fitting(0, record.longest_text(), |cap| {
            Ok(self.tokens(&[cut(cap)])? <= room)
        })?;
        Ok(Some(cut(cap)))
    }

    /// The tokens of a part's prompt, with the longest numbers that it may contain.
    fn tokens(&self, messages: &[Value]) -> Result<usize, SummaryError> {
        let most = self.budget.max_parts.max(1);
        let part = (most > 1).then_some((most, most));
        let prompt = self
            .bound
            .render(messages, self.records.len() as u64 + self.beyond, part)?;
        self.budget.tokens_of(&prompt)
    }

    fn prompts(&self, parts: &Parts) -> Result<Vec<String>, SummaryError> {
        if parts.messages.is_empty() {
            return Ok(vec![self.bound.render(&[], parts.left_out, None)?]);
        }
        let of = parts.messages.len();
        parts
            .messages
            .iter()
            .enumerate()
            .map(|(index, messages)| {
                let part = (of > 1).then_some((index + 1, of));
                self.bound.render(messages, parts.left_out, part)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::budget::tests::{budget, count};
    use super::super::fixture;
    use super::*;
    use crate::{PromptSource, Time};

    fn template(source: &PromptSource) -> Template {
        Template::compile(source, &[]).unwrap().unwrap()
    }

    fn text(source: &str) -> Template {
        template(&PromptSource::Text(source.to_owned()))
    }

    fn records(payloads: &[String]) -> Vec<PromptMessage> {
        let start = fixture::time("2026-03-02T05:00:00Z").0;
        payloads
            .iter()
            .zip(0..)
            .map(|(payload, n)| {
                PromptMessage::new(Time(start + n * 1000), "t", payload.as_bytes(), Vec::new())
            })
            .collect()
    }

    fn numbered(count: usize) -> Vec<PromptMessage> {
        records(&(0..count).map(|n| format!("<{n}>")).collect::<Vec<_>>())
    }

    const LINES: &str = "{{ window.left_out }} {% if part %}{{ part.index }}/{{ part.of }}{% endif %}:\
        {% for m in messages %} {{ m.payload }}{% endfor %}";

    #[test]
    fn parts_of_a_window() {
        let fixture = fixture::window();
        let check = |messages, tokens, max_parts, expected: &[&str], left_out| {
            let found = plan_prompts(
                &text(LINES),
                &fixture.window_facts(),
                &numbered(messages),
                &budget(tokens, max_parts),
            )
            .unwrap();
            assert_eq!(found.prompts, expected);
            assert_eq!((found.left_out, found.cut), (left_out, 0));
        };
        check(0, 20, 3, &["0 :"], 0);
        check(3, 20, 3, &["0 : <0> <1> <2>"], 0);
        check(6, 15, 3, &["0 1/2: <0> <1> <2>", "0 2/2: <3> <4> <5>"], 0);
        check(7, 15, 2, &["1 1/2: <1> <2> <3>", "1 2/2: <4> <5> <6>"], 1);
        check(7, 15, 1, &["4 : <4> <5> <6>"], 4);
        check(7, 15, 0, &["4 : <4> <5> <6>"], 4);
    }

    #[test]
    fn a_message_too_large_is_cut_and_one_that_can_not_be_cut_left_out() {
        let fixture = fixture::window();
        let long = "x".repeat(1000);
        let messages = records(&["<0>".into(), long, "<2>".into()]);
        let found = plan_prompts(&text(LINES), &fixture.window_facts(), &messages, &budget(20, 8)).unwrap();
        assert_eq!((found.prompts.len(), found.left_out, found.cut), (3, 0, 1));
        assert!(found.prompts[1].contains("xxxx…[cut]"), "{}", found.prompts[1]);

        let topic = "{{ window.left_out }}:{% for m in messages %} {{ m.topic }}{% endfor %}";
        let found = {
            let mut messages = numbered(3);
            messages[1] = PromptMessage::new(Time(0), &"t".repeat(1000), b"", Vec::new());
            plan_prompts(&text(topic), &fixture.window_facts(), &messages, &budget(20, 8)).unwrap()
        };
        assert_eq!(found.prompts, ["1: t", "1: t"]);
        assert_eq!((found.left_out, found.cut), (1, 0));
    }

    #[test]
    fn more_messages_than_any_prompt_holds_do_not_exhaust_the_template() {
        let fixture = fixture::window();
        let counting = text("{% for m in messages %}{% endfor %}{{ messages|length }} {{ window.left_out }}");
        let messages = vec![numbered(1).remove(0); MAX_MESSAGES_PER_PROMPT + 2];
        let found = plan_prompts(&counting, &fixture.window_facts(), &messages, &budget(100, 8)).unwrap();
        assert_eq!((found.prompts, found.left_out), (vec!["50000 2".to_owned()], 2));
        let found = plan_prompts(&text(LINES), &fixture.window_facts(), &messages, &budget(15, 2)).unwrap();
        assert_eq!(
            (found.prompts.len(), found.left_out),
            (2, MAX_MESSAGES_PER_PROMPT as u64 - 4)
        );
    }

    #[test]
    fn what_does_not_fit_at_all_is_said() {
        let fixture = fixture::window();
        let error =
            plan_prompts(&text("a b c d e f"), &fixture.window_facts(), &[], &budget(15, 8)).unwrap_err();
        assert_eq!(
            error,
            SummaryError::DoesNotFit {
                needed: 16,
                allowed: 15
            }
        );
        let refusing = PromptBudget {
            tokens: 10,
            max_parts: 1,
            count: &|_| Err("no".into()),
        };
        let error = plan_prompts(&text("a"), &fixture.window_facts(), &[], &refusing).unwrap_err();
        assert_eq!(error, SummaryError::Encode("no".into()));
    }

    #[test]
    fn numbers_known_only_at_the_end_may_not_burst_a_prompt() {
        let fixture = fixture::window();
        // The prompt of a window that leaves nothing out is longer than that of one that does.
        let source = "{% if not window.left_out %}nothing at all was left out{% endif %}\
            {% for m in messages %} {{ m.payload }}{% endfor %}";
        let found = plan_prompts(
            &text(source),
            &fixture.window_facts(),
            &numbered(12),
            &budget(20, 8),
        )
        .unwrap();
        assert!(
            found.prompts.iter().all(|prompt| count(prompt).unwrap() <= 20),
            "{found:?}"
        );
        assert_eq!(found.left_out, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Every message is in exactly one prompt or counted as left out, all prompts fit, and the oldest are missing.
        #[test]
        fn nothing_is_lost_or_shown_twice(
            lengths in prop::collection::vec(prop_oneof![8 => 0_usize..60, 1 => 200_usize..3000], 0..60),
            tokens in 20_usize..400,
            max_parts in 0_usize..6,
            source in prop_oneof![
                Just(PromptSource::Text(LINES.into())),
                Just(PromptSource::Text("{% for m in messages %}{{ m|record }}\n{{ m.payload }}\n{% endfor %}".into())),
                Just(PromptSource::BuiltIn("alarm-digest".into())),
            ],
        ) {
            let fixture = fixture::window();
            let built_in = matches!(source, PromptSource::BuiltIn(_));
            let repeats = if let PromptSource::Text(text) = &source { text.matches("m.payload").count() + text.matches("m|record").count() } else { 1 };
            let tokens = if built_in { tokens + 400 } else { tokens };
            let payloads: Vec<String> = lengths.iter().enumerate().map(|(n, length)| format!("<{n}>{}", "y ".repeat(*length))).collect();
            let found = plan_prompts(&template(&source), &fixture.window_facts(), &records(&payloads), &budget(tokens, max_parts)).unwrap();
            let all = found.prompts.join("\n");
            let mut missing = Vec::new();
            for n in 0..payloads.len() {
                match all.matches(&format!("<{n}>")).count() {
                    0 => missing.push(n),
                    times => prop_assert_eq!(times, repeats, "message {}", n),
                }
            }
            // A message that was cut may have lost its mark.
            let count_missing = missing.len() as u64;
            prop_assert!(count_missing >= found.left_out && count_missing <= found.left_out + found.cut, "{missing:?} {found:?}");
            prop_assert!(found.prompts.len() <= max_parts.max(1));
            for prompt in &found.prompts {
                prop_assert!(count(prompt).unwrap() <= tokens);
            }
        }
    }
}
