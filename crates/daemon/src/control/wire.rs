//! The control protocol: one line of JSON in each direction. The files of a `reload` follow its line unencoded.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::Difference;
use crate::status::SCHEMA;

/// The maximum length of a request with its newline, in bytes, without the files that follow it.
pub(super) const MAX_REQUEST: usize = 4096;

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// Always [`SCHEMA`].
    pub(crate) schema: u32,
    /// `status`, `ping`, `capture`, `reload`, `compare`, `rotate` or `take-over`.
    pub(crate) command: String,
    /// For `rotate`: whether the previous keys are removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) finish: bool,
    /// For `reload` and `compare`: the files that follow the line, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) files: Vec<Announced>,
    /// For `capture`: what is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) capture: Option<AskCapture>,
}

/// What a client wants to capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AskCapture {
    /// Packets of the device.
    pub(crate) inner: bool,
    /// Datagrams of the socket.
    pub(crate) outer: bool,
    /// The keys with which the datagrams can be decrypted.
    pub(crate) keys: bool,
    /// At most this many bytes of a packet.
    pub(crate) snaplen: usize,
}

/// The answer to a `capture` that has begun; records follow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// Always [`SCHEMA`].
    pub(crate) schema: u32,
    /// The device's name.
    pub(crate) device: String,
    /// Whether the device carries Ethernet frames.
    pub(crate) ethernet: bool,
    /// The peer's address, and the one of ours that the kernel sends from.
    #[serde(default)]
    pub(crate) peer: Option<IpAddr>,
    #[serde(default)]
    pub(crate) source: Option<IpAddr>,
    /// What the user should know.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
}

/// A file that follows the request's line.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Announced {
    /// `config`, or the configuration key that contains the file's path.
    pub(crate) name: String,
    /// The file's length.
    pub(crate) bytes: usize,
}

/// The name of the configuration among the announced files.
pub(crate) const CONFIG: &str = "config";

impl Ask {
    /// A command without options or files.
    pub(crate) fn new(command: &str) -> Self {
        let command = command.to_owned();
        Self { schema: SCHEMA, command, finish: false, files: Vec::new(), capture: None }
    }
}

/// The answer to a request that was carried out.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    schema: u32,
    ok: bool,
}

impl Done {
    pub(super) const OK: Self = Self { schema: SCHEMA, ok: true };
}

/// The answer to a `compare`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Differences {
    schema: u32,
    /// Every key that differs.
    pub(crate) differences: Vec<Difference>,
}

impl Differences {
    pub(super) const fn of(differences: Vec<Difference>) -> Self {
        Self { schema: SCHEMA, differences }
    }
}

/// The answer to a `ping`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ping {
    /// Always [`SCHEMA`].
    pub(crate) schema: u32,
    /// How long the peer's answer took; `None` if none came in time.
    pub(crate) round_trip_ms: Option<f64>,
    /// The peer's address.
    pub(crate) endpoint: Option<String>,
    /// Why the peer was not asked.
    pub(crate) not_asked: Option<String>,
}

impl Ping {
    /// No answer has come in time.
    pub(crate) const UNANSWERED: Self =
        Self { schema: SCHEMA, round_trip_ms: None, endpoint: None, not_asked: None };
}

/// The answer to a request that was refused.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// Always [`SCHEMA`].
    pub(crate) schema: u32,
    /// The reason.
    pub(crate) error: String,
}

/// The reason for a refusal when the control plane has ended.
pub(crate) const STOPPING: &str = "the tunnel is about to stop";

/// Encodes a message as one line of JSON. This never fails, because every message has only text keys and no
/// number that JSON lacks.
pub(super) fn line(message: &impl Serialize) -> String {
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}
