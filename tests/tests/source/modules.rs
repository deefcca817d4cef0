//! The modules of a target, and what a path in one of them names.

use std::collections::{BTreeMap, BTreeSet};

use syn::{Expr, Item, ItemMod, Lit, Meta, UseTree};

use super::file::{SourceFile, attributes, defined, is_test_only};

/// Imports lead to imports; a chain longer than this is a circle of globs.
const MAX_IMPORT_CHAIN: usize = 16;

/// A library, binary or example: its modules without those of tests.
pub(crate) struct Target {
    pub(crate) package: String,
    /// The file of the crate's root, relative to the workspace.
    pub(crate) main: String,
    /// By path; the root's is empty.
    pub(crate) modules: BTreeMap<Vec<String>, Module>,
    /// The files of `#[cfg(test)]` modules.
    pub(crate) tests: BTreeSet<String>,
}

/// A module, inline or with a file of its own.
#[derive(Default)]
pub(crate) struct Module {
    /// The file that its items stand in.
    pub(crate) file: String,
    /// Items other than modules.
    pub(crate) items: BTreeSet<String>,
    /// What `use` brings into scope: name to path.
    pub(crate) imports: BTreeMap<String, Vec<String>>,
    /// The paths of `use path::*`.
    pub(crate) globs: Vec<Vec<String>>,
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Module(Vec<String>),
    /// An item, by the path of its module.
    Item(Vec<String>),
}

impl Target {
    /// Follows the `mod` items from a crate's root.
    pub(crate) fn walk(package: &str, main: &str, files: &BTreeMap<String, SourceFile>) -> Self {
        let mut target = Self {
            package: package.to_owned(),
            main: main.to_owned(),
            modules: BTreeMap::new(),
            tests: BTreeSet::new(),
        };
        let folder = folder_of(main).to_owned();
        target.enter(Vec::new(), main, &folder, &files[main].syntax.items, files, false);
        target
    }

    /// The files of the target, without those of tests.
    pub(crate) fn files(&self) -> impl Iterator<Item = &String> {
        let files: BTreeSet<&String> = self.modules.values().map(|module| &module.file).collect();
        files.into_iter()
    }

    /// What a path names that stands in the module `scope`; `None` for what is of another crate, or local.
    pub(crate) fn resolve(&self, scope: &[String], path: &[String]) -> Option<Named> {
        self.resolve_within(scope, path, MAX_IMPORT_CHAIN)
    }

    fn resolve_within(&self, scope: &[String], path: &[String], chain: usize) -> Option<Named> {
        let mut module = scope.to_vec();
        let mut rest = path;
        while let Some(head) = rest.first() {
            match head.as_str() {
                "crate" => module.clear(),
                "self" => {}
                "super" => {
                    module.pop()?;
                }
                _ => break,
            }
            rest = &rest[1..];
        }
        for name in rest {
            match self.lookup(&module, name, chain)? {
                Named::Module(path) => module = path,
                Named::Item(path) => return Some(Named::Item(path)),
            }
        }
        Some(Named::Module(module))
    }

    /// A name within a module: a child module, an item, or what an import brings.
    fn lookup(&self, scope: &[String], name: &str, chain: usize) -> Option<Named> {
        let module = self.modules.get(scope)?;
        let mut child = scope.to_vec();
        child.push(name.to_owned());
        if self.modules.contains_key(&child) {
            return Some(Named::Module(child));
        }
        if module.items.contains(name) {
            return Some(Named::Item(scope.to_vec()));
        }
        let chain = chain.checked_sub(1)?;
        if let Some(path) = module.imports.get(name) {
            // `use serde_json;` and the like name themselves.
            return (path.as_slice() != [name.to_owned()])
                .then(|| self.resolve_within(scope, path, chain))
                .flatten();
        }
        module.globs.iter().find_map(|glob| {
            let Named::Module(within) = self.resolve_within(scope, glob, chain)? else {
                return None;
            };
            (within != scope)
                .then(|| self.lookup(&within, name, chain))
                .flatten()
        })
    }

    fn enter(
        &mut self,
        path: Vec<String>,
        file: &str,
        folder: &str,
        items: &[Item],
        files: &BTreeMap<String, SourceFile>,
        is_test: bool,
    ) {
        let mut module = Module {
            file: file.to_owned(),
            ..Module::default()
        };
        for item in items {
            let is_test = is_test || is_test_only(attributes(item));
            if let Item::Mod(child) = item {
                self.enter_child(&path, file, folder, child, files, is_test);
            } else if !is_test {
                match item {
                    Item::Use(item) => import(&item.tree, Vec::new(), &mut module),
                    Item::Macro(item) => module.items.extend(item.ident.iter().map(ToString::to_string)),
                    item => module
                        .items
                        .extend(defined(item).map(|(_, name)| name.to_string())),
                }
            }
        }
        if is_test {
            self.tests.insert(file.to_owned());
        } else {
            self.modules.insert(path, module);
        }
    }

    fn enter_child(
        &mut self,
        parent: &[String],
        file: &str,
        folder: &str,
        child: &ItemMod,
        files: &BTreeMap<String, SourceFile>,
        is_test: bool,
    ) {
        let name = child.ident.to_string();
        let mut path = parent.to_vec();
        path.push(name.clone());
        let inner = join(folder, &name);
        if let Some((_, items)) = &child.content {
            self.enter(path, file, &inner, items, files, is_test);
            return;
        }
        let candidates = match path_attribute(child) {
            Some(given) => vec![join(folder_of(file), &given)],
            None => vec![format!("{inner}.rs"), format!("{inner}/mod.rs")],
        };
        let found = candidates.iter().find(|candidate| files.contains_key(*candidate));
        let found = found.unwrap_or_else(|| panic!("{file}: mod {name} has no file"));
        // The children of a `#[path]` file lie beside it.
        let inner = if path_attribute(child).is_some() {
            folder_of(found).to_owned()
        } else {
            inner
        };
        self.enter(path, found, &inner, &files[found].syntax.items, files, is_test);
    }
}

/// The names that a `use` brings into scope.
fn import(tree: &UseTree, mut path: Vec<String>, module: &mut Module) {
    match tree {
        UseTree::Path(tree) => {
            path.push(tree.ident.to_string());
            import(&tree.tree, path, module);
        }
        UseTree::Name(tree) => {
            let name = tree.ident.to_string();
            if name == "self" {
                if let Some(last) = path.last().cloned() {
                    module.imports.insert(last, path);
                }
            } else {
                path.push(name.clone());
                module.imports.insert(name, path);
            }
        }
        UseTree::Rename(tree) => {
            if tree.ident != "self" {
                path.push(tree.ident.to_string());
            }
            module.imports.insert(tree.rename.to_string(), path);
        }
        UseTree::Glob(_) => module.globs.push(path),
        UseTree::Group(tree) => {
            for item in &tree.items {
                import(item, path.clone(), module);
            }
        }
    }
}

fn path_attribute(module: &ItemMod) -> Option<String> {
    module.attrs.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                Lit::Str(text) => Some(text.value()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    })
}

fn folder_of(file: &str) -> &str {
    file.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn join(folder: &str, name: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}
