//! Asks for what the options of `pair` would say. Each answer is checked at once, and asked for again until it fits.

use std::io::{self, BufRead, Read, Write};

use ipnet::IpNet;
use thiserror::Error;

use super::networks::{InnerNet, free_inner, inner_network, networks};
use super::options::{Request, protocol};
use super::plan::{self, Device, Link, Name, Plan, PlanError, Routed, Site};
use super::ssh::Login;
use crate::config::Endpoint;
use crate::terminal::Printable;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum Stopped {
    /// The input ended: Ctrl-C, Ctrl-D, a closed terminal.
    #[error("stopped: nothing was written")]
    Ended,
    /// The user does not want it.
    #[error("as you wish: nothing was written")]
    Declined,
    /// The terminal is gone.
    #[error("cannot ask: {0}")]
    Io(#[from] io::Error),
    /// The answers do not fit together.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// A conversation: questions are written to one side, and answers read from the other.
pub(super) struct Dialogue<R, W> {
    input: R,
    output: W,
}

impl<R: BufRead, W: Write> Dialogue<R, W> {
    /// Nothing is said yet.
    pub(super) fn new(input: R, output: W) -> Self {
        Self { input, output }
    }

    /// Asks for everything; for logins only if `by_ssh`.
    ///
    /// # Errors
    ///
    /// If the input ends.
    pub(super) fn request(&mut self, by_ssh: bool) -> Result<Request, Stopped> {
        self.say(WELCOME)?;
        let names = self.names()?;
        let is_routed = self.ask("Routed networks, or one LAN by bridges?", "routed", kind)?;
        let sites = self.sites(&names)?;
        let link = if is_routed { self.routed(&sites)? } else { self.bridged(&names)? };
        let logins = if by_ssh { self.logins(&names)? } else { [None, None] };
        Ok(Request { plan: Plan::new(sites, link)?, logins })
    }

    /// Asks for a yes.
    ///
    /// # Errors
    ///
    /// If the answer is no, or the input ends.
    pub(super) fn confirm(&mut self, question: &str) -> Result<(), Stopped> {
        let yes = self.ask(question, "yes", |answer| match answer.to_lowercase().as_str() {
            "y" | "yes" => Ok(true),
            "n" | "no" => Ok(false),
            _ => Err("yes or no".to_owned()),
        })?;
        if yes { Ok(()) } else { Err(Stopped::Declined) }
    }

    /// Reads lines until they are the whole answer, or one is empty.
    ///
    /// # Errors
    ///
    /// If the input ends before the first line.
    pub(super) fn lines(
        &mut self,
        question: &str,
        is_whole: impl Fn(&str) -> bool,
        into: &mut String,
    ) -> Result<(), Stopped> {
        self.say(question)?;
        while into.len() < LONGEST {
            let before = into.len();
            let read = self.line(into)?;
            if read == 0 {
                return Err(Stopped::Ended);
            }
            if into[before..].trim().is_empty() || is_whole(into) {
                break;
            }
        }
        Ok(())
    }

    fn names(&mut self) -> Result<[Name; 2], Stopped> {
        let a: Name = self.ask("Name of the first site", "site-a", str::parse)?;
        let b = self.ask("Name of the second site", "site-b", |text| {
            let b = text.parse()?;
            plan::names_differ(&a, &b).map_err(text_of)?;
            Ok(b)
        })?;
        Ok([a, b])
    }

    fn sites(&mut self, names: &[Name; 2]) -> Result<[Site; 2], Stopped> {
        let question = |of: &Name, from: &Name| {
            format!("HOST[:PORT] at which {from} reaches {of}; empty if at none, as behind a NAT")
        };
        let [a, b] = names;
        let first = self.ask(&question(a, b), "", endpoint)?;
        let first = Site { name: a.clone(), endpoint: first };
        let second = self.ask(&question(b, a), "", |text| {
            let second = Site { name: b.clone(), endpoint: endpoint(text)? };
            let both = [first.clone(), second.clone()];
            plan::one_is_reached(&both).map_err(|_| format!("{a} has none, so {b} needs one"))?;
            Ok(second)
        })?;
        Ok([first, second])
    }

    fn routed(&mut self, sites: &[Site; 2]) -> Result<Link, Stopped> {
        let [a, b] = sites;
        let first = self.behind(a, &[])?;
        let second = self.behind(b, &first)?;
        let all = [first.as_slice(), second.as_slice()].concat();
        let inner = self.inner(&all)?;
        let protocol =
            self.ask("Protocol: vpnd, or wireguard without its extensions", "vpnd", protocol)?;
        Ok(Link::Routed(Routed { behind: [first, second], inner, protocol }))
    }

    fn behind(&mut self, site: &Site, other: &[IpNet]) -> Result<Vec<IpNet>, Stopped> {
        let question = format!(
            "Networks behind {}, as 192.168.10.0/24, fd10::/48; `all` is everything; empty if none",
            site.name
        );
        self.ask(&question, "", |text| {
            let nets = networks(text)?;
            plan::apart(other, &nets).map_err(text_of)?;
            plan::no_loop(site, &nets).map_err(text_of)?;
            Ok(nets)
        })
    }

    fn inner(&mut self, behind: &[IpNet]) -> Result<Vec<InnerNet>, Stopped> {
        let free = free_inner(behind);
        let free: Vec<_> = free.iter().map(|net| net.net().to_string()).collect();
        self.ask("Network of the tunnel's own addresses", &free.join(", "), |text| {
            let words = text.split([',', ' ']).filter(|word| !word.is_empty());
            let inner = words.map(inner_network).collect::<Result<Vec<_>, _>>()?;
            if inner.is_empty() {
                return Err("a network such as 10.99.0.0/30".to_owned());
            }
            plan::is_free(&inner, behind.iter()).map_err(text_of)?;
            Ok(inner)
        })
    }

    fn bridged(&mut self, names: &[Name; 2]) -> Result<Link, Stopped> {
        let question = |name: &Name| format!("Bridge at {name}, which has the LAN as a port");
        let first: Device = self.ask(&question(&names[0]), "br0", str::parse)?;
        let second = self.ask(&question(&names[1]), &first.to_string(), str::parse)?;
        Ok(Link::Bridged([first, second]))
    }

    fn logins(&mut self, names: &[Name; 2]) -> Result<[Option<Login>; 2], Stopped> {
        let mut login = |name: &Name| {
            let question =
                format!("USER@HOST to set {name} up by ssh; empty to get its files in a directory");
            self.ask(&question, "", |text| match text {
                "" => Ok(None),
                text => text.parse().map(Some),
            })
        };
        Ok([login(&names[0])?, login(&names[1])?])
    }

    /// Asks until the answer can be parsed.
    fn ask<T>(
        &mut self,
        question: &str,
        default: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, Stopped> {
        loop {
            let shown = if default.is_empty() { String::new() } else { format!(" [{default}]") };
            write!(self.output, "{question}{shown}: ")?;
            self.output.flush()?;
            let mut line = String::new();
            if self.line(&mut line)? == 0 {
                return Err(Stopped::Ended);
            }
            let answer = line.trim();
            match parse(if answer.is_empty() { default } else { answer }) {
                Ok(value) => return Ok(value),
                Err(why) => writeln!(self.output, "  {}", Printable(why))?,
            }
        }
    }

    fn line(&mut self, into: &mut String) -> io::Result<usize> {
        self.input.by_ref().take(LONGEST as u64).read_line(into)
    }

    fn say(&mut self, text: &str) -> Result<(), Stopped> {
        writeln!(self.output, "{text}")?;
        Ok(())
    }
}

const WELCOME: &str = "This makes the configurations and keys of both sites of a tunnel. Enter alone takes what is in \
                       brackets; Ctrl-C ends, and leaves nothing behind.\n";
/// The longest answer, in bytes.
const LONGEST: usize = 1 << 13;
/// WireGuard's usual port.
const PORT: u16 = 51820;

fn text_of(error: PlanError) -> String {
    error.to_string()
}

/// Whether the tunnel is routed.
fn kind(text: &str) -> Result<bool, String> {
    match text.to_lowercase().as_str() {
        "routed" | "r" | "tun" => Ok(true),
        "bridged" | "bridge" | "b" | "tap" => Ok(false),
        _ => Err("routed or bridged".to_owned()),
    }
}

/// An endpoint, with the usual port if there is none.
fn endpoint(text: &str) -> Result<Option<Endpoint>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    // An address or a name alone.
    let alone = if text.parse::<std::net::Ipv6Addr>().is_ok() {
        Some(format!("[{text}]:{PORT}"))
    } else {
        (!text.contains(':') || text.ends_with(']')).then(|| format!("{text}:{PORT}"))
    };
    let parsed = alone.as_deref().unwrap_or(text).parse::<Endpoint>();
    parsed.map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::tests::requested;
    use super::*;

    /// The result of these answers, and what was asked.
    fn answered(answers: &[&str]) -> (Result<Request, Stopped>, String) {
        let mut output = Vec::new();
        let input = answers.join("\n") + "\n";
        let result = Dialogue::new(input.as_bytes(), &mut output).request(true);
        (result, String::from_utf8(output).unwrap())
    }

    #[test]
    fn questions_and_options_make_the_same() {
        let (routed, _) = answered(&[
            "",
            "",
            "",
            "a.example.net",
            "b.example.net:4500",
            "192.168.10.0/24",
            "192.168.20.0/24 fd20::/48",
            "",
            "",
            "",
            "root@b",
        ]);
        let line = "site-a=a.example.net:51820 site-b=b.example.net:4500 --network site-a=192.168.10.0/24 \
                    --network site-b=192.168.20.0/24,fd20::/48 --ssh root@b";
        assert_eq!(routed.unwrap(), requested(line).unwrap());
        let (bridged, _) =
            answered(&["office", "cabin", "bridged", "", "2001:db8::2", "", "br1", "", ""]);
        let line = "office cabin=[2001:db8::2]:51820 --bridge office=br0 --bridge cabin=br1";
        assert_eq!(bridged.unwrap(), requested(line).unwrap());
        let (road, _) =
            answered(&["", "", "r", "192.0.2.1", "", "all", "", "", "wireguard", "", ""]);
        let line = "site-a=192.0.2.1:51820 site-b --network site-a=all --protocol wireguard";
        assert_eq!(road.unwrap(), requested(line).unwrap());
    }

    #[test]
    fn a_wrong_answer_is_explained_and_asked_for_again() {
        let (result, said) = answered(&[
            "../a",
            "a",
            "a",
            "b",
            "neither",
            "routed",
            "a:b:c",
            "",
            "",
            "192.0.2.1",
            "10.0.0.1/8",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "192.0.2.0/24",
            "",
            "10.0.0.0/30",
            "",
            "tls",
            "",
            "",
            "-oX",
            "",
        ]);
        assert!(result.is_ok(), "{result:?}{said}");
        for why in [
            "cannot name a site",
            "both sites are called `a`",
            "routed or bridged",
            "an IPv6 address needs brackets",
            "a has none, so b needs one",
            "its network is 10.0.0.0/8",
            "10.0.0.0/8 and 10.1.0.0/16 overlap",
            "the endpoint 192.0.2.1:51820 is within 192.0.2.0/24",
            "the tunnel's own network 10.0.0.0/30 overlaps 10.0.0.0/8",
            "vpnd or wireguard",
            "is no login for ssh",
        ] {
            assert!(said.contains(&format!("  {why}")) || said.contains(why), "{why}: {said}");
        }
    }

    #[test]
    fn the_end_of_the_input_ends_it() {
        let all = ["", "", "", "192.0.2.1", "", "", "", "", "", "", ""];
        assert!(answered(&all).0.is_ok());
        for len in 1..all.len() {
            // The last line ends the input, too.
            assert!(matches!(answered(&all[..len]).0, Err(Stopped::Ended)), "{len}");
        }
    }

    #[test]
    fn what_is_typed_does_not_reach_the_terminal_as_it_is() {
        let (_, said) = answered(&["\x1b[2J\u{202e}"]);
        assert!(said.contains(r"`\u{1b}[2J\u{202e}` cannot name a site"), "{said}");
    }

    #[test]
    fn yes_is_needed() {
        let confirm = |answer: &str| Dialogue::new(answer.as_bytes(), io::sink()).confirm("?");
        assert!(confirm("\n").is_ok() && confirm("what\nY\n").is_ok());
        assert!(matches!(confirm("no\n"), Err(Stopped::Declined)));
        assert!(matches!(confirm("what\n"), Err(Stopped::Ended)));
    }

    #[test]
    fn lines_are_read_until_they_are_whole() {
        let lines = |input: &str| {
            let mut text = String::new();
            let is_whole = |text: &str| text.ends_with("end\n");
            Dialogue::new(input.as_bytes(), io::sink())
                .lines("?", is_whole, &mut text)
                .map(|()| text)
        };
        assert_eq!(lines("a\nend\nb\n").unwrap(), "a\nend\n");
        assert_eq!(lines("a\n\nend\n").unwrap(), "a\n\n");
        assert!(matches!(lines("a\n"), Err(Stopped::Ended)));
        assert_eq!(lines(&"x".repeat(3 * LONGEST)).unwrap().len(), LONGEST);
    }
}
