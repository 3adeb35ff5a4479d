//! Landlock: a thread can open only the files beneath the named directories. Open descriptors, sockets and netlink
//! are not affected, nor is connecting to a UNIX socket by its path. A kernel without Landlock, or with an older
//! version, enforces what it can.

use std::fmt;
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

/// What looking up names and users reads: the C library's settings, the files that they link to, and its modules.
pub(super) fn lookups() -> Vec<PathBuf> {
    ["/etc", "/run", "/usr", "/lib", "/lib64", "/nix/store", "/gnu/store"].map(PathBuf::from).into()
}

/// Lets the calling thread change files beneath `writable`, read files beneath `readable`, and open no others. Paths
/// that do not exist are left out.
///
/// # Errors
///
/// If the kernel refuses its own kind of rules.
pub(super) fn confine(writable: &[PathBuf], readable: &[PathBuf]) -> Result<Files, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .create()?
        .set_compatibility(CompatLevel::BestEffort);
    let rules = allow(rules, writable, all & !AccessFs::Execute)?;
    let rules = allow(rules, readable, AccessFs::ReadFile | AccessFs::ReadDir)?;
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
