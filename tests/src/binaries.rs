//! Finds the programs under test.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

/// Directories of daemons that a user's `PATH` may lack.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Installs missing tools and peers, once, with `tests/setup`.
pub(crate) fn prepare() -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let done = DONE.get_or_init(|| set_up().map_err(|error| format!("{error:#}")));
    done.clone().map_err(|error| anyhow!("the tests' tools are not there: {error}"))
}

/// The `vpnd` to test: `VPND_BIN`, or the one of this workspace, built first so that it is never
/// older than the tests.
pub(crate) fn vpnd() -> Result<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| find_vpnd().map_err(|error| format!("{error:#}")));
    found.as_deref().map_err(|error| anyhow!("no vpnd to test: {error}"))
}

/// A program of the system, as a shell would find it.
///
/// # Errors
/// When it is not installed.
pub fn installed(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = SYSTEM.iter().map(PathBuf::from);
    let mut places = env::split_paths(&path).chain(system).map(|place| place.join(name));
    places.find(|path| path.is_file()).with_context(|| format!("{name} is not installed"))
}

/// A program from the cache that `tests/setup` fills.
///
/// # Errors
/// When it is not there.
pub fn cached(name: &str) -> Result<PathBuf> {
    let path = cache()?.join("bin").join(name);
    ensure!(path.exists(), "{} is not there: run tests/setup", path.display());
    Ok(path)
}

/// The newest version of a program, which `tests/setup bench` fetches, or else the system's.
///
/// # Errors
/// When neither is there.
pub fn newest(name: &str) -> Result<PathBuf> {
    cached(name).or_else(|_| installed(name))
}

fn set_up() -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup");
    let output = Command::new(&script).output().context("cannot run tests/setup")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tests/setup: {}: {}", output.status, said.trim());
    Ok(())
}

fn cache() -> Result<PathBuf> {
    if let Some(cache) = env::var_os("VPND_TEST_CACHE") {
        return Ok(cache.into());
    }
    let home = env::var_os("HOME").context("neither VPND_TEST_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/vpnd-tests"))
}

fn find_vpnd() -> Result<PathBuf> {
    if let Some(path) = env::var_os("VPND_BIN") {
        return Path::new(&path).canonicalize().context("VPND_BIN names no file");
    }
    let here = env::current_exe()?;
    let profile = profile_of(&here).context("the tests run outside a target directory")?;
    if let Some(cargo) = env::var_os("CARGO") {
        let target = profile.parent().context("a profile directory without a parent")?;
        build(Command::new(cargo), profile, target)?;
    }
    let path = profile.join("vpnd");
    ensure!(path.exists(), "{} is not there: cargo build -p vpnd-daemon", path.display());
    Ok(path)
}

/// From `target/PROFILE/deps/scenarios-HASH` or `target/PROFILE/bench`.
fn profile_of(program: &Path) -> Option<&Path> {
    let directory = program.parent()?;
    if directory.ends_with("deps") { directory.parent() } else { Some(directory) }
}

fn build(mut cargo: Command, profile: &Path, target: &Path) -> Result<()> {
    let name = match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let status = cargo
        .args(["build", "--quiet", "--package", "vpnd-daemon", "--profile", name, "--target-dir"])
        .arg(target)
        .status()?;
    ensure!(status.success(), "cargo build --package vpnd-daemon: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_programs_share_a_profile() {
        for program in ["/t/fast/deps/scenarios-0123", "/t/fast/bench"] {
            assert_eq!(profile_of(Path::new(program)), Some(Path::new("/t/fast")));
        }
    }

    #[test]
    fn a_program_of_the_system_is_found() {
        assert!(installed("sh").is_ok());
        assert!(installed("no-such-program").is_err());
    }
}
