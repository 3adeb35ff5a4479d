//! The configuration: one TOML file describes one tunnel. Checked values have other types than the values of
//! the file, so the rest of the daemon does not need to check them again.

mod device;
mod endpoint;
mod hooks;
mod metrics;
mod model;
mod problem;
mod profile;
mod read;
mod reload;
mod rules;
mod section;
mod surroundings;
mod tables;
mod value;
mod word;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use crate::account::Account;
pub(crate) use device::{Carrier, Holder, Mac, Queues};
pub(crate) use endpoint::Endpoint;
pub(crate) use metrics::MetricsListen;
pub(crate) use model::{
    Config, Confinement, Guard, Icmp, Interface, LogFormat, MAIN_TABLE, MssClamp, Peer, Route,
    Service, Socket, UAPI_DIRECTORY, default_control,
};
pub(crate) use problem::{Finding, Problem, Report};
pub(crate) use profile::{AlsoAccept, Protocol};
pub(crate) use read::{Handed, Loaded, MAX_LEN, load, load_for_running, load_handed, load_text};
pub(crate) use reload::{Difference, Running, Takes};
pub(crate) use section::nearest;
