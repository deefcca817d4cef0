//! The reduction of the parts' texts to one.

use super::budget::{PromptBudget, largest_fitting};
use super::error::SummaryError;
use super::prompt_message::bounded_text;
use super::template::{BoundTemplate, Template};
use super::window_facts::WindowFacts;

/// The prompt that reduces the parts' texts to one, by the rule's own template if it uses `parts`, else by a built-in
/// one. Texts that do not fit are cut, each to the same size.
pub fn reduction_prompt(
    template: &Template,
    window_facts: &WindowFacts<'_>,
    texts: &[String],
    budget: &PromptBudget<'_>,
) -> Result<String, SummaryError> {
    let bound = BoundTemplate::new(template, window_facts);
    let cut = |cap: usize| -> Vec<String> {
        texts
            .iter()
            .map(|part| bounded_text(part.as_bytes(), cap))
            .collect()
    };
    let longest = texts.iter().map(String::len).max().unwrap_or(0);
    let whole = bound.reduction(&cut(longest))?;
    if budget.tokens_of(&whole)? <= budget.tokens {
        return Ok(whole);
    }
    let mut best = bound.reduction(&cut(0))?;
    let least = budget.tokens_of(&best)?;
    if least > budget.tokens {
        return Err(budget.refusal(least));
    }
    largest_fitting(0, longest, |cap| {
        let prompt = bound.reduction(&cut(cap))?;
        let fits = budget.tokens_of(&prompt)? <= budget.tokens;
        if fits {
            best = prompt;
        }
        Ok(fits)
    })?;
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::super::budget::tests::{budget, count};
    use super::super::fixture;
    use super::*;
    use crate::PromptSource;

    fn template(source: &PromptSource) -> Template {
        Template::compile(source, &[]).unwrap().unwrap()
    }

    fn own(source: &str) -> Template {
        template(&PromptSource::Text(source.to_owned()))
    }

    #[test]
    fn reductions() {
        let fixture = fixture::window();
        let texts = ["one ".repeat(50), "two ".repeat(5)];
        let reducing = own("{% for text in parts %}[{{ text|trim }}]{% endfor %}");
        let check = |template: &Template, tokens, expected: &str| {
            let prompt =
                reduction_prompt(template, &fixture.window_facts(), &texts, &budget(tokens, 8)).unwrap();
            assert!(prompt.contains(expected), "{prompt}");
            assert!(count(&prompt).unwrap() <= tokens);
        };
        check(&reducing, 100, "two]");
        check(&reducing, 30, "…[cut]][two");
        check(&own("{{ rule }}"), 1000, "in their language");
        check(
            &template(&PromptSource::BuiltIn("log-triage-de".into())),
            1000,
            "auf Deutsch",
        );
        let error = reduction_prompt(&reducing, &fixture.window_facts(), &texts, &budget(11, 8)).unwrap_err();
        assert!(matches!(error, SummaryError::DoesNotFit { .. }), "{error}");
    }
}
