//! The lexer of conditions.

/// The most tokens of a condition: its syntax tree may be as deep as it is long.
const MAX_TOKENS: usize = 500;
/// Longer signs first: `<=` is not `<` and `=`.
const SIGNS: [&str; 18] = [
    "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "(", ")", "[", "]", ",", "and", "or",
];

/// A token of a condition.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Number(f64),
    Text(String),
    /// A name or `not`, `in`, `is`, `true`, `false`.
    Name(String),
    /// One of [`SIGNS`].
    Sign(&'static str),
}

/// The token for error messages.
impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "`{number}`"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Name(name) => write!(f, "`{name}`"),
            Self::Sign(sign) => write!(f, "`{sign}`"),
        }
    }
}

/// The tokens of a text, in order.
///
/// # Errors
/// A part of it is no token; one line.
pub(super) fn tokenize(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if tokens.len() == MAX_TOKENS {
            return Err(format!("it is too long: more than {MAX_TOKENS} words"));
        }
        let (token, length) = match first {
            '"' | '\'' => quoted(rest, first)?,
            c if c.is_ascii_digit() => number(rest)?,
            c if c.is_ascii_alphabetic() || c == '_' => name(rest),
            _ => sign(rest, first)?,
        };
        tokens.push(token);
        rest = rest.get(length..).unwrap_or_default().trim_start();
    }
    Ok(tokens)
}

/// A text in quotes; a backslash takes the next character as it is.
fn quoted(rest: &str, quote: char) -> Result<(Token, usize), String> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => text.extend(characters.next().map(|(_, escaped)| escaped)),
            c if c == quote => return Ok((Token::Text(text), at + quote.len_utf8())),
            c => text.push(c),
        }
    }
    Err(format!("the quotes of {rest} are not closed"))
}

fn number(rest: &str) -> Result<(Token, usize), String> {
    let mut before = '0';
    let length = rest
        .find(|c: char| {
            let signed = matches!(c, '+' | '-') && matches!(before, 'e' | 'E');
            before = c;
            !(c.is_ascii_alphanumeric() || c == '.' || signed)
        })
        .unwrap_or(rest.len());
    let digits = rest.get(..length).unwrap_or(rest);
    let number: Option<f64> = digits.parse().ok().filter(|number: &f64| number.is_finite());
    number
        .map(|number| (Token::Number(number), length))
        .ok_or_else(|| format!("{digits} is no number"))
}

fn name(rest: &str) -> (Token, usize) {
    let length = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(rest.len());
    let name = rest.get(..length).unwrap_or(rest);
    let token = SIGNS
        .into_iter()
        .find(|sign| *sign == name)
        .map_or_else(|| Token::Name(name.to_owned()), Token::Sign);
    (token, length)
}

fn sign(rest: &str, first: char) -> Result<(Token, usize), String> {
    let found = SIGNS.into_iter().find(|sign| rest.starts_with(sign));
    match found {
        Some(sign) => Ok((Token::Sign(sign), sign.len())),
        None if first == '=' => Err("`=` compares nothing; write `==`".to_owned()),
        None => Err(format!("`{first}` means nothing in a condition")),
    }
}
