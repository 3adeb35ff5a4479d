//! The outer side: protocol, ports, the other end, sizes and times.

use super::parse::words;
use super::{OpenVpn, PORT};
use crate::line::Line;
use crate::table::Verdict;
use crate::tunnel::Clamp;
use crate::value;

/// What IPv4 and UDP take of a packet.
const OUTER_V4: u32 = 28;

pub(super) fn server_only(draft: &mut OpenVpn, line: &Line) -> Verdict {
    draft
        .server
        .get_or_insert_with(|| format!("{} {}", line.key, line.value.as_str()).trim().to_owned());
    Verdict::dropped("of a server with many clients, which vpnd is not")
}

pub(super) fn mode(draft: &mut OpenVpn, line: &Line) -> Verdict {
    match line.value.as_str() {
        "p2p" => Verdict::taken("the only mode of vpnd"),
        _ => server_only(draft, line),
    }
}

pub(super) fn client_only(draft: &mut OpenVpn, line: &Line) -> Verdict {
    draft.client.get_or_insert_with(|| line.key.clone());
    Verdict::dropped("of a server's client, which vpnd is not")
}

pub(super) fn proto(_: &mut OpenVpn, line: &Line) -> Verdict {
    if line.value.starts_with("tcp") {
        return Verdict::changed(
            "UDP: vpnd has no TCP. Firewalls have to let UDP pass on that port",
        );
    }
    Verdict::taken("UDP, over IPv4 and IPv6")
}

fn port_of(line: &Line) -> Option<u16> {
    value::within(&line.value, 0, 65535)?.try_into().ok()
}

pub(super) fn port(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let Some(port) = port_of(line).filter(|port| *port > 0) else {
        return Verdict::invalid("a port");
    };
    if line.group > 0 {
        draft.connections.push((line.group, port));
        return Verdict::taken("the port of [peer] endpoint");
    }
    draft.port = Some(port);
    Verdict::taken(format!("[interface] listen = {port}, and the port of [peer] endpoint"))
}

pub(super) fn lport(draft: &mut OpenVpn, line: &Line) -> Verdict {
    match port_of(line) {
        Some(0) => {
            draft.nobind = true;
            Verdict::taken("any free port, which is the default")
        }
        Some(port) => {
            draft.lport = Some(port);
            Verdict::taken(format!("[interface] listen = {port}"))
        }
        None => Verdict::invalid("a port"),
    }
}

pub(super) fn rport(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let Some(port) = port_of(line).filter(|port| *port > 0) else {
        return Verdict::invalid("a port");
    };
    if line.group > 0 {
        draft.connections.push((line.group, port));
    } else {
        draft.rport = Some(port);
    }
    Verdict::taken("the port of [peer] endpoint")
}

pub(super) fn nobind(draft: &mut OpenVpn, _: &Line) -> Verdict {
    draft.nobind = true;
    Verdict::taken("no [interface] listen: any free port")
}

/// An address to send from and receive at.
pub(super) fn local(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let Some(address) = words.first().and_then(|word| value::address(word)) else {
        return Verdict::dropped(
            "a name: write its address into [interface] listen, as \"ADDRESS:PORT\"",
        );
    };
    draft.local = Some(address);
    Verdict::taken("[interface] listen = \"ADDRESS:PORT\"")
}

/// `HOST [PORT [PROTO]]`.
pub(super) fn remote(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let word = |index: usize| words.get(index).map(String::as_str);
    let Some(host) = word(0).filter(|host| value::is_host(host)) else {
        return Verdict::invalid("a name or an address");
    };
    let tcp = [word(1), word(2)].into_iter().flatten().any(|word| word.starts_with("tcp"));
    let own =
        draft.connections.iter().find(|(group, _)| *group == line.group).map(|(_, port)| *port);
    let port = word(1).and_then(value::port).or(own).or(draft.rport).or(draft.port).unwrap_or(PORT);
    let endpoint = value::endpoint(host, port);
    if draft.tunnel.endpoints.contains(&endpoint) {
        return Verdict::changed(format!(
            "{endpoint} is an endpoint already; vpnd speaks UDP only"
        ));
    }
    let text = format!("[peer] endpoint = \"{endpoint}\"");
    draft.tunnel.endpoints.push(endpoint);
    if tcp {
        Verdict::changed(format!("{text}, over UDP: vpnd has no TCP"))
    } else {
        Verdict::taken(text)
    }
}

fn seconds(text: &str, most: u32) -> Option<u16> {
    Some(value::decimal(text)?.min(most)).and_then(|seconds| seconds.try_into().ok())
}

/// `INTERVAL TIMEOUT`.
pub(super) fn keepalive(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let [interval, timeout, ..] = words.as_slice() else {
        return Verdict::invalid("two times in seconds");
    };
    let (Some(interval), Some(timeout)) = (seconds(interval, 65535), seconds(timeout, 3600)) else {
        return Verdict::invalid("two times in seconds");
    };
    draft.tunnel.keepalive = Some(interval).filter(|interval| *interval > 0);
    draft.tunnel.dead_after = Some(timeout).filter(|timeout| *timeout > 0);
    Verdict::taken(format!("[peer] keepalive = \"{interval}s\", dead_after = \"{timeout}s\""))
}

pub(super) fn ping(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let Some(interval) = seconds(&line.value, 65535) else { return Verdict::invalid("seconds") };
    draft.tunnel.keepalive = Some(interval).filter(|interval| *interval > 0);
    Verdict::taken(format!("[peer] keepalive = \"{interval}s\""))
}

