//! The control plane of one tunnel: every decision above a packet, and no I/O. The daemon tells a [`Plane`] what has
//! happened, and carries out the [`Effect`]s that it answers with, in their order. It has no socket, no clock and no
//! thread, so that a simulator can drive two of them through hours of a hostile network in milliseconds.

#![forbid(unsafe_code)]

mod carrier;
mod diagnosis;
mod effect;
mod load;
mod lookups;
mod outlook;
mod path;
mod plane;
mod policy;
mod reach;
mod state;

pub use diagnosis::{Counted, Failure, Trouble, Unresolved};
pub use effect::{Effect, Notice};
pub use outlook::{InnerSource, Loop, Outlook};
pub use plane::{Plane, RotateError, Settings};
pub use reach::{Port, Refused};
pub use state::{Kind, Reason, Reasons, State};
