//! The template of a rule's prompts: compiled once, rendered for every window.

use std::io;

use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};

use super::error::{RULE_TEMPLATE, SummaryError};
use super::prompt_message::PromptMessage;
use super::window_facts::WindowFacts;
use super::{built_in, filters, lint};
use crate::{Field, PromptSource};

/// The most instructions of one rendering: a hundred thousand messages of a simple loop, well below a second.
const RENDER_FUEL: u64 = 2_000_000;
/// The most bytes of a rendered prompt: no context holds as many.
const MAX_PROMPT_BYTES: usize = 16 << 20;
/// The most nested templates and macros.
const MAX_RECURSION_DEPTH: usize = 50;

/// A checked template.
///
/// It is Jinja as minijinja runs it: nothing is escaped, a block's line is removed with it, and an undefined name is an
/// error. A rendering ends after two million instructions.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    name: String,
    /// The name of the template of [`super::reduction_prompt`].
    reduction: String,
    text: String,
}

impl Template {
    /// Compiles a rule's prompt; `None` for a rule without summaries. `fields` are the rule's.
    ///
    /// # Errors
    /// It is wrong, or uses an unknown variable, attribute, filter, test or template, which would fail when a window
    /// closes.
    pub fn compile(source: &PromptSource, fields: &[Field]) -> Result<Option<Self>, SummaryError> {
        let mut environment = environment();
        let add = |environment: &mut Environment<'static>, name: &str, source: &str| {
            environment
                .add_template_owned(name.to_owned(), source.to_owned())
                .map_err(|error| SummaryError::of_template(&error))
        };
        let (name, reduction, text) = match source {
            PromptSource::None => return Ok(None),
            PromptSource::BuiltIn(name) => {
                let text = built_in::template_source(name)
                    .filter(|_| built_in::TEMPLATE_NAMES.contains(&name.as_str()));
                let text = text.ok_or_else(|| SummaryError::UnknownTemplate {
                    name: name.clone(),
                    known: built_in::TEMPLATE_NAMES.join(", "),
                })?;
                let reduction = if name.ends_with("-de") {
                    "reduce-de"
                } else {
                    "reduce"
                };
                (name.clone(), reduction.to_owned(), text)
            }
            PromptSource::Text(text) => {
                add(&mut environment, RULE_TEMPLATE, text)?;
                lint::check(&environment, RULE_TEMPLATE, text, fields)?;
                let template = environment
                    .get_template(RULE_TEMPLATE)
                    .map_err(|error| SummaryError::of_template(&error))?;
                // A template that uses the parts' texts reduces them itself.
                let reduces = template.undeclared_variables(false).contains("parts");
                (
                    RULE_TEMPLATE.to_owned(),
                    if reduces { RULE_TEMPLATE } else { "reduce" }.to_owned(),
                    text.as_str(),
                )
            }
        };
        Ok(Some(Self {
            environment,
            name,
            reduction,
            text: with_included(text),
        }))
    }

    /// Its text, with those of the built-in prompts that it includes. A summary may repeat its numbers, such as limits.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The whole window in one prompt of any length.
    pub fn render(
        &self,
        window_facts: &WindowFacts<'_>,
        records: &[PromptMessage],
    ) -> Result<String, SummaryError> {
        let messages: Vec<Value> = records
            .iter()
            .map(|record| window_facts.message_value(record))
            .collect();
        let bound = BoundTemplate::new(self, window_facts);
        bound.render(&messages, 0, None)
    }
}

/// A template bound to a window: the values that are the same in all of its prompts.
#[derive(Debug)]
pub(super) struct BoundTemplate<'a> {
    template: &'a Template,
    window_facts: &'a WindowFacts<'a>,
    stats: Value,
}

impl<'a> BoundTemplate<'a> {
    pub(super) fn new(template: &'a Template, window_facts: &'a WindowFacts<'a>) -> Self {
        Self {
            template,
            window_facts,
            stats: window_facts.stats_value(),
        }
    }

