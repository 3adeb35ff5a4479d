//! Runs one tunnel, from start to stop.

use thiserror::Error;

use crate::cli::RunOptions;
use crate::config::Config;
use crate::exit::Exit;
use crate::keys::Keys;

/// Why a tunnel ended, other than by being asked to.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// Nothing moves packets.
    #[error("{0} cannot run: this build moves no packets")]
    NoDataPath(String),
}

impl RunError {
    /// The code that `vpnd` ends with.
    pub(crate) fn exit(&self) -> Exit {
        Exit::Failure
    }
}

/// Runs until it is told to stop.
///
/// # Errors
///
/// If it cannot start, or cannot go on.
pub(crate) fn run(config: Config, _keys: Keys, _options: RunOptions) -> Result<(), RunError> {
    Err(RunError::NoDataPath(config.name))
}
