//! The control plane of one tunnel: all decisions that do not concern a single packet, without I/O. The daemon
//! reports events to a [`Plane`], and carries out the returned [`Effect`]s in order. A [`Plane`] has no socket,
//! no clock and no thread, so that a simulator can run two of them through hours of a hostile network in
//! milliseconds.

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