    /// A prompt over `messages`. `left_out` is added to the window's own; `part` is the number of the part, from 1, and the
    /// number of parts.
    pub(super) fn render(
        &self,
        messages: &[Value],
        left_out: u64,
        part: Option<(usize, usize)>,
    ) -> Result<String, SummaryError> {
        let part = part.map(|(index, of)| Value::from_iter([("index", index), ("of", of)]));
        self.run(&self.template.name, messages, left_out, (part, &[]))
    }

    /// The prompt that reduces several texts to one.
    pub(super) fn reduction(&self, texts: &[String]) -> Result<String, SummaryError> {
        self.run(&self.template.reduction, &[], 0, (None, texts))
    }

    fn run(
        &self,
        name: &str,
        messages: &[Value],
        left_out: u64,
        (part, texts): (Option<Value>, &[String]),
    ) -> Result<String, SummaryError> {
        let mut text = Capped(Vec::new());
        let values = context! {
            rule => self.window_facts.rule,
            group => self.window_facts.group_value(),
            window => self.window_facts.window_value(left_out),
            stats => self.stats,
            messages => messages,
            pictures => self.window_facts.pictures_value(),
            part => part,
            parts => texts,
        };
        self.template
            .environment
            .get_template(name)
            .and_then(|template| template.render_captured_to(values, &mut text).map(drop))
            .map_err(|error| SummaryError::of_template(&error))?;
        // Templates and values are text, so that nothing is lost here.
        Ok(String::from_utf8_lossy(&text.0).trim().to_owned())
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_recursion_limit(MAX_RECURSION_DEPTH);
    environment.set_fuel(Some(RENDER_FUEL));
    // It would print the whole environment.
    environment.remove_global("debug");
    filters::add(&mut environment);
    for (name, source) in built_in::TEMPLATES {
        environment
            .add_template(name, source)
            .expect("the templates that come along are tested");
    }
    environment
}

/// A template's text, followed by the built-in prompts that it includes.
fn with_included(text: &str) -> String {
    let included = built_in::TEMPLATE_NAMES.iter().filter(|name| {
        text.contains(&format!("include \"{name}\"")) || text.contains(&format!("include '{name}'"))
    });
    let sources = included.filter_map(|name| built_in::template_source(name));
    std::iter::once(text)
        .chain(sources)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A buffer of at most [`MAX_PROMPT_BYTES`].
#[derive(Debug)]
struct Capped(Vec<u8>);

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PROMPT_BYTES {
            return Err(io::Error::other("the prompt is longer than 16 MiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn fields() -> Vec<Field> {
        ["state", "value"]
            .map(|name| Field {
                name: name.to_owned(),
                pointer: format!("/{name}"),
            })
            .into()
    }

    fn compile(source: &str) -> Result<Template, SummaryError> {
        Template::compile(&PromptSource::Text(source.to_owned()), &fields()).map(|template| template.unwrap())
    }

    #[test]
    fn every_variable() {
        let fixture = fixture::window();
        let check = |source: &str, expected: &str| {
            let text = compile(source)
                .unwrap()
                .render(&fixture.window_facts(), &fixture.records);
            assert_eq!(text.as_deref(), Ok(expected), "{source}");
        };
        check("{{ rule }}/{{ group }}", "alarms/mixer-07");
        check("{{ window.start }}", "2026-03-02T06:00:00+01:00");
        check("{{ window.end|clock }} {{ window.duration }}", "14:00 8 h");
        check(
            "{{ window.messages }} {{ window.late }} {{ window.left_out }} {{ window.reason }}",
            "3 1 0 due",
        );
        check(
            "{{ stats.value.max }} {{ stats.value.mean|number(1) }}",
            "81.6 74.0",
        );
        check("{{ stats.value.rate|number }}", "0.004");
        check("{{ stats.value.from|clock }}", "06:15");
        check(
            "{% for v in stats.state['values'] %}{{ v.value }} {{ v.count }}\n{% endfor %}",
            "ok 2\nhot 1",
        );
        check("{{ messages|length }} {{ messages[1].fields.value }}", "3 81.6");
        check("{{ messages[0].topic }}", "plant/mixer-07/temperature");
        check("{{ messages[0].time }}", "2026-03-02T06:15:00+01:00");
        check("{{ messages[0].payload }}", r#"{"value":68.9,"state":"ok"}"#);
        check(
            "{{ messages[1]|record }}",
            r#"{"time": "06:20:00", "topic": "plant/mixer-07/temperature", "state": "hot", "value": 81.6}"#,
        );
        check("{% if part %}part{% endif %}{{ parts|length }}", "0");
        check("  {% if 1 %}\n  <b>&\n  {% endif %}\n", "<b>&");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let fixture = fixture::window();
        let check = |source: &str, line, part: &str| {
            let error = compile(source)
                .and_then(|template| template.render(&fixture.window_facts(), &fixture.records))
                .unwrap_err();
            let SummaryError::Template { line: at, message } = &error else {
                panic!("{error}")
            };
            assert!(*at == line && message.contains(part), "{source}: {error}");
            assert!(!error.to_string().contains('\n'));
        };
        check("one\n{% for m in messages %}", 2, "unexpected end of input");
        check("\n{{ message }}", 2, "there is no variable message");
        check("{{ window.begin }}", 1, "window has no begin");
        check("{{ stats.valu.max }}", 1, "the rule has no field valu");
        check("{{ stats.value.maximum }}", 1, "facts have no maximum");
        check("a\nb {{ rule|uper }}", 2, "there is no filter uper");
        check("{{ rule is nice }}", 1, "there is no test nice");
        check("{% include 'facs' %}", 1, "there is no template facs");
        check("\n\n{{ messages[0].fields.wrong }}", 3, "undefined");
        check(
            "{% for m in range(100000) %}{% for n in range(100000) %}x{% endfor %}{% endfor %}",
            1,
            "fuel",
        );
        check("{{ rule|record }}", 1, "record takes one of the messages");
        check("{{ debug() }}", 1, "there is no variable debug");
        check("{% for i in range(9) %}{{ 'x' * 2000000 }}{% endfor %}", 1, "");
    }

    #[test]
    fn names_that_are_set_within_a_template_are_known() {
        for source in [
            "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}",
            "{% macro line(m) %}{{ m|record }}{% endmacro %}{{ line(messages[0]) }}",
            "{% raw %}{{ nothing|at_all }}{% endraw %}",
            "{# {{ nothing|at_all }} #}{{ 'a | b' }}",
            "{{ messages|selectattr('topic', 'startingwith', 'plant')|list|length }}",
            "{{ stats.value.max is not none }}",
        ] {
            let fixture = fixture::window();
            let text = compile(source)
                .and_then(|template| template.render(&fixture.window_facts(), &fixture.records));
            assert!(text.is_ok(), "{source}: {text:?}");
        }
    }

    #[test]
    fn its_text_has_the_limits_of_what_it_includes() {
        let german = Template::compile(&PromptSource::BuiltIn("demo-digest-de".into()), &[]);
        assert!(german.unwrap().unwrap().text().contains("else 75"));
        let own = compile("{% set limit = 80 %}{% include 'demo-digest' %}").unwrap();
        assert!(own.text().starts_with("{% set limit = 80 %}") && own.text().contains("else 75"));
    }

    #[test]
    fn unknown_built_in() {
        let error = Template::compile(&PromptSource::BuiltIn("alarms".into()), &[]).unwrap_err();
        assert!(error.to_string().contains("alarm-digest, "), "{error}");
        assert!(Template::compile(&PromptSource::None, &[]).unwrap().is_none());
    }
}