pub(super) fn ping_restart(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let Some(timeout) = seconds(&line.value, 3600) else { return Verdict::invalid("seconds") };
    draft.tunnel.dead_after = Some(timeout).filter(|timeout| *timeout > 0);
    Verdict::taken(format!(
        "[peer] dead_after = \"{timeout}s\"; vpnd tries again without a restart"
    ))
}

pub(super) fn tun_mtu(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    match words.first().and_then(|word| value::mtu(word)) {
        Some(mtu) => {
            draft.tunnel.mtu = Some(mtu);
            Verdict::taken(format!(
                "[interface] mtu = {mtu}; packets larger than the path cross in fragments"
            ))
        }
        None => Verdict::invalid("an MTU from 576 to 65535"),
    }
}

pub(super) fn fragment(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let outer = words
        .first()
        .and_then(|word| value::decimal(word))
        .map(|size| size.saturating_add(OUTER_V4));
    match outer
        .filter(|outer| (1280..=65535).contains(outer))
        .and_then(|outer| outer.try_into().ok())
    {
        Some(outer) => {
            draft.tunnel.mtu_max = Some(outer);
            Verdict::changed(format!("[path] mtu_max = {outer}: larger packets cross in fragments"))
        }
        None => Verdict::dropped(
            "vpnd finds the path's MTU by probes, and never sends less than 1280 bytes for it",
        ),
    }
}

pub(super) fn mssfix(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    match words.first().map(|word| value::decimal(word)) {
        Some(Some(0)) => {
            draft.tunnel.mss_clamp = Some(Clamp::Off);
            Verdict::taken("[path] mss_clamp = \"off\"")
        }
        Some(None) => Verdict::invalid("a size"),
        _ => Verdict::changed(
            "[path] mss_clamp = \"auto\", the default: TCP is limited to what the path carries",
        ),
    }
}

pub(super) fn mark(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let Some(mark) = value::mark(&line.value) else { return Verdict::invalid("a mark") };
    draft.tunnel.fwmark = Some(mark);
    Verdict::taken(format!("[socket] fwmark = {mark}"))
}

pub(super) fn bind_dev(draft: &mut OpenVpn, line: &Line) -> Verdict {
    if !value::is_device(&line.value) {
        return Verdict::invalid("the name of a device");
    }
    draft.tunnel.bind_device = Some(line.value.to_string());
    Verdict::taken("[socket] bind_device")
}

/// The sizes that vpnd's buffers can have.
fn buffer(line: &Line) -> Option<u32> {
    value::within(&line.value, 64 << 10, 1 << 30)
}

pub(super) fn rcvbuf(draft: &mut OpenVpn, line: &Line) -> Verdict {
    draft.tunnel.rcvbuf = buffer(line);
    sized(draft.tunnel.rcvbuf)
}

pub(super) fn sndbuf(draft: &mut OpenVpn, line: &Line) -> Verdict {
    draft.tunnel.sndbuf = buffer(line);
    sized(draft.tunnel.sndbuf)
}

fn sized(bytes: Option<u32>) -> Verdict {
    match bytes {
        Some(bytes) => Verdict::taken(format!("[socket], {bytes} bytes")),
        None => Verdict::changed("4 MiB, the default: vpnd's buffers have 64 KiB to 1 GiB"),
    }
}

pub(super) fn txqueuelen(draft: &mut OpenVpn, line: &Line) -> Verdict {
    draft.tunnel.txqueuelen = value::within(&line.value, 1, 1_000_000);
    draft
        .tunnel
        .txqueuelen
        .map_or_else(|| Verdict::invalid("a length"), |_| Verdict::taken("[interface] txqueuelen"))
}

/// The first cipher of a list that both programs have.
pub(super) fn cipher(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let ours = line.items(&[':']).find_map(|name| match name.to_ascii_uppercase().as_str() {
        "AES-256-GCM" => Some("aes-256-gcm"),
        "CHACHA20-POLY1305" => Some("chacha20-poly1305"),
        _ => None,
    });
    match ours {
        Some(ours) => {
            let chosen = *draft.tunnel.cipher.get_or_insert(ours);
            let verdict = if chosen == ours { Verdict::taken } else { Verdict::changed };
            verdict(format!("[peer] cipher = \"{chosen}\""))
        }
        None => Verdict::changed(
            "[peer] cipher = \"chacha20-poly1305\", the default, which is authenticated",
        ),
    }
}

pub(super) fn nice(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let nice = line.value.parse::<i8>().ok().filter(|nice| (-20..=19).contains(nice));
    draft.tunnel.nice = nice;
    nice.map_or_else(
        || Verdict::invalid("-20 to 19"),
        |nice| Verdict::taken(format!("[service] nice = {nice}")),
    )
}

pub(super) fn verb(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let level = match value::decimal(&line.value) {
        Some(0) => "warn",
        Some(1..=4) => return Verdict::changed("[service] log_level = \"info\", the default"),
        Some(_) => "debug",
        None => return Verdict::invalid("a number"),
    };
    draft.tunnel.log_level = Some(level);
    Verdict::changed(format!("[service] log_level = \"{level}\""))
}

pub(super) fn cd(draft: &mut OpenVpn, line: &Line) -> Verdict {
    let words = words(&line.value);
    let Some(directory) = words.first() else { return Verdict::invalid("a directory") };
    draft.directory = draft.path(directory);
    Verdict::changed("paths of scripts begin there")
}
