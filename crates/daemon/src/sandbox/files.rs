//! Landlock: a thread can open only the files beneath the named directories. Open descriptors, sockets and netlink
//! are not affected, nor is connecting to a UNIX socket by its path. A kernel without Landlock, or with an older
//! version, enforces what it can.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    RulesetStatus,
};
use serde::{Deserialize, Serialize};

/// The newest version that the rules use.
const NEWEST: ABI = ABI::V6;

/// Which part of the rules the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Files {
    /// All of them.
    Restricted,
    /// Those that this kernel knows.
    Partly,
    /// None: the kernel has no Landlock, or it is switched off.
    Unrestricted,
    /// Those of the thread that started this one.
    Inherited,
    /// None, as configured.
    Off,
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restricted => "restricted",
            Self::Partly => "partly restricted (older kernel)",
            Self::Unrestricted => "not restricted (no Landlock)",
            Self::Inherited => "as the main thread's",
            Self::Off => "off",
        })
    }
}

/// The directories that looking up names and users reads: the C library's settings, the files that they link to, and
/// its modules.
pub(super) fn lookups() -> Vec<PathBuf> {
    let usual = ["/etc", "/run", "/usr", "/lib", "/lib64", "/nix/store", "/gnu/store", "/proc"];
    let links = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"].map(PathBuf::from);
    usual.map(PathBuf::from).into_iter().chain(behind(&links)).collect()
}

/// The directories in which these files really are.
pub(super) fn behind(links: &[PathBuf]) -> Vec<PathBuf> {
    let files = links.iter().filter_map(|link| fs::canonicalize(link).ok());
    files.filter_map(|file| Some(file.parent()?.to_owned())).collect()
}

/// What a thread may do beneath some directories.
pub(super) enum Right {
    /// Remove files.
    Remove,
    /// Read, write, make and remove files.
    Change,
    /// Read files.
    Read,
}

impl Right {
    fn access(&self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self {
            Self::Remove => AccessFs::RemoveFile.into(),
            Self::Read => read,
            Self::Change => {
                let write = AccessFs::WriteFile | AccessFs::Truncate;
                read | write | AccessFs::MakeReg | AccessFs::RemoveFile
            }
        }
    }
}

/// Lets the calling thread use its rights beneath these directories, and open no other files. Paths that do not exist
/// are left out.
///
/// # Errors
///
/// If the kernel refuses its own kind of rules.
pub(super) fn confine(rights: &[(Right, &[PathBuf])]) -> Result<Files, RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .create()?
        .set_compatibility(CompatLevel::BestEffort);
    let mut given = rights.iter();
    let rules =
        given.try_fold(rules, |rules, (right, paths)| allow(rules, paths, right.access()))?;
    Ok(extent(&rules.restrict_self()?))
}

fn allow(
    rules: RulesetCreated,
    paths: &[PathBuf],
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let opened = paths.iter().filter_map(|path| PathFd::new(path).ok());
    opened.map(|path| PathBeneath::new(path, access)).try_fold(rules, RulesetCreatedAttr::add_rule)
}

fn extent(status: &RestrictionStatus) -> Files {
    match status.ruleset {
        RulesetStatus::FullyEnforced => Files::Restricted,
        RulesetStatus::PartiallyEnforced => Files::Partly,
        RulesetStatus::NotEnforced => Files::Unrestricted,
    }
}
