//! The filters of templates.

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind};

use super::values::{TemplateMessage, one_line};

pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("record", record);
    environment.add_filter("tojson", tojson);
    environment.add_filter("number", number);
    environment.add_filter("clock", clock);
    environment.add_filter("date", date);
}

/// The filter `record`: a message as one line of JSON.
fn record(value: &Value) -> Result<String, Error> {
    let message = value
        .downcast_object_ref::<TemplateMessage>()
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "record takes one of the messages"))?;
    Ok(message.line.clone())
}

/// The filter `tojson`: a value as JSON on one line. Unlike Jinja's own it leaves `<` and `'` alone: a prompt is no web
/// page.
fn tojson(value: &Value) -> Result<String, Error> {
    let json = serde_json::to_string(value)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("is no JSON: {error}")))?;
    Ok(one_line(&json))
}

/// The filter `number`: a number for reading, with this many digits after the point, or up to three significant ones.
/// `comma` writes a decimal comma. Other values are unchanged.
#[allow(clippy::needless_pass_by_value, reason = "the shape of a filter")]
fn number(value: &Value, digits: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let comma: Option<bool> = options.get("comma")?;
    options.assert_all_used()?;
    let Ok(number) = f64::try_from(value.clone()) else {
        return Ok(value.clone());
    };
    let mut text = if let Some(digits) = digits {
        format!("{number:.0$}", digits.min(20))
    } else if number != 0.0 && number.abs() < 0.001 {
        format!("{number:.2e}")
    } else {
        let fixed = format!("{number:.3}");
        fixed.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if comma == Some(true) {
        text = text.replace('.', ",");
    }
    Ok(text.into())
}

/// The filter `clock`: the time of day, `06:00`, of a time in RFC 3339.
fn clock(time: &str) -> Result<String, Error> {
    time.split_once('T')
        .and_then(|(_, clock)| clock.get(..5))
        .map(ToOwned::to_owned)
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "clock takes a time in RFC 3339"))
}

/// The filter `date`: the date, `2026-03-02`, of a time in RFC 3339.
fn date(time: &str) -> Result<String, Error> {
    time.split_once('T')
        .map(|(date, _)| date.to_owned())
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "date takes a time in RFC 3339"))
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    #[test]
    fn numbers_times_and_json() {
        let mut environment = Environment::new();
        add(&mut environment);
        let check = |source: &str, expected: &str| {
            let time = "2026-03-02T06:00:00+01:00";
            let text = environment
                .render_str(
                    source,
                    context! { x => 21.473_66, whole => 8.0, small => 0.000_25, time },
                )
                .unwrap();
            assert_eq!(text, expected, "{source}");
        };
        check("{{ x|number }}", "21.474");
        check("{{ x|number(1) }}", "21.5");
        check("{{ x|number(1, comma=true) }}", "21,5");
        check("{{ whole|number }}", "8");
        check("{{ small|number }}", "2.50e-4");
        check("{{ none|number }}", "None");
        check("{{ 'on'|number }}", "on");
        check("{{ time|clock }} {{ time|date }}", "06:00 2026-03-02");
        check("{{ {'a': '<b>\\n'}|tojson }}", r#"{"a":"<b>\n"}"#);
    }
}
