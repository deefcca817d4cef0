//! Circles of imports within a target.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::Target;
use crate::source::imports::{Place, Uses};

/// The module of each file: the outermost that stands in it.
pub(crate) type Modules = BTreeMap<String, Vec<String>>;

/// The module of each file of a target.
pub(crate) fn modules(target: &Target) -> Modules {
    let mut modules = Modules::new();
    for (path, module) in &target.modules {
        let known = modules.entry(module.file.clone()).or_insert_with(|| path.clone());
        if path.len() < known.len() {
            known.clone_from(path);
        }
    }
    modules
}

/// The circles between files, a module and those within it excepted.
///
/// At each module the files below it are looked at, without its own: a circle counts where it takes two of the module's
/// children, so that one that leads through the file of a common parent is none, and one into another part of the tree is.
pub(crate) fn between_files(modules: &Modules, uses: &Uses) -> Vec<BTreeSet<String>> {
    let mut circles = Vec::new();
    let parents: BTreeSet<&[String]> = modules
        .values()
        .filter_map(|path| Some(path.split_last()?.1))
        .collect();
    for parent in parents {
        let is_below = |file: &&String| {
            let path = &modules[*file];
            path.len() > parent.len() && path.starts_with(parent)
        };
        let below: BTreeSet<&String> = modules.keys().filter(is_below).collect();
        for circle in strongly_connected(&below, |file| {
            uses.get(file).into_iter().flat_map(BTreeMap::keys).collect()
        }) {
            let children: BTreeSet<&String> =
                circle.iter().map(|file| &modules[file][parent.len()]).collect();
            if children.len() > 1 {
                circles.push(circle);
            }
        }
    }
    circles
}

/// The circles that at least two folders beside the crate's root take part in, each with its files as one; files beside the
/// root are members of their own.
pub(crate) fn between_top_folders(target: &Target, uses: &Uses) -> Vec<BTreeSet<String>> {
    let root = target.main.rsplit_once('/').map_or("", |(folder, _)| folder);
    let top = |file: &String| -> Option<String> {
        let inside = file.strip_prefix(root)?.strip_prefix('/')?;
        let name = match inside.split_once('/') {
            Some((folder, _)) => folder,
            // The file `x.rs` belongs to the folder `x`.
            None => inside.strip_suffix(".rs")?,
        };
        let folder = format!("{root}/{name}/");
        let is_folder = target.files().any(|file| file.starts_with(&folder));
        Some(if is_folder {
            folder
        } else {
            format!("{root}/{name}.rs")
        })
    };
    let mut between: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (user, used) in uses {
        for file in used.keys() {
            if *user != target.main
                && *file != target.main
                && let (Some(from), Some(to)) = (top(user), top(file))
                && from != to
            {
                between.entry(from.clone()).or_default().insert(to.clone());
                between.entry(to).or_default();
            }
        }
    }
    let nodes: BTreeSet<&String> = between.keys().collect();
    let circles = strongly_connected(&nodes, |node| between[node].iter().collect());
    let folders = |circle: &BTreeSet<String>| circle.iter().filter(|member| member.ends_with('/')).count();
    circles.into_iter().filter(|circle| folders(circle) > 1).collect()
}

/// The strongly connected components of more than one node.
fn strongly_connected<'a>(
    nodes: &BTreeSet<&'a String>,
    next: impl Fn(&String) -> Vec<&'a String>,
) -> Vec<BTreeSet<String>> {
    let reach = |start: &'a String| {
        let mut seen: BTreeSet<&String> = BTreeSet::new();
        let mut open = vec![start];
        while let Some(node) = open.pop() {
            for other in next(node) {
                if nodes.contains(other) && seen.insert(other) {
                    open.push(other);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        nodes.iter().map(|node| (*node, reach(node))).collect();
    let mut taken: BTreeSet<&String> = BTreeSet::new();
    let mut components = Vec::new();
    for node in nodes {
        if taken.contains(node) || !reached[node].contains(node) {
            continue;
        }
        let together = reached[node]
            .iter()
            .filter(|other| reached[**other].contains(node));
        let component: BTreeSet<&String> = together.copied().collect();
        taken.extend(&component);
        if component.len() > 1 {
            components.push(component.into_iter().cloned().collect());
        }
    }
    components
}

/// Small crates of known circles.
pub(crate) fn check() {
    let find = |pairs: &[(&str, &str)]| -> Vec<Vec<String>> {
        let place = Place {
            line: 1,
            path: String::new(),
        };
        let mut uses = Uses::new();
        let mut modules = Modules::new();
        for (from, to) in pairs {
            uses.entry((*from).to_owned())
                .or_default()
                .insert((*to).to_owned(), place.clone());
            for file in [from, to] {
                let path = file.split('/').filter(|part| !part.is_empty());
                modules.insert((*file).to_owned(), path.map(str::to_owned).collect());
            }
        }
        let circles = between_files(&modules, &uses).into_iter();
        circles.map(|circle| circle.into_iter().collect()).collect()
    };
    let none: Vec<Vec<String>> = Vec::new();
    // A parent and its children, also when a child uses its sibling.
    assert_eq!(find(&[("a", "a/b"), ("a/b", "a")]), none);
    assert_eq!(find(&[("a", "a/b"), ("a/b", "a/c"), ("a/c", "a")]), none);
    // Siblings, directly and through the children of one.
    assert_eq!(find(&[("a", "b"), ("b", "a")]), [["a", "b"]]);
    assert_eq!(
        find(&[("a/x", "b"), ("b", "c"), ("c", "a/x")]),
        [["a/x", "b", "c"]]
    );
    // A parent takes part where the circle leaves it.
    assert_eq!(
        find(&[("a", "a/x"), ("a/x", "b"), ("b", "a")]),
        [["a", "a/x", "b"]]
    );
    // Two folders use each other, but no two files do.
    assert_eq!(find(&[("a/x", "b/x"), ("b/y", "a/y")]), none);
}
