//! The files to import: those that are given, and for systemd-networkd those that belong to them.

use std::fs;
use std::path::{Path, PathBuf};

use vpnd_import::Source;
use zeroize::Zeroizing;

use super::{ImportFailure, read_text};
use crate::config;

/// Reads the files. Of systemd-networkd's `.netdev` and `.network` the one that is not given is looked for beside the
/// other, and the drop-ins of both are read.
///
/// # Errors
///
/// If a file cannot be read, or there is too much to read.
pub(super) fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut paths = vec![];
    for path in with_partner(files)? {
        let more = drop_ins(&path);
        if more.len() > MAX_DROP_INS {
            return Err(ImportFailure::DropIns { path }.into());
        }
        paths.push(path);
        paths.extend(more);
    }
    let (mut sources, mut length) = (vec![], 0);
    for path in paths {
        let source = source(&path)?;
        length += source.text.len();
        if length > config::MAX_LEN {
            return Err(ImportFailure::Long { path }.into());
        }
        sources.push(source);
    }
    Ok(sources)
}

/// The most drop-ins of one file.
const MAX_DROP_INS: usize = 100;

fn source(path: &Path) -> anyhow::Result<Source> {
    Ok(Source { name: path.display().to_string(), text: read_text(path)? })
}

fn with_partner(files: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let [file] = files else { return Ok(files.to_vec()) };
    let has = |extension: &str| file.extension().is_some_and(|it| it == extension);
    let partner = if has("netdev") {
        let text = read_text(file)?;
        let name = settings(&text, "NetDev", "Name").next().unwrap_or_default();
        beside(file, "network", |text| matches(text, name))
    } else if has("network") {
        let network = read_text(file)?;
        beside(file, "netdev", |text| {
            settings(text, "NetDev", "Name").any(|name| matches(&network, name))
        })
    } else {
        None
    };
    Ok([file.clone()].into_iter().chain(partner).collect())
}

/// The first file of the directory, in the order of systemd, that has the extension and fits.
fn beside(file: &Path, extension: &str, fits: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let directory = file.parent().filter(|it| !it.as_os_str().is_empty());
    let entries = fs::read_dir(directory.unwrap_or_else(|| Path::new("."))).ok()?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|it| it == extension)).collect();
    paths.sort();
    paths.into_iter().find(|path| {
        let text: Zeroizing<String> = read_text(path).unwrap_or_default();
        fits(&text)
    })
}

/// Whether `[Match] Name=` of a `.network` is that of the device.
fn matches(network: &str, device: &str) -> bool {
    let patterns = settings(network, "Match", "Name").flat_map(str::split_whitespace);
    !device.is_empty()
        && patterns.into_iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => device.starts_with(beginning),
            None => pattern == device,
        })
}

/// The values of a key in a section.
fn settings<'t>(text: &'t str, section: &str, key: &str) -> impl Iterator<Item = &'t str> {
    let mut inside = false;
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            inside = name == section;
            return None;
        }
        let (name, value) = line.split_once('=')?;
        (inside && name.trim() == key).then(|| value.trim())
    })
}

/// `FILE.d/*.conf`, in order.
fn drop_ins(file: &Path) -> Vec<PathBuf> {
    if !file.extension().is_some_and(|it| it == "netdev" || it == "network") {
        return vec![];
    }
    let mut directory = file.as_os_str().to_owned();
    directory.push(".d");
    let Ok(entries) = fs::read_dir(directory) else { return vec![] };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|it| it == "conf")).collect();
    paths.sort();
    paths
}
