//! JSON Schema as far as docs/asyncapi.json uses it (draft 2020-12, sections 6 and 10). A keyword that is not known here
//! fails the test, so that none is passed over.

use serde_json::Value;

/// What is wrong with a value, and where; `None` if it is valid.
pub fn fault(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    let keywords = schema.as_object().expect("a schema is an object");
    keywords.iter().find_map(|(keyword, rule)| {
        let fault = match keyword.as_str() {
            "description" | "default" | "contentEncoding" => None,
            "$ref" => {
                let pointer = rule.as_str().expect("a reference").trim_start_matches('#');
                let schema = document.pointer(pointer).expect("what is referred to");
                return fault(document, schema, value);
            }
            "type" => wrong_type(rule, value),
            "enum" => {
                let words = rule.as_array().expect("a list");
                (!words.contains(value)).then(|| "is none of the words".to_owned())
            }
            "const" => (rule != value).then(|| "is another value".to_owned()),
            "oneOf" => {
                let schemas = rule.as_array().expect("a list");
                let valid = schemas
                    .iter()
                    .filter(|schema| fault(document, schema, value).is_none());
                let valid = valid.count();
                (valid != 1).then(|| format!("is of {valid} forms"))
            }
            "allOf" => {
                let schemas = rule.as_array().expect("a list");
                return schemas.iter().find_map(|schema| fault(document, schema, value));
            }
            "minimum" => out_of_bounds(value, |number| number < bound(rule)),
            "exclusiveMinimum" => out_of_bounds(value, |number| number <= bound(rule)),
            "maximum" => out_of_bounds(value, |number| number > bound(rule)),
            "minLength" | "maxLength" | "pattern" | "format" => text_fault(keyword, rule, value),
            "minItems" | "maxItems" | "items" => return list_fault(document, keyword, rule, value),
            "required" | "properties" | "additionalProperties" => {
                return object_fault(document, schema, keyword, value);
            }
            other => panic!("the keyword {other} is not known to this test"),
        };
        fault.map(|fault| format!("{value} {fault} ({keyword})"))
    })
}

fn wrong_type(rule: &Value, value: &Value) -> Option<String> {
    let is = |name: &Value| match name.as_str().expect("a type") {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        other => panic!("the type {other} is not known to this test"),
    };
    let fits = rule
        .as_array()
        .map_or_else(|| is(rule), |types| types.iter().any(is));
    (!fits).then(|| "is of another type".to_owned())
}

fn bound(rule: &Value) -> f64 {
    rule.as_f64().expect("a number")
}

fn out_of_bounds(value: &Value, out: impl Fn(f64) -> bool) -> Option<String> {
    value
        .as_f64()
        .is_some_and(out)
        .then(|| "is out of bounds".to_owned())
}

fn text_fault(keyword: &str, rule: &Value, value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let length = u64::try_from(text.chars().count()).ok()?;
    let fits = match keyword {
        "minLength" => length >= rule.as_u64()?,
        "maxLength" => length <= rule.as_u64()?,
        "format" => text.ends_with('Z') && text.contains('T'),
        _ => match rule.as_str()? {
            "^[A-Za-z0-9._-]{1,64}$" => {
                (1..=64).contains(&length)
                    && text
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
            }
            BASE64 => is_base64(text),
            DATA_URL => ["png", "jpeg", "jpg", "webp"].iter().any(|kind| {
                text.strip_prefix(&format!("data:image/{kind};base64,"))
                    .is_some_and(is_base64)
            }),
            r"\S" => text.contains(|c: char| !c.is_whitespace()),
            other => panic!("the pattern {other} is not known to this test"),
        },
    };
    (!fits).then(|| "does not fit".to_owned())
}

/// The pattern of base64 whose padding may be left out.
const BASE64: &str = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=?|[A-Za-z0-9+/][AQgw]={0,2})$";
/// The pattern of a data URL of an image.
const DATA_URL: &str = "^data:image/(?:png|jpeg|jpg|webp);base64,(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=?|[A-Za-z0-9+/][AQgw]={0,2})$";

/// What [`BASE64`] says.
fn is_base64(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    let last = digits.chars().last();
    digits
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "+/".contains(c))
        && match digits.len() % 4 {
            0 => !digits.is_empty() && padding == 0,
            2 => padding <= 2 && last.is_some_and(|last| "AQgw".contains(last)),
            3 => padding <= 1 && last.is_some_and(|last| "AEIMQUYcgkosw048".contains(last)),
            _ => false,
        }
}

fn list_fault(document: &Value, keyword: &str, rule: &Value, value: &Value) -> Option<String> {
    let items = value.as_array()?;
    let length = u64::try_from(items.len()).ok()?;
    let fits = match keyword {
        "minItems" => length >= rule.as_u64()?,
        "maxItems" => length <= rule.as_u64()?,
        _ => return items.iter().find_map(|item| fault(document, rule, item)),
    };
    (!fits).then(|| format!("{length} items ({keyword})"))
}

fn object_fault(document: &Value, schema: &Value, keyword: &str, value: &Value) -> Option<String> {
    let object = value.as_object()?;
    let rule = &schema[keyword];
    match keyword {
        "required" => {
            let names = rule.as_array()?.iter().filter_map(Value::as_str);
            let missing = names.into_iter().find(|name| !object.contains_key(*name))?;
            Some(format!("{missing} is missing in {value}"))
        }
        "properties" => rule
            .as_object()?
            .iter()
            .find_map(|(name, rule)| fault(document, rule, object.get(name)?)),
        _ => object
            .iter()
            .filter(|(name, _)| schema["properties"].get(name).is_none())
            .find_map(|(name, value)| match rule {
                Value::Bool(true) => None,
                Value::Bool(false) => Some(format!("{name} is not known")),
                rule => fault(document, rule, value),
            }),
    }
}
