//! Checks whether systemd-resolved still has the name servers that vpnd set. Another program may have removed
//! them (`resolvectl revert`, an agent that sets up links), or systemd-resolved may have been restarted without
//! its state.
//!
//! systemd-resolved stores the state of a link in a directory that only it can read. But it writes a
//! `resolv.conf` that everybody can read, with the servers of links that resolve every name, so the loss of
//! such a server is noticed within [`CHECK_INTERVAL`]. That file does not list a link that resolves only its
//! own domains. So vpnd also sets everything again every [`RENEWAL_INTERVAL`]; if nothing is missing,
//! systemd-resolved neither changes nor logs anything.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::plan::Argv;

/// The list of the servers of links that resolve every name.
const LIST: &str = "/run/systemd/resolve/resolv.conf";
/// How often the list is read.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How often everything is set again, even if the list contains all servers.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(30);
/// If setting the servers fails, or they are soon removed again, the pauses grow up to this time.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The servers that were set, and when to check them.
#[derive(Debug)]
pub(super) struct Names {
    servers: Vec<IpAddr>,
    list: PathBuf,
    /// Whether the list contained all servers after they were set. Only then can it show that one is missing.
    listed: bool,
    pause: Duration,
    due: Instant,
    renewal: Instant,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing has to be done.
    Kept,
    /// A server is gone: set all of them again.
    Gone,
    /// The list cannot show the state: set all of them again.
    Unknown,
}

impl Names {
    /// The servers in these commands, which have just been run.
    pub(super) fn new(commands: &[Argv]) -> Self {
        let words = commands.iter().flat_map(Argv::words);
        let servers = words.filter_map(|word| word.parse().ok()).collect();
        Self::listed_in(LIST.into(), servers, Instant::now())
    }

    /// The servers in these commands, which the earlier process of this tunnel may not have run, if its `[dns]` was another:
    /// they are due now.
    pub(super) fn inherited(commands: &[Argv]) -> Self {
        let now = Instant::now();
        Self { due: now, renewal: now, ..Self::new(commands) }
    }

    fn listed_in(list: PathBuf, servers: Vec<IpAddr>, now: Instant) -> Self {
        let (due, renewal) = (now + CHECK_INTERVAL, now + RENEWAL_INTERVAL);
        let mut names = Self { servers, list, listed: false, pause: CHECK_INTERVAL, due, renewal };
        names.listed = names.are_listed();
        names
    }

    /// When the next check is due.
    pub(super) const fn due(&self) -> Instant {
        self.due
    }

    /// Checks whether the servers are still set.
    pub(super) fn check(&mut self, now: Instant) -> Found {
        self.due = now + CHECK_INTERVAL;
        if self.listed && !self.are_listed() {
            return Found::Gone;
        }
        if now >= self.renewal {
            return Found::Unknown;
        }
        self.pause = CHECK_INTERVAL;
        Found::Kept
    }

    /// Records that the servers were set again after `found`, or that this failed.
    pub(super) fn set_again(&mut self, now: Instant, found: Found, is_set: bool) {
        if is_set {
            self.listed = self.are_listed();
        }
        let helps = is_set && found == Found::Unknown;
        self.pause = if helps { CHECK_INTERVAL } else { MAX_PAUSE.min(self.pause * 2) };
        self.due = now + self.pause;
        self.renewal = now + self.pause.max(RENEWAL_INTERVAL);
    }

    fn are_listed(&self) -> bool {
        // A list that is missing, or is being replaced, counts as empty.
        let list = fs::read_to_string(&self.list).unwrap_or_default();
        let listed: Vec<_> = list.lines().filter_map(name_server).collect();
        self.servers.iter().all(|server| listed.contains(server))
    }
}

