//! The command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::probe::Probe;

/// Compares vpnd with the tunnels that are installed beside it, in two network namespaces.
///
/// Run it as root on a machine that does nothing else. Its table goes to standard output, its
/// progress to standard error.
#[derive(Debug, Clone, Parser)]
#[command(name = "bench")]
pub(crate) struct Options {
    /// How often every contender is measured; the table shows medians
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each probe of TCP and of ping lasts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// One round, two seconds: a first look
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,
    /// Only these contenders
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Only these probes: tcp (tcp-1, tcp-4, tcp-reverse, tcp-both), udp (udp-64, udp-1300, udp-mixed),
    /// ping (ping-idle, ping-loaded, ping-queue), memory
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    probes: Vec<String>,
    /// The binary to call vpnd, instead of this workspace's
    #[arg(long, value_name = "PATH")]
    pub(crate) vpnd: Option<PathBuf>,
    /// Where to write every value of every round
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where to draw the medians
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Also vpnd, and every build of --also, with `protocol = "vpnd"`: as it is by default, with AES-256-GCM, and in pieces
    #[arg(long)]
    pub(crate) profiles: bool,
    /// Also vpnd with a device of so many queues
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub(crate) queues: Vec<u16>,
    /// Also `mode = "tun"` and `"tap"` between two vpnd, with MTU 1420, and with 1500, which goes in pieces
    #[arg(long)]
    pub(crate) devices: bool,
    /// One more vpnd under a name of its own, to compare two builds; may be repeated
    #[arg(long, value_name = "NAME=PATH", value_parser = named)]
    pub(crate) also: Vec<Named>,
}

/// A binary with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl Options {
    pub(crate) fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }

    pub(crate) fn seconds(&self) -> u32 {
        if self.quick { 2 } else { self.seconds }
    }

    /// Those asked for, in the order they run.
    pub(crate) fn probes(&self) -> Result<Vec<Probe>> {
        for name in &self.probes {
            if !Probe::ALL.iter().any(|probe| probe.answers_to(name)) {
                let known: Vec<_> = Probe::ALL.iter().map(|probe| probe.name()).collect();
                bail!("no probe is called {name:?}; there are {}", known.join(", "));
            }
        }
        let asked = |probe: &Probe| {
            self.probes.is_empty() || self.probes.iter().any(|name| probe.answers_to(name))
        };
        Ok(Probe::ALL.into_iter().filter(asked).collect())
    }
}

fn named(text: &str) -> Result<Named> {
    let (name, path) = text.split_once('=').context("say NAME=PATH")?;
    let path = PathBuf::from(path).canonicalize().with_context(|| format!("no file {path}"))?;
    Ok(Named { name: name.to_owned(), path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_probes_has_all_of_its_kind() {
        let parse = |words: &[&str]| Options::try_parse_from([&["bench"], words].concat());
        let probes = |words: &[&str]| parse(words).unwrap().probes();
        assert_eq!(
            probes(&["--probes", "udp,tcp-1"]).unwrap(),
            [Probe::TcpOne, Probe::Udp64, Probe::Udp1300, Probe::UdpMixed]
        );
        assert_eq!(probes(&[]).unwrap(), Probe::ALL);
        assert!(probes(&["--probes", "tcpp"]).is_err());
        assert!(parse(&["--quick", "--rounds", "2"]).is_err());
    }

    #[test]
    fn another_build_needs_a_name_and_a_file() {
        let sh = PathBuf::from("/bin/sh").canonicalize().unwrap();
        assert_eq!(named("x=/bin/sh").unwrap(), Named { name: "x".to_owned(), path: sh });
        assert!(named("/bin/sh").is_err());
        assert!(named("x=/no/such/file").is_err());
    }
}
