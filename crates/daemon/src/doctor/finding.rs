//! What an examination finds: each fault with its cause and what mends it.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::exit::Exit;
use crate::terminal::Printable;

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Check {
    /// The state of a running tunnel.
    Tunnel,
    /// The TUN or TAP device.
    Device,
    /// The UDP port.
    Port,
    /// nftables.
    Firewall,
    /// Whether this host forwards packets.
    Forwarding,
    /// The kernel's filter of source addresses.
    ReversePath,
    /// The route to the peer, and the routes of the tunnel.
    Route,
    /// Names in `endpoint`.
    Name,
    /// The clock.
    Clock,
    /// Whether the peer answers.
    Peer,
    /// The size of packets.
    Mtu,
}

impl Check {
    const fn word(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Device => "device",
            Self::Port => "port",
            Self::Firewall => "firewall",
            Self::Forwarding => "forwarding",
            Self::ReversePath => "reverse path",
            Self::Route => "route",
            Self::Name => "name",
            Self::Clock => "clock",
            Self::Peer => "peer",
            Self::Mtu => "mtu",
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) check: Check,
    /// What is wrong, in one sentence.
    pub(crate) cause: String,
    /// The command that mends it on this host, as a shell takes it.
    pub(crate) command: Option<String>,
    /// What else mends it, or what to know about the command.
    pub(crate) advice: Option<String>,
}

impl Finding {
    /// A fault of which the cause is known.
    pub(crate) fn new(check: Check, cause: impl Into<String>) -> Self {
        Self { check, cause: cause.into(), command: None, advice: None }
    }

    /// Sets the command that mends it.
    pub(crate) fn command(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }

    /// Sets the advice.
    pub(crate) fn advice(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { check, cause, command, advice } = self;
        writeln!(f, "{:<13} {}", check.word(), Printable(cause))?;
        if let Some(command) = command {
            writeln!(f, "              mend: {}", Printable(command))?;
        }
        match (command, advice) {
            (None, Some(advice)) => writeln!(f, "              mend: {}", Printable(advice)),
            (Some(_), Some(advice)) => writeln!(f, "              or: {}", Printable(advice)),
            (_, None) => Ok(()),
        }
    }
}

/// The result of an examination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Examination {
    /// The faults, the cause of others first.
    pub(crate) findings: Vec<Finding>,
    /// What could not be examined, and what may be intended.
    pub(crate) notes: Vec<String>,
}

impl Examination {
    /// Whether nothing explains yet why the peer would not answer.
    pub(crate) fn has(&self, checks: &[Check]) -> bool {
        self.findings.iter().any(|finding| checks.contains(&finding.check))
    }

    /// The exit code of `vpnd`.
    pub(crate) const fn exit(&self) -> Exit {
        if self.findings.is_empty() { Exit::Success } else { Exit::Failure }
    }
}

/// The page that is printed for a tunnel.
pub(crate) struct Page<'a>(pub(crate) &'a str, pub(crate) &'a Examination);

impl Display for Page<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(name, Examination { findings, notes }) = self;
        match findings.len() {
            0 => writeln!(f, "{}: nothing found", Printable(name))?,
            1 => writeln!(f, "{}: 1 finding", Printable(name))?,
            count => writeln!(f, "{}: {count} findings", Printable(name))?,
        }
        findings.iter().try_for_each(|finding| write!(f, "{finding}"))?;
        notes.iter().try_for_each(|note| writeln!(f, "note          {}", Printable(note)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page() {
        let port = Finding::new(Check::Port, "UDP port 7 is taken by nc(12)").command("kill 12");
        let clock = Finding::new(Check::Clock, "the clock is wrong").advice("set it");
        let both = Finding::new(Check::Route, "no\nroute").command("ip a").advice("something else");
        let found = Examination { findings: vec![port, clock, both], notes: vec!["a note".into()] };
        let expected = "site-a: 3 findings\n\
                        port          UDP port 7 is taken by nc(12)\n              mend: kill 12\n\
                        clock         the clock is wrong\n              mend: set it\n\
                        route         no\\nroute\n              mend: ip a\n              or: something else\n\
                        note          a note\n";
        assert_eq!(Page("site-a", &found).to_string(), expected);
        assert_eq!(found.exit(), Exit::Failure);
        let nothing = Examination::default();
        assert_eq!(Page("site-a", &nothing).to_string(), "site-a: nothing found\n");
        assert_eq!(nothing.exit(), Exit::Success);
    }
}
