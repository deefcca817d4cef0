//! The paths in a file, and which file of the crate uses which.

use std::collections::BTreeMap;

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Item, UseTree};

use super::file::{SourceFile, attributes, impl_attributes, is_test_only};
use super::modules::{Named, Target};

/// A path as it stands in a file.
pub(crate) struct Mention {
    /// The module that it stands in.
    pub(crate) scope: Vec<String>,
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    /// True for a path of a `use` item.
    pub(crate) is_use: bool,
}

/// One use of a file by another: the place in the user's file, and the path that stands there.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) path: String,
}

/// Which file uses which, with one place for each pair.
pub(crate) type Uses = BTreeMap<String, BTreeMap<String, Place>>;

/// The paths of a target's files, outside tests, by file.
pub(crate) fn mentions(
    target: &Target,
    files: &BTreeMap<String, SourceFile>,
) -> BTreeMap<String, Vec<Mention>> {
    // A file's own module is the shortest path among the modules that stand in it.
    let mut modules: BTreeMap<&String, &Vec<String>> = BTreeMap::new();
    for (path, module) in &target.modules {
        let known = modules.entry(&module.file).or_insert(path);
        if path.len() < known.len() {
            *known = path;
        }
    }
    let collect = |(file, module): (&String, &Vec<String>)| {
        let mut visitor = Paths {
            scope: module.clone(),
            found: Vec::new(),
        };
        visitor.visit_file(&files[file].syntax);
        (file.clone(), visitor.found)
    };
    modules.into_iter().map(collect).collect()
}

/// Which file of a target uses which other one.
pub(crate) fn uses(target: &Target, files: &BTreeMap<String, SourceFile>) -> Uses {
    let mut uses = Uses::new();
    for (file, mentions) in mentions(target, files) {
        for mention in mentions {
            let module = match target.resolve(&mention.scope, &mention.path) {
                Some(Named::Item(module)) => module,
                // Of a module that is imported, those items count that are then named.
                Some(Named::Module(_)) | None => continue,
            };
            let used = &target.modules[&module].file;
            if *used != file {
                let place = Place {
                    line: mention.line,
                    path: mention.path.join("::"),
                };
                uses.entry(file.clone())
                    .or_default()
                    .entry(used.clone())
                    .or_insert(place);
            }
        }
    }
    uses
}

/// Collects paths of more than one part.
struct Paths {
    scope: Vec<String>,
    found: Vec<Mention>,
}

impl Paths {
    fn add(&mut self, path: Vec<String>, first: &Ident, is_use: bool) {
        self.add_at(path, first.span().start().line, is_use);
    }

    fn add_at(&mut self, path: Vec<String>, line: usize, is_use: bool) {
        self.found.push(Mention {
            scope: self.scope.clone(),
            path,
            line,
            is_use,
        });
    }

    fn add_use(&mut self, tree: &UseTree, mut path: Vec<String>) {
        match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                self.add_use(&tree.tree, path);
            }
            UseTree::Name(tree) => {
                if tree.ident != "self" {
                    path.push(tree.ident.to_string());
                }
                self.add(path, &tree.ident, true);
            }
            UseTree::Rename(tree) => {
                if tree.ident != "self" {
                    path.push(tree.ident.to_string());
                }
                self.add(path, &tree.ident, true);
            }
            UseTree::Glob(tree) => self.add_at(path, tree.star_token.spans[0].start().line, true),
            UseTree::Group(tree) => {
                for item in &tree.items {
                    self.add_use(item, path.clone());
                }
            }
        }
    }

    /// The paths in the tokens of a macro or an attribute.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<Ident> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.flush(&mut path);
                    }
                    path.push(ident);
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.flush(&mut path);
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.add_tokens(group.stream());
                    }
                }
            }
        }
        self.flush(&mut path);
    }

    fn flush(&mut self, path: &mut Vec<Ident>) {
        if let [first, _, ..] = path.as_slice() {
            let first = first.clone();
            self.add(path.iter().map(ToString::to_string).collect(), &first, false);
        }
        path.clear();
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_test_only(attributes(item)) {
            return;
        }
        match item {
            Item::Use(item) => self.add_use(&item.tree, Vec::new()),
            Item::Mod(module) if module.content.is_some() => {
                self.scope.push(module.ident.to_string());
                visit::visit_item(self, item);
                self.scope.pop();
            }
            item => visit::visit_item(self, item),
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        if !is_test_only(impl_attributes(item)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() && path.segments.len() > 1 {
            let names = path.segments.iter().map(|segment| segment.ident.to_string());
            self.add(names.collect(), &path.segments[0].ident, false);
        }
        visit::visit_path(self, path);
    }

    /// `pub(in path)` says who may use an item, and uses none.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        visit::visit_macro(self, called);
        self.add_tokens(called.tokens.clone());
    }

    fn visit_meta_list(&mut self, list: &'ast syn::MetaList) {
        self.add_tokens(list.tokens.clone());
    }
}
