//! Values from the text of the environment or the command line.

use toml::Value;

/// Parses a list of the environment: a TOML array, or texts separated by commas (no topic filter needs a comma).
pub(crate) fn list_from_text(text: &str) -> Value {
    if text.trim_start().starts_with('[')
        && let Ok(mut table) = format!("list = {text}").parse::<toml::Table>()
        && let Some(value) = table.remove("list")
    {
        return value;
    }
    Value::Array(
        text.split(',')
            .map(|item| Value::String(item.trim().to_owned()))
            .collect(),
    )
}

/// Parses a table of the environment: a TOML inline table. An empty text unsets the key, as of every other shape.
pub(crate) fn table_from_text(text: &str) -> Option<Value> {
    let mut table = format!("table = {text}").parse::<toml::Table>().ok()?;
    table.remove("table").filter(Value::is_table)
}
