//! The JSON document in a model's text.

use serde::de::IgnoredAny;

/// The JSON document of an answer (the whole of it, in a Markdown fence, or the first object or list in other
/// text), without white space, its members unchanged. The error is one line.
pub fn json_document(text: &str) -> Result<String, String> {
    let text = text.trim();
    let mut fault = match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => return Ok(compact(text)),
        Err(error) => error.to_string(),
    };
    if let Some(fenced) = fenced(text) {
        match serde_json::from_str::<IgnoredAny>(fenced) {
            Ok(_) => return Ok(compact(fenced)),
            Err(error) => fault = error.to_string(),
        }
    }
    for (start, _) in text.match_indices(['{', '[']) {
        let rest = &text[start..];
        // What follows the document is not wanted; the stream says where it ended.
        let mut documents = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        if let Some(Ok(_)) = documents.next() {
            return Ok(compact(&rest[..documents.byte_offset()]));
        }
    }
    Err(format!("the answer is no JSON: {fault}"))
}

/// The content of the first Markdown fence.
fn fenced(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("```")?;
    let (info, body) = rest.split_once('\n')?;
    // The fence's own line may name a language, and nothing else.
    let language = info.trim().chars().all(|c| c.is_ascii_alphanumeric());
    let (inner, _) = if language { body } else { rest }.split_once("```")?;
    Some(inner.trim())
}

/// A document without the white space between its tokens.
fn compact(json: &str) -> String {
    let (mut within, mut escaped) = (false, false);
    json.chars()
        .filter(|&c| {
            let keep = within || !matches!(c, ' ' | '\n' | '\r' | '\t');
            if within && escaped {
                escaped = false;
            } else if within && c == '\\' {
                escaped = true;
            } else if c == '"' {
                within = !within;
            }
            keep
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents() {
        let check =
            |text: &str, expected: &str| assert_eq!(json_document(text).as_deref(), Ok(expected), "{text}");
        check(
            r#" {"b": 1, "a": [1.50, "x  \" y"]} "#,
            r#"{"b":1,"a":[1.50,"x  \" y"]}"#,
        );
        check("```json\n{\"a\": 1}\n```", r#"{"a":1}"#);
        check("Here it is:\n```\n[1, 2]\n```\nBye", "[1,2]");
        check("``` {\"a\": 1}\n```", r#"{"a":1}"#);
        check(
            "Sure! {\"a\": {\"b\": null}} Anything else?",
            r#"{"a":{"b":null}}"#,
        );
        check("{not} but [true]", "[true]");
        check("42", "42");
    }

    #[test]
    fn no_document() {
        let check = |text: &str| {
            let error = json_document(text).unwrap_err();
            assert!(
                error.starts_with("the answer is no JSON: ") && !error.contains('\n'),
                "{error}"
            );
        };
        check("");
        check("All is well.");
        check("{\"a\": 1");
        check("```json\n{\"a\": }\n```");
        check(&"[".repeat(5000));
    }
}
