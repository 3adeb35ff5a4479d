//! Cleans up when a run is interrupted: kills daemons and removes files here; namespaces end with the last
//! process in them.

use std::fs;
use std::path::PathBuf;
use std::process;
use std::thread;

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};
use vpnd_tests::kill_all;

/// What a shell calls a program that was interrupted.
const INTERRUPTED: i32 = 130;

/// From now on, a signal to end removes `place` first. Call it while there is one thread.
pub(crate) fn removes(place: PathBuf) -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    thread::spawn(move || {
        // It fails for no set of signals that exist.
        let _ = signals.wait();
        kill_all();
        // Whoever writes to it at this moment may keep a file there from going.
        let _ = fs::remove_dir_all(place);
        process::exit(INTERRUPTED);
    });
    Ok(())
}