/// The address in a line of `resolv.conf`. A link-local address is followed by its link.
fn name_server(line: &str) -> Option<IpAddr> {
    line.strip_prefix("nameserver ")?.trim().split('%').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const BOTH: &str = "# comment\nnameserver 192.0.2.53\nnameserver 10.99.0.2\nnameserver fe80::2%tun0\nsearch .\n";
    const LAN: &str = "nameserver 192.0.2.53\nsearch .\n";

    fn names(list: &Path, now: Instant) -> Names {
        let servers = ["10.99.0.2", "fe80::2"].map(|server| server.parse().unwrap());
        Names::listed_in(list.to_owned(), servers.into(), now)
    }

    /// Makes the next check when it is due, and sets the servers again by writing `list`.
    fn check_when_due(names: &mut Names, list: &str) -> (Found, Duration) {
        let now = names.due();
        let found = names.check(now);
        if found != Found::Kept {
            fs::write(&names.list, list).unwrap();
            names.set_again(now, found, true);
        }
        (found, names.due() - now)
    }

    #[test]
    fn an_inherited_list_is_set_at_once() {
        let commands = [Argv::new("resolvectl dns tun0 10.99.0.2".split(' ')).unwrap()];
        let mut names = Names::inherited(&commands);
        let now = Instant::now();
        assert!(names.due() <= now);
        assert_eq!(names.check(now), Found::Unknown);
        names.set_again(now, Found::Unknown, true);
        assert_eq!(names.due() - now, CHECK_INTERVAL);
    }

    #[test]
    fn the_servers_are_those_of_the_commands() {
        let commands = ["dns tun0 10.99.0.2 fd99::2", "domain tun0 ~.", "default-route tun0 yes"]
            .map(|line| Argv::new(format!("resolvectl {line}").split(' ')).unwrap());
        let servers = ["10.99.0.2", "fd99::2"].map(|server| server.parse::<IpAddr>().unwrap());
        assert_eq!(Names::new(&commands).servers, servers);
    }

    #[test]
    fn a_server_that_is_gone_is_missed_at_the_next_look() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("resolv.conf");
        fs::write(&list, BOTH).unwrap();
        let mut names = names(&list, Instant::now());
        assert_eq!(check_when_due(&mut names, BOTH), (Found::Kept, CHECK_INTERVAL));
        // A list with one of the two servers, or no list at all, is a loss.
        fs::write(&list, "nameserver 10.99.0.2\n").unwrap();
        assert_eq!(check_when_due(&mut names, BOTH), (Found::Gone, CHECK_INTERVAL * 2));
        assert_eq!(check_when_due(&mut names, BOTH), (Found::Kept, CHECK_INTERVAL));
        fs::remove_file(&list).unwrap();
        assert_eq!(check_when_due(&mut names, BOTH), (Found::Gone, CHECK_INTERVAL * 2));
    }

    #[test]
    fn who_takes_them_away_again_and_again_is_met_less_often() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("resolv.conf");
        fs::write(&list, BOTH).unwrap();
        let mut names = names(&list, Instant::now());
        let pauses: Vec<_> = (0..5)
            .map(|_| {
                fs::write(&list, LAN).unwrap();
                check_when_due(&mut names, BOTH)
            })
            .collect();
        assert_eq!(pauses, [10, 20, 40, 60, 60].map(|s| (Found::Gone, Duration::from_secs(s))));
        assert_eq!(
            check_when_due(&mut names, BOTH).0,
            Found::Unknown,
            "domains may be gone by then"
        );
        assert_eq!(check_when_due(&mut names, BOTH), (Found::Kept, CHECK_INTERVAL));
    }

    #[test]
    fn what_no_list_shows_is_set_again_now_and_then() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("resolv.conf");
        let begin = Instant::now();
        let mut names = names(&list, begin);
        let found: Vec<_> = (0..12).map(|_| check_when_due(&mut names, LAN).0).collect();
        let renewed = found.iter().filter(|found| **found == Found::Unknown).count();
        assert_eq!((renewed, found.contains(&Found::Gone)), (2, false), "{found:?}");
        assert_eq!(names.due() - begin, Duration::from_secs(65));
    }

    #[test]
    fn what_cannot_be_set_is_tried_less_often() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("resolv.conf");
        fs::write(&list, BOTH).unwrap();
        let mut names = names(&list, Instant::now());
        fs::write(&list, LAN).unwrap();
        let pauses = [(); 5].map(|()| {
            let now = names.due();
            assert_eq!(names.check(now), Found::Gone, "a failure makes it no less wanted");
            names.set_again(now, Found::Gone, false);
            (names.due() - now).as_secs()
        });
        assert_eq!(pauses, [10, 20, 40, 60, 60]);
    }
}
