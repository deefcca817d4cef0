//! One Rust file: its length, functions and definitions.

use std::path::Path;

use proc_macro2::{Ident, TokenStream};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta};

/// A parsed Rust file.
pub(crate) struct SourceFile {
    pub(crate) text: String,
    pub(crate) syntax: syn::File,
    /// Number of lines.
    pub(crate) lines: usize,
    pub(crate) functions: Vec<Function>,
    pub(crate) definitions: Vec<Definition>,
}

/// A function with a body.
pub(crate) struct Function {
    pub(crate) name: String,
    /// The line of `fn`, from 1.
    pub(crate) line: usize,
    /// Number of lines from `fn` to the closing brace.
    pub(crate) lines: usize,
    /// True if an `allow` of `clippy::too_many_lines` with a reason stands above it.
    pub(crate) has_reason: bool,
    /// True within `#[cfg(test)]`.
    pub(crate) is_test: bool,
}

/// What a definition defines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Module,
    Type,
    Function,
    Constant,
}

/// A name that the file defines.
pub(crate) struct Definition {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) line: usize,
    /// True within `#[cfg(test)]`.
    pub(crate) is_test: bool,
}

impl SourceFile {
    /// Reads and parses a file.
    pub(crate) fn read(path: &Path) -> Self {
        let text =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::parse(text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Parses a file's text.
    pub(crate) fn parse(text: String) -> syn::Result<Self> {
        let syntax = syn::parse_file(&text)?;
        let mut visitor = Definitions::default();
        visitor.visit_file(&syntax);
        Ok(Self {
            lines: text.lines().count(),
            text,
            syntax,
            functions: visitor.functions,
            definitions: visitor.found,
        })
    }

    /// True if the file's head gives a reason for its length: a line `//! Length: …`.
    pub(crate) fn has_reason(&self) -> bool {
        let head = self
            .text
            .lines()
            .take_while(|line| line.starts_with("//") || line.is_empty());
        head.into_iter()
            .filter_map(|line| line.strip_prefix("//! Length: "))
            .any(|reason| !reason.trim().is_empty())
    }
}

/// True for `#[cfg(test)]` and for a `cfg` that `test` is a part of, other than `not(test)`.
pub(crate) fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if attribute.path().is_ident("cfg") => {
            let text = list.tokens.to_string().replace(' ', "");
            mentions(&list.tokens, "test") && !text.contains("not(test)")
        }
        Meta::Path(path) => path
            .segments
            .last()
            .is_some_and(|segment| segment.ident == "test"),
        _ => false,
    })
}

fn mentions(tokens: &TokenStream, word: &str) -> bool {
    tokens.clone().into_iter().any(|token| match token {
        proc_macro2::TokenTree::Ident(ident) => ident == word,
        proc_macro2::TokenTree::Group(group) => mentions(&group.stream(), word),
        _ => false,
    })
}

/// `#[allow(clippy::too_many_lines, reason = "…")]`.
fn has_reason(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if attribute.path().is_ident("allow") || attribute.path().is_ident("expect") => {
            mentions(&list.tokens, "too_many_lines") && mentions(&list.tokens, "reason")
        }
        _ => false,
    })
}

/// The attributes of an item.
pub(crate) fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The attributes of an item of an `impl`.
pub(crate) fn impl_attributes(item: &syn::ImplItem) -> &[Attribute] {
    match item {
        syn::ImplItem::Const(item) => &item.attrs,
        syn::ImplItem::Fn(item) => &item.attrs,
        syn::ImplItem::Type(item) => &item.attrs,
        _ => &[],
    }
}

/// The name and kind that an item defines.
pub(crate) fn defined(item: &Item) -> Option<(Kind, &Ident)> {
    match item {
        Item::Const(item) => Some((Kind::Constant, &item.ident)),
        Item::Static(item) => Some((Kind::Constant, &item.ident)),
        Item::Enum(item) => Some((Kind::Type, &item.ident)),
        Item::Struct(item) => Some((Kind::Type, &item.ident)),
        Item::Trait(item) => Some((Kind::Type, &item.ident)),
        Item::TraitAlias(item) => Some((Kind::Type, &item.ident)),
        Item::Type(item) => Some((Kind::Type, &item.ident)),
        Item::Union(item) => Some((Kind::Type, &item.ident)),
        Item::Fn(item) => Some((Kind::Function, &item.sig.ident)),
        Item::Mod(item) => Some((Kind::Module, &item.ident)),
        _ => None,
    }
}

/// Collects functions and definitions, those within functions and implementations, too.
#[derive(Default)]
struct Definitions {
    functions: Vec<Function>,
    found: Vec<Definition>,
    /// Depth of enclosing test-only items.
    tests: usize,
}

impl Definitions {
    fn define(&mut self, kind: Kind, name: &Ident) {
        self.found.push(Definition {
            kind,
            name: name.to_string(),
            line: name.span().start().line,
            is_test: self.tests > 0,
        });
    }

    fn function(&mut self, attributes: &[Attribute], signature: &syn::Signature, body: &syn::Block) {
        let line = signature.fn_token.span.start().line;
        self.functions.push(Function {
            name: signature.ident.to_string(),
            line,
            lines: body.brace_token.span.close().end().line - line + 1,
            has_reason: has_reason(attributes),
            is_test: self.tests > 0,
        });
    }
}

impl<'ast> Visit<'ast> for Definitions {
    fn visit_item(&mut self, item: &'ast Item) {
        let tests = usize::from(is_test_only(attributes(item)));
        self.tests += tests;
        if let Some((kind, name)) = defined(item) {
            self.define(kind, name);
        }
        if let Item::Fn(item) = item {
            self.function(&item.attrs, &item.sig, &item.block);
        }
        visit::visit_item(self, item);
        self.tests -= tests;
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let tests = usize::from(is_test_only(impl_attributes(item)));
        self.tests += tests;
        match item {
            syn::ImplItem::Const(item) => self.define(Kind::Constant, &item.ident),
            syn::ImplItem::Fn(item) => {
                self.define(Kind::Function, &item.sig.ident);
                self.function(&item.attrs, &item.sig, &item.block);
            }
            _ => {}
        }
        visit::visit_impl_item(self, item);
        self.tests -= tests;
    }

    fn visit_trait_item(&mut self, item: &'ast syn::TraitItem) {
        match item {
            syn::TraitItem::Const(item) => self.define(Kind::Constant, &item.ident),
            syn::TraitItem::Fn(item) => {
                self.define(Kind::Function, &item.sig.ident);
                if let Some(body) = &item.default {
                    self.function(&item.attrs, &item.sig, body);
                }
            }
            syn::TraitItem::Type(item) => self.define(Kind::Type, &item.ident),
            _ => {}
        }
        visit::visit_trait_item(self, item);
    }
}
