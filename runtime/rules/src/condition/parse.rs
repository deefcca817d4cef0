//! The parser of conditions; docs/rules.md describes their language.

use super::lexer::{Token, tokenize};
use crate::Field;

/// An arithmetic operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Plus,
    Minus,
    Times,
    Over,
    Rest,
}

/// A comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

/// A test of a value's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueKind {
    Defined,
    Number,
    Text,
    Truth,
}

/// A node of a condition's syntax tree.
#[derive(Debug)]
pub(super) enum Node {
    Number(f64),
    Text(String),
    Truth(bool),
    /// A field, by its index.
    Field(usize),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Arithmetic(Arithmetic, Box<Node>, Box<Node>),
    Compare(Relation, Box<Node>, Box<Node>),
    OneOf(Box<Node>, Vec<Node>),
    /// Whether the first text is part of the second.
    Within(Box<Node>, Box<Node>),
    Is(Box<Node>, ValueKind),
}

/// Parses a condition over these fields.
pub(super) fn parse(text: &str, fields: &[Field]) -> Result<Node, String> {
    let mut parser = Parser {
        tokens: tokenize(text)?,
        at: 0,
        fields,
    };
    let node = parser.any()?;
    match parser.tokens.get(parser.at) {
        None => Ok(node),
        Some(token) => Err(format!("{token} is not expected where it stands")),
    }
}

struct Parser<'a> {
    tokens: Vec<Token>,
    at: usize,
    fields: &'a [Field],
}

impl Parser<'_> {
    fn any(&mut self) -> Result<Node, String> {
        let mut node = self.all()?;
        while self.takes_sign("or") {
            node = Node::Or(Box::new(node), Box::new(self.all()?));
        }
        Ok(node)
    }

    fn all(&mut self) -> Result<Node, String> {
        let mut node = self.negated()?;
        while self.takes_sign("and") {
            node = Node::And(Box::new(node), Box::new(self.negated()?));
        }
        Ok(node)
    }

    fn negated(&mut self) -> Result<Node, String> {
        if self.takes_name("not") {
            return Ok(Node::Not(Box::new(self.negated()?)));
        }
        let node = self.comparison()?;
        if self.relation().is_some() {
            return Err("two values are compared at a time; join comparisons with `and`".to_owned());
        }
        Ok(node)
    }

    fn comparison(&mut self) -> Result<Node, String> {
        let node = self.sum()?;
        if let Some(relation) = self.relation() {
            return Ok(Node::Compare(relation, Box::new(node), Box::new(self.sum()?)));
        }
        if self.takes_name("is") {
            let not = self.takes_name("not");
            let node = Node::Is(Box::new(node), self.kind()?);
            return Ok(negated_if(not, node));
        }
        let not = self.takes_name("not");
        if self.takes_name("in") {
            let node = self.among(node)?;
            return Ok(negated_if(not, node));
        }
        if not {
            return Err("`in` is expected behind `not`".to_owned());
        }
        Ok(node)
    }

    fn among(&mut self, node: Node) -> Result<Node, String> {
        if !self.takes_sign("[") {
            return Ok(Node::Within(Box::new(node), Box::new(self.sum()?)));
        }
        let mut members = Vec::new();
        while !self.takes_sign("]") {
            members.push(self.sum()?);
            if !self.takes_sign(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok(Node::OneOf(Box::new(node), members))
    }

    fn sum(&mut self) -> Result<Node, String> {
        let mut node = self.product()?;
        loop {
            let operator = if self.takes_sign("+") {
                Arithmetic::Plus
            } else if self.takes_sign("-") {
                Arithmetic::Minus
            } else {
                return Ok(node);
            };
            node = Node::Arithmetic(operator, Box::new(node), Box::new(self.product()?));
        }
    }

    fn product(&mut self) -> Result<Node, String> {
        let mut node = self.signed()?;
        loop {
            let operator = if self.takes_sign("*") {
                Arithmetic::Times
            } else if self.takes_sign("/") {
                Arithmetic::Over
            } else if self.takes_sign("%") {
                Arithmetic::Rest
            } else {
                return Ok(node);
            };
            node = Node::Arithmetic(operator, Box::new(node), Box::new(self.signed()?));
        }
    }

    fn signed(&mut self) -> Result<Node, String> {
        if self.takes_sign("-") {
            let node = self.signed()?;
            return Ok(Node::Arithmetic(
                Arithmetic::Minus,
                Box::new(Node::Number(0.0)),
                Box::new(node),
            ));
        }
        if self.takes_sign("(") {
            let node = self.any()?;
            self.expect(")")?;
            return Ok(node);
        }
        match self.next()? {
            Token::Number(number) => Ok(Node::Number(number)),
            Token::Text(text) => Ok(Node::Text(text)),
            Token::Name(name) => self.named(&name),
            sign @ Token::Sign(_) => Err(format!("{sign} is not expected where it stands")),
        }
    }

    fn named(&self, name: &str) -> Result<Node, String> {
        match name {
            "true" | "True" => return Ok(Node::Truth(true)),
            "false" | "False" => return Ok(Node::Truth(false)),
            "not" | "in" | "is" => return Err(format!("`{name}` is not expected where it stands")),
            _ => {}
        }
        let index = self.fields.iter().position(|field| field.name == name);
        index
            .map(Node::Field)
            .ok_or_else(|| format!("it uses {name}, which is not among the rule's `fields`"))
    }

    fn kind(&mut self) -> Result<ValueKind, String> {
        match self.next()? {
            Token::Name(name) if name == "defined" => Ok(ValueKind::Defined),
            Token::Name(name) if name == "number" => Ok(ValueKind::Number),
            Token::Name(name) if name == "string" => Ok(ValueKind::Text),
            Token::Name(name) if name == "boolean" => Ok(ValueKind::Truth),
            other => Err(format!(
                "there is no test {other}; there are defined, number, string, boolean"
            )),
        }
    }

    fn relation(&mut self) -> Option<Relation> {
        let Some(Token::Sign(sign)) = self.tokens.get(self.at) else {
            return None;
        };
        let relation = match *sign {
            "==" => Relation::Equal,
            "!=" => Relation::Unequal,
            "<" => Relation::Less,
            "<=" => Relation::AtMost,
            ">" => Relation::Greater,
            ">=" => Relation::AtLeast,
            _ => return None,
        };
        self.at += 1;
        Some(relation)
    }

    fn takes_sign(&mut self, sign: &str) -> bool {
        self.takes(|token| matches!(token, Token::Sign(found) if *found == sign))
    }

    fn takes_name(&mut self, name: &str) -> bool {
        self.takes(|token| matches!(token, Token::Name(found) if found == name))
    }

    fn takes(&mut self, is: impl Fn(&Token) -> bool) -> bool {
        let found = self.tokens.get(self.at).is_some_and(is);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.takes_sign(sign) {
            return Ok(());
        }
        Err(match self.tokens.get(self.at) {
            Some(token) => format!("`{sign}` is expected before {token}"),
            None => format!("`{sign}` is missing at its end"),
        })
    }

    fn next(&mut self) -> Result<Token, String> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token.ok_or_else(|| "it ends where a value is expected".to_owned())
    }
}

fn negated_if(not: bool, node: Node) -> Node {
    if not { Node::Not(Box::new(node)) } else { node }
}
