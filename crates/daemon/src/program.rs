//! Checks the program of a command before it is run. A missing program will fail, and a program that other
//! users can change would run their code with our privileges.

use std::env;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::{AccessFlags, access};
use thiserror::Error;

use crate::trust::{self, Untrusted};

/// The search path if `PATH` is not set.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program is rejected.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum ProgramError {
    /// No directory of `PATH` contains the program.
    #[error("there is no program `{0}` in PATH")]
    NotInPath(String),
    /// The program does not exist, or this process may not see it.
    #[error("{} is not there", .0.display())]
    Missing(PathBuf),
    /// The program is a directory, or is not executable.
    #[error("{} is no program: `chmod 755` makes a script one", .0.display())]
    NotExecutable(PathBuf),
    /// Another user can change the program.
    #[error(
        "{} could be changed by others: {why}; it and all directories above it must belong to root or to us, \
         and be writable by nobody else",
        path.display()
    )]
    Changeable { path: PathBuf, why: String },
    /// The program's path is not valid text, and the plan is text.
    #[error("{} is not in UTF-8", .0.display())]
    NotText(PathBuf),
}

impl ProgramError {
    /// Whether running the program would be dangerous, and not just impossible.
    pub(crate) const fn is_dangerous(&self) -> bool {
        matches!(self, Self::Changeable { .. })
    }
}

/// The search path: `PATH`, or the usual one if it is not set.
pub(crate) fn search_path() -> OsString {
    env::var_os("PATH").unwrap_or_else(|| USUAL_PATH.into())
}

/// Checks `program`, which is a path or a word to find in the search path, and returns its file: a path without
/// links, which only root and this user can change. Run that file, because another lookup could find another
/// one.
///
/// # Errors
///
/// The most serious problem.
pub(crate) fn look_at(program: &str) -> Result<String, ProgramError> {
    let path = find(program, &search_path())?;
    let real = match trust::file(&path) {
        Ok(real) => real,
        Err(Untrusted::Unreachable { .. }) => return Err(ProgramError::Missing(path)),
        Err(why) => return Err(ProgramError::Changeable { path, why: why.to_string() }),
    };
    if !real.is_file() || access(&real, AccessFlags::X_OK).is_err() {
        return Err(ProgramError::NotExecutable(path));
    }
    real.into_os_string().into_string().map_err(|real| ProgramError::NotText(real.into()))
}

/// Opens a file that [`look_at`] has found, for execution only, unless other users can change it by now.
///
/// # Errors
///
/// Why the file is rejected.
pub(super) fn open(real: &str) -> Result<OwnedFd, Untrusted> {
    let (_real, file) = trust::open(Path::new(real), OFlag::O_PATH)?;
    Ok(file.into())
}

fn find(program: &str, search_path: &OsString) -> Result<PathBuf, ProgramError> {
    if program.contains('/') {
        return Ok(program.into());
    }
    let mut places = env::split_paths(search_path).map(|place| place.join(program));
    let executable = |path: &PathBuf| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    places.find(executable).ok_or_else(|| ProgramError::NotInPath(program.to_owned()))
}

/// The path relative to the configuration's directory; a bare word is returned unchanged.
pub(crate) fn from_directory(program: &str, directory: &Path) -> String {
    if !program.contains('/') || program.starts_with('/') {
        return program.to_owned();
    }
    let path = directory.join(program);
    // Commands run in the root directory.
    std::path::absolute(&path).unwrap_or(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn programs_of_the_system_are_good() {
        let real = fs::canonicalize("/bin/sh").unwrap().to_str().unwrap().to_owned();
        assert_eq!(look_at("sh"), Ok(real.clone()));
        assert_eq!(look_at("/bin/sh"), Ok(real));
    }

    #[test]
    fn what_is_run_is_what_was_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
        let found = look_at(link.to_str().unwrap()).unwrap();
        assert_eq!(Path::new(&found), fs::canonicalize("/bin/sh").unwrap());
    }

    #[test]
    fn what_is_missing_is_named() {
        let said = look_at("no-such-program").unwrap_err().to_string();
        assert_eq!(said, "there is no program `no-such-program` in PATH");
        let error = look_at("/no/such/program").unwrap_err();
        assert_eq!(error.to_string(), "/no/such/program is not there");
        assert!(!error.is_dangerous());
    }

    #[test]
    fn what_others_could_change_is_dangerous() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("hook");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        set_mode(&script, 0o644);
        let found = || look_at(script.to_str().unwrap());
        assert_eq!(found(), Err(ProgramError::NotExecutable(script.clone())));
        set_mode(&script, 0o755);
        assert!(found().is_ok() && open(script.to_str().unwrap()).is_ok());
        set_mode(directory.path(), 0o777);
        let error = found().unwrap_err();
        assert!(error.is_dangerous(), "{error}");
        let why = format!("others: {} can be written to by everybody", directory.path().display());
        assert!(error.to_string().contains(&why), "{error}");
        assert!(open(script.to_str().unwrap()).is_err(), "nor is it executed later");
    }

    #[test]
    fn a_relative_path_counts_from_the_configuration() {
        let directory = Path::new("/etc/vpnd");
        assert_eq!(from_directory("./hook", directory), "/etc/vpnd/hook");
        assert_eq!(from_directory("/bin/hook", directory), "/bin/hook");
        assert_eq!(from_directory("nft", directory), "nft");
    }
}
