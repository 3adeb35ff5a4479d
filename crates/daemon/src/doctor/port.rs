//! Whether the UDP port is free, and who has it otherwise.

use std::fs;
use std::path::Path;

use vpnd_tunnel::udp::{BindError, Egress, Listen};

use super::finding::{Check, Finding};
use crate::config::Config;
use crate::opening;
use crate::terminal::Printable;

/// Binds the socket as a start would, in the network namespace of this thread.
pub(super) fn before_start(config: &Config, egress: &Egress) -> Option<Finding> {
    let error = opening::socket(config, egress, None).err()?;
    Some(match &error {
        BindError::InUse { at } => taken(at.port(), config.interface.listen),
        _ => Finding::new(Check::Port, error.to_string())
            .advice("correct [interface] listen and [socket]"),
    })
}

fn taken(port: u16, listen: Listen) -> Finding {
    let holder = holder(port);
    let who = match &holder {
        Some(Holder { pid, command, .. }) => format!("{command}({pid})"),
        None => "the kernel or a process of another container".to_owned(),
    };
    let finding = Finding::new(Check::Port, format!("UDP port {port} is taken by {who}"));
    let other = match listen {
        Listen::Port(_) => "another [interface] listen, and the same in the peer's endpoint",
        Listen::Address(_) => {
            "another port or address as [interface] listen, and in the peer's endpoint"
        }
    };
    match holder {
        Some(Holder { unit: Some(unit), .. }) => finding.command(format!("systemctl stop {unit}")),
        Some(Holder { pid, .. }) => finding.command(format!("kill {pid}")),
        None => return finding.advice(format!(
            "{other}; a WireGuard interface of the kernel may have it: `ip link show type wireguard`"
        )),
    }
    .advice(other)
}

/// A process that has a socket.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    command: String,
    /// Its service, which would start it again.
    unit: Option<String>,
}

/// The process that has a UDP socket with this port in the network namespace of this thread.
fn holder(port: u16) -> Option<Holder> {
    let files = ["udp", "udp6"].map(|file| format!("/proc/thread-self/net/{file}"));
    let tables = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    let inodes: Vec<u64> = tables.flat_map(|table| inodes(&table, port)).collect();
    let links: Vec<_> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let numbers = fs::read_dir("/proc").ok()?.flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.into_iter().find(|pid| has(*pid, &links))?;
    let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let command = Printable(of("comm").trim_end()).to_string();
    Some(Holder { pid, command, unit: unit(&of("cgroup")) })
}

/// The inodes of the sockets in a table of `/proc/net/udp` that have this port.
fn inodes(table: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (_, local) = words.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(local, 16) == Ok(port);
        words.get(9).filter(|_| is_it)?.parse().ok().filter(|inode| *inode != 0)
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn has(pid: u32, links: &[String]) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.any(|target| links.iter().any(|link| target == Path::new(link)))
}

/// The system service of a process, by the last part of its control group.
fn unit(cgroup: &str) -> Option<String> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/system.slice/"))?;
    let unit = path.split('/').find(|part| part.ends_with(".service"))?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "@._-:".contains(c);
    unit.chars().all(is_plain).then(|| unit.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_by_their_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            1: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0\n\
            2: 00000000000000000000000000000000:CA6C 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 4712 2 0 0\n\
            3: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4713 2 0 0\n\
            4: 00000000:CA6C half a line\n";
        assert_eq!(inodes(table, 51820), [4711, 4712]);
        assert!(inodes("", 51820).is_empty());
    }

    #[test]
    fn this_process_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = holder(socket.local_addr().unwrap().port()).unwrap();
        assert_eq!(found.pid, std::process::id());
    }

    #[test]
    fn the_service_of_a_process() {
        let of = |path: &str| unit(&format!("0::/{path}\n"));
        assert_eq!(of("system.slice/named.service").unwrap(), "named.service");
        let instance = of("system.slice/system-vpnd.slice/vpnd@site-a.service");
        assert_eq!(instance.unwrap(), "vpnd@site-a.service");
        for other in ["user.slice/user-0.slice/session-1.scope", "", "system.slice/a$(b).service"] {
            assert_eq!(of(other), None);
        }
    }
}
