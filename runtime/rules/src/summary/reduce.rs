//! One text of the texts of parts.

use super::budget::{Budget, largest};
use super::error::WordsError;
use super::prompt_message::text;
use super::template::{Page, Template};
use super::window_facts::Scene;

/// The prompt that makes one text of the parts' texts: the rule's own template where it uses `parts`, else a built-in
/// one. Texts that do not fit are cut, each to the same size.
pub fn reduce(
    template: &Template,
    scene: &Scene<'_>,
    texts: &[String],
    budget: &Budget<'_>,
) -> Result<String, WordsError> {
    let page = Page::new(template, scene);
    let cut = |cap: usize| -> Vec<String> { texts.iter().map(|part| text(part.as_bytes(), cap)).collect() };
    let longest = texts.iter().map(String::len).max().unwrap_or(0);
    let whole = page.reduction(&cut(longest))?;
    if budget.tokens_of(&whole)? <= budget.tokens {
        return Ok(whole);
    }
    let mut best = page.reduction(&cut(0))?;
    let least = budget.tokens_of(&best)?;
    if least > budget.tokens {
        return Err(budget.refusal(least));
    }
    largest(0, longest, |cap| {
        let prompt = page.reduction(&cut(cap))?;
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
            let prompt = reduce(template, &fixture.scene(), &texts, &budget(tokens, 8)).unwrap();
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
        let error = reduce(&reducing, &fixture.scene(), &texts, &budget(11, 8)).unwrap_err();
        assert!(matches!(error, WordsError::DoesNotFit { .. }), "{error}");
    }
}
