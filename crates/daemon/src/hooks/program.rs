//! Looks at the program of a command before it is run: what is not there will fail, and what others may
//! change is theirs to run with our privileges.

use std::env;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Gid, Uid, access};
use thiserror::Error;

/// Where programs are looked for when nobody says so.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is wrong with a program.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum ProgramError {
    /// No directory of `PATH` has it.
    #[error("there is no program `{0}` in PATH")]
    NotInPath(String),
    /// It is not there, or out of our sight.
    #[error("{} is not there", .0.display())]
    Missing(PathBuf),
    /// It is a directory, or nobody may execute it.
    #[error("{} is no program: `chmod 755` makes a script one", .0.display())]
    NotExecutable(PathBuf),
    /// Somebody else decides what it does.
    #[error(
        "{} could be changed by others: it and all directories above it must belong to root or to us, \
         and be writable by nobody else",
        .0.display()
    )]
    Changeable(PathBuf),
    /// The plan is text.
    #[error("{} is not in UTF-8", .0.display())]
    NotText(PathBuf),
}

impl ProgramError {
    /// Whether it must not be run, rather than that it could not be.
    pub(crate) const fn is_dangerous(&self) -> bool {
        matches!(self, Self::Changeable(_))
    }
}

/// Where programs are looked for: as vpnd was started, or where they usually are.
pub(crate) fn search_path() -> OsString {
    env::var_os("PATH").unwrap_or_else(|| USUAL_PATH.into())
}

/// Looks at `program`, a path or a word to be found in the search path, and says which file it is: a path without
/// links, that nobody but root and us can make lead elsewhere. That file is the one to run. Who looked up
/// the name again could find another.
///
/// # Errors
///
/// The worst of what is wrong with it.
pub(crate) fn look_at(program: &str) -> Result<String, ProgramError> {
    let path = find(program, &search_path())?;
    let missing = |_error| ProgramError::Missing(path.clone());
    let real = path.canonicalize().map_err(missing)?;
    let found = fs::metadata(&real).map_err(missing)?;
    if is_changeable(&found) || is_replaceable(&real).map_err(missing)? {
        return Err(ProgramError::Changeable(path));
    }
    if !found.is_file() || access(&real, AccessFlags::X_OK).is_err() {
        return Err(ProgramError::NotExecutable(path));
    }
    real.into_os_string().into_string().map_err(|real| ProgramError::NotText(real.into()))
}

fn find(program: &str, search_path: &OsString) -> Result<PathBuf, ProgramError> {
    if program.contains('/') {
        return Ok(program.into());
    }
    let mut places = env::split_paths(search_path).map(|place| place.join(program));
    let executable = |path: &PathBuf| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    places.find(executable).ok_or_else(|| ProgramError::NotInPath(program.to_owned()))
}

/// Whether anybody but root and us may write to it.
fn is_changeable(found: &Metadata) -> bool {
    is_foreign(found) || found.mode() & 0o022 != 0
}

/// Whether anybody but root and us may put something else in its place, or in that of a directory above it.
fn is_replaceable(real: &Path) -> io::Result<bool> {
    for directory in real.ancestors().skip(1) {
        if is_replaceable_in(directory, &fs::metadata(directory)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// In a sticky directory, as /tmp is, nobody replaces what is another's. Trusted are root's group, ours, and the
/// one that the system lets write to /usr/local: Debian's `staff`.
fn is_replaceable_in(directory: &Path, found: &Metadata) -> bool {
    const STICKY: u32 = 0o1000;
    let ours = found.gid() == 0 || found.gid() == Gid::effective().as_raw();
    let writers = if ours || directory.starts_with("/usr/local") { 0o002 } else { 0o022 };
    is_foreign(found) || (found.mode() & writers != 0 && found.mode() & STICKY == 0)
}

fn is_foreign(found: &Metadata) -> bool {
    found.uid() != 0 && found.uid() != Uid::effective().as_raw()
}

/// A path as the configuration means it, from its directory on; a bare word stays what it is.
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
    fn every_directory_above_counts() {
        let directory = tempfile::tempdir().unwrap();
        let within = directory.path().join("a/b");
        fs::create_dir_all(&within).unwrap();
        let script = within.join("hook");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        set_mode(&script, 0o755);
        let found = || look_at(script.to_str().unwrap());
        assert!(found().is_ok());
        set_mode(directory.path(), 0o777);
        assert_eq!(found(), Err(ProgramError::Changeable(script.clone())));
    }

    #[test]
    fn a_group_of_others_is_others() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("hook");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        set_mode(&script, 0o755);
        set_mode(directory.path(), 0o775);
        assert!(look_at(script.to_str().unwrap()).is_ok(), "ours is not");
        // Only root gives a directory to a group it is not in.
        if Uid::effective().is_root() {
            std::os::unix::fs::chown(directory.path(), None, Some(65534)).unwrap();
            let found = look_at(script.to_str().unwrap());
            assert_eq!(found, Err(ProgramError::Changeable(script)));
            let found = fs::metadata(directory.path()).unwrap();
            assert!(!is_replaceable_in(Path::new("/usr/local/bin"), &found), "Debian's staff");
        }
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
        for (mode, of_directory, expected) in [
            (0o755, 0o755, None),
            (0o700, 0o1777, None),
            (0o644, 0o755, Some(ProgramError::NotExecutable(script.clone()))),
            (0o775, 0o755, Some(ProgramError::Changeable(script.clone()))),
            (0o757, 0o755, Some(ProgramError::Changeable(script.clone()))),
            (0o755, 0o775, None),
            (0o755, 0o777, Some(ProgramError::Changeable(script.clone()))),
        ] {
            set_mode(&script, mode);
            set_mode(directory.path(), of_directory);
            let found = look_at(script.to_str().unwrap()).err();
            assert_eq!(found, expected, "{mode:o} in {of_directory:o}");
        }
    }

    #[test]
    fn a_relative_path_counts_from_the_configuration() {
        let directory = Path::new("/etc/vpnd");
        assert_eq!(from_directory("./hook", directory), "/etc/vpnd/hook");
        assert_eq!(from_directory("/bin/hook", directory), "/bin/hook");
        assert_eq!(from_directory("nft", directory), "nft");
    }
}
