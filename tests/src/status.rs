//! The only place that knows the format of `vpnd status --json`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Host;

/// A daemon's status.
#[derive(Debug, Clone)]
pub struct Status(Value);

impl Status {
    /// Asks the daemon of this name on this host.
    pub(crate) fn ask(host: &Host, vpnd: &Path, name: &str) -> Result<Self> {
        let output = host.command(vpnd).args(["status", name, "--json"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.stdout.is_empty(), "vpnd status: {}: {}", output.status, said.trim());
        let json = serde_json::from_slice(&output.stdout).context("vpnd status: no JSON")?;
        Ok(Self(json))
    }

    /// Whether there is a session.
    pub fn has_session(&self) -> bool {
        self.field("/session").is_some_and(Value::is_object)
    }

    /// Whether packets get through.
    pub fn is_up(&self) -> bool {
        matches!(self.state(), "up" | "degraded")
    }

    /// Its state.
    pub fn state(&self) -> &str {
        self.field("/state").and_then(Value::as_str).unwrap_or_default()
    }

    /// Why it is degraded.
    pub fn reasons(&self) -> Vec<&str> {
        let all = self.field("/reasons").and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).collect()
    }

    /// How many datagrams were sent to the peer in the last minute, and how many of them were lost, if that was
    /// measured.
    pub fn lost_in_a_minute(&self) -> Option<(u64, u64)> {
        let field = |name: &str| self.field(&format!("/recent/minute/{name}"))?.as_u64();
        field("tx_sent").zip(field("tx_lost"))
    }

    /// The round trip of the last minute, in milliseconds, if it was measured.
    pub fn round_trip_ms(&self) -> Option<f64> {
        self.field("/recent/round_trip_ms")?.as_f64()
    }

    /// The daemon's process id.
    pub fn process(&self) -> u64 {
        self.number("/pid")
    }

    /// What the device is called now.
    pub fn device_name(&self) -> Option<&str> {
        self.field("/device/name")?.as_str()
    }

    /// The device's MTU.
    pub fn device_mtu(&self) -> Option<u64> {
        self.field("/device/mtu")?.as_u64()
    }

    /// Whether the daemon considers the peer alive.
    pub fn alive(&self) -> Option<bool> {
        self.field("/alive")?.as_bool()
    }

    /// Handshakes finished since the start, in either role.
    pub fn handshakes(&self) -> u64 {
        self.number("/peer/handshakes")
    }

    /// The device's MTU that a vpnd at the other end announces.
    pub fn peer_mtu(&self) -> Option<u64> {
        self.field("/peer/mtu")?.as_u64()
    }

    /// The number of queues through which packets leave the device.
    pub fn queues(&self) -> u64 {
        self.number("/device/queues")
    }

    /// The route that leads the tunnel into itself, if one does.
    pub fn leads_back(&self) -> Option<&str> {
        self.field("/leads_back/route")?.as_str()
    }

    /// Inner packets sent so far.
    pub fn packets_sent(&self) -> u64 {
        self.number("/traffic/tx_packets")
    }

    /// The address that it sends to now.
    pub fn endpoint(&self) -> Option<&str> {
        self.field("/peer/endpoint")?.as_str()
    }

    /// The routes that take packets past a kill switch, each with whether it is to a part of the network
    /// only.
    pub fn bypassed(&self) -> Vec<(&str, bool)> {
        let all = self.field("/bypassed").and_then(Value::as_array).into_iter().flatten();
        all.filter_map(|one| Some((one.get("by")?.as_str()?, one.get("part")?.as_bool()?)))
            .collect()
    }

    /// The device's missing addresses, rules and routes, each with the reason.
    pub fn missing(&self) -> Vec<(&str, &str)> {
        let all = self.field("/missing").and_then(Value::as_array).into_iter().flatten();
        all.filter_map(|one| Some((one.get("what")?.as_str()?, one.get("why")?.as_str()?)))
            .collect()
    }

    /// Its advice to the user.
    pub fn hint(&self) -> Option<&str> {
        self.field("/hint")?.as_str()
    }

    /// The port that it sends from.
    pub fn listen_port(&self) -> Option<u64> {
        self.field("/device/listen_port")?.as_u64()
    }

    /// The drops that are not zero, by name.
    pub fn drops(&self) -> BTreeMap<&str, u64> {
        let kinds = self.field("/drops").and_then(Value::as_object).into_iter().flatten();
        let counts = kinds.filter_map(|(kind, count)| Some((kind.as_str(), count.as_u64()?)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// Whether the path sets the congestion mark on everything, so that its marks are ignored.
    pub fn ecn_ignored(&self) -> bool {
        self.field("/ecn_ignored").and_then(Value::as_bool) == Some(true)
    }

    /// All drops together.
    pub fn dropped(&self) -> u64 {
        self.drops().values().sum()
    }

    fn number(&self, pointer: &str) -> u64 {
        self.field(pointer).and_then(Value::as_u64).unwrap_or_default()
    }

    fn field(&self, pointer: &str) -> Option<&Value> {
        self.0.pointer(pointer)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
