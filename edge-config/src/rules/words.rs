//! The settings by which the model summarises a rule's windows.

use super::values::Values;
use super::{Prompt, TextFormat, Words};
use crate::ConfigError;

/// The maximum number of stop strings, as of requests: each is compared with every piece of text.
const MAX_STOPS: usize = 16;

/// The keys that only the model uses.
const MODEL_KEYS: [&str; 11] = [
    "system",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "format",
    "check_numbers",
    "deadline",
    "max_parts",
    "max_prompt_tokens",
];

/// Reads the summary settings of a rule.
pub(super) fn read(values: &Values<'_>) -> Result<Words, ConfigError> {
    let prompt = prompt(values)?;
    if prompt == Prompt::None
        && let Some(key) = MODEL_KEYS.into_iter().find(|key| values.has(key))
    {
        let problem = format!("`{key}` has no effect with `facts_only`, which asks no model; remove one");
        return Err(values.fault(key, problem));
    }
    let stop: Vec<String> = values.optional("stop")?.unwrap_or_default();
    if stop.len() > MAX_STOPS {
        let problem = format!(
            "`stop` has {} texts, {MAX_STOPS} are the most; remove some",
            stop.len()
        );
        return Err(values.fault("stop", problem));
    }
    let format: String = values.value("format")?;
    Ok(Words {
        prompt,
        system: values.optional("system")?,
        max_tokens: values.value("max_tokens")?,
        temperature: values.value("temperature")?,
        top_p: values.value("top_p")?,
        seed: values.value("seed")?,
        stop,
        format: match format.as_str() {
            "json" => TextFormat::Json,
            _ => TextFormat::Text,
        },
        check_numbers: values.value("check_numbers")?,
        deadline: values.optional("deadline")?,
        max_parts: values.value("max_parts")?,
        max_prompt_tokens: values.optional("max_prompt_tokens")?,
    })
}

fn prompt(values: &Values<'_>) -> Result<Prompt, ConfigError> {
    let facts_only: bool = values.value("facts_only")?;
    let text: Option<String> = values.optional("prompt")?;
    let template: Option<String> = values.optional("template")?;
    match (text, template, facts_only) {
        (Some(text), None, false) => Ok(Prompt::Text(text)),
        (None, Some(name), false) => Ok(Prompt::Template(name)),
        (None, None, true) => Ok(Prompt::None),
        (None, None, false) => Err(values.fault(
            "name",
            "says nothing of its words; give `prompt` (a template's text), `template` (the name of a built-in one) or \
             `facts_only = true`",
        )),
        (Some(_), Some(_), _) => Err(values.fault("template", "has both `prompt` and `template`; remove one")),
        (Some(_), None, true) => Err(values.fault("facts_only", "has both `prompt` and `facts_only`; remove one")),
        (None, Some(_), true) => Err(values.fault("facts_only", "has both `template` and `facts_only`; remove one")),
    }
}
