//! The common prefix of a rule's prompts.

use super::built_in;
use crate::PromptSource;

/// The common prefix of a template's prompts; empty if there is none, `None` where no model is asked.
///
/// It is the text before the template's first tag, without trailing white space, which a tag may remove.
pub fn prompt_prefix(prompt: &PromptSource) -> Option<&str> {
    let template = match prompt {
        PromptSource::None => return None,
        PromptSource::BuiltIn(name) => built_in::template_source(name)?,
        PromptSource::Text(text) => text,
    };
    let tags = ["{{", "{%", "{#"];
    let first = tags.into_iter().filter_map(|tag| template.find(tag)).min();
    Some(template[..first.unwrap_or(template.len())].trim_end())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::{TEMPLATE_NAMES, Template, fixture};
    use super::*;

    #[test]
    fn prompts_begin_with_it() {
        let of = |text: &str| PromptSource::Text(text.to_owned());
        let texts = [
            "Say how it ran.\n\n{{ group }}",
            "{{ group }} ran",
            "No tag.",
            "a {%- if group %} b{% endif %}",
        ];
        let built_in = TEMPLATE_NAMES.map(|name| PromptSource::BuiltIn(name.to_owned()));
        let window = fixture::window();
        for source in texts.map(of).into_iter().chain(built_in) {
            let template = Template::compile(&source, &[]).unwrap().unwrap();
            let prompt = template.render(&window.window_facts(), &window.records).unwrap();
            let prefix = prompt_prefix(&source).unwrap();
            assert!(prompt.starts_with(prefix), "{source:?}: {prompt}");
        }
        assert_eq!(prompt_prefix(&of(texts[0])), Some("Say how it ran."));
        assert!(
            prompt_prefix(&PromptSource::BuiltIn("alarm-digest".into()))
                .unwrap()
                .len()
                > 100
        );
        assert_eq!(prompt_prefix(&PromptSource::None), None);
    }
}
