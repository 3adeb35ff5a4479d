//! Files that depend on each other in a circle can be read and changed only together. This test limits such
//! circles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The maximum number of files in a circle.
const LARGEST: usize = 3;

/// The module path of each file, such as `config::rules`, and the modules that the file uses.
type Graph = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_circle_of_files_is_larger_than_three() {
    let graph = graph(Path::new("src"));
    let circles = circles(&graph);
    assert!(circles.iter().all(|circle| circle.len() <= LARGEST), "{circles:?}");
}

fn graph(root: &Path) -> Graph {
    let files: BTreeMap<_, _> =
        files(root).into_iter().map(|file| (module(root, &file), file)).collect();
    let names: BTreeSet<_> = files.keys().cloned().collect();
    files.iter().map(|(name, file)| (name.clone(), named(&code(file), name, &names))).collect()
}

/// The source files without tests.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory of sources");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.fold(Vec::new(), |mut found, path| {
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|it| it == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
        found
    })
}

fn module(root: &Path, file: &Path) -> String {
    let inside = file.strip_prefix(root).expect("a file below the root").with_extension("");
    let parts: Vec<_> = inside.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("::")
}

/// The text without comments and unit tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("a source file");
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules that the code of `of` uses, by a path from the crate's root or from its parent.
fn named(code: &str, of: &str, names: &BTreeSet<String>) -> BTreeSet<String> {
    let parent = of.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut found = below("crate::", "", code, names);
    found.extend(below("super::", parent, code, names));
    found.extend(below("use ", of, code, names));
    found.remove(of);
    found
}

/// The modules that follow `word` in the code, which stands for the module `base`.
fn below(word: &str, base: &str, code: &str, names: &BTreeSet<String>) -> BTreeSet<String> {
    let paths = code.match_indices(word).flat_map(|(at, found)| {
        let path = &code[at + found.len()..];
        // `use crate::{a, b::c};`
        match path.strip_prefix('{').and_then(|group| group.split_once('}')) {
            Some((group, _)) => group.split(',').map(str::trim).collect(),
            None => vec![path],
        }
    });
    let full = |path: &str| match base {
        "" => path.to_owned(),
        base => format!("{base}::{path}"),
    };
    paths.filter_map(|path| longest(&full(path), names)).collect()
}

/// The module at the beginning of a path.
fn longest(path: &str, names: &BTreeSet<String>) -> Option<String> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let path = path.split(|c| !is_name(c)).next().unwrap_or_default();
    let begins = |name: &&String| {
        path.strip_prefix(name.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    names.iter().filter(begins).max_by_key(|name| name.len()).cloned()
}

/// Sets of at least two modules in which every module depends on every other.
fn circles(graph: &Graph) -> BTreeSet<BTreeSet<&String>> {
    let reached: BTreeMap<_, _> = graph.keys().map(|from| (from, reachable(graph, from))).collect();
    let circle = |one: &String| -> BTreeSet<&String> {
        let both = |other: &&String| reached[other].contains(one) && reached[one].contains(*other);
        graph.keys().filter(both).collect()
    };
    graph.keys().map(circle).filter(|circle| circle.len() > 1).collect()
}

fn reachable(graph: &Graph, from: &String) -> BTreeSet<String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(name) = open.pop() {
        for next in &graph[name] {
            if found.insert(next.clone()) {
                open.extend(graph.get_key_value(next).map(|(name, _)| name));
            }
        }
    }
    found
}
