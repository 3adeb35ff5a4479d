//! Sends echo requests of both families, one after another, and measures their round-trip times.

use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};
use vpnd_tun::Sum;

use super::common::on_thread;
use super::netns::Namespace;

/// The result of a series of requests.
#[derive(Debug)]
pub(super) struct Pings {
    sent: u16,
    times: Vec<Duration>,
}

impl Pings {
    /// Whether every request was answered.
    pub(super) fn all_answered(&self) -> bool {
        self.times.len() == usize::from(self.sent)
    }
}

impl fmt::Display for Pings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} answered", self.times.len(), self.sent)?;
        for (n, time) in self.times.iter().enumerate() {
            let before = if n == 0 { ":" } else { "," };
            write!(f, "{before} {:.2}", time.as_secs_f64() * 1e3)?;
        }
        if self.times.is_empty() { Ok(()) } else { write!(f, " ms") }
    }
}

/// Sends `count` requests that contain `payload`, and measures the time until each answer.
///
/// # Errors
/// If a raw socket cannot be opened, or a request cannot be sent. A missing answer is not an error.
/// If a raw socket cannot be opened, or a request cannot be sent. A missing answer is no error.
pub(super) async fn series(
    from: &Namespace,
    to: IpAddr,
    count: u16,
    payload: &'static [u8],
) -> anyhow::Result<Pings> {
    let socket = from.enter(|| echo_socket(to))?;
    let socket = socket.with_context(|| format!("cannot open a raw socket to {to}"))?;
    let times = on_thread(move || {
        (1..=count).filter_map(|n| once(&socket, to, n, payload).transpose()).collect()
    });
    let times: io::Result<_> = times.await?;
    Ok(Pings { sent: count, times: times.with_context(|| format!("cannot ping {to}"))? })
}

/// Opens a raw socket, because in a new namespace no user may use a ping socket.
fn echo_socket(to: IpAddr) -> io::Result<Socket> {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// The time until the answer; `None` if there was none.
fn once(mut socket: &Socket, to: IpAddr, n: u16, payload: &[u8]) -> io::Result<Option<Duration>> {
    let sent = Instant::now();
    let request = request(to, n, payload);
    socket.send(&request)?;
    let mut buffer = [0; 2048];
    while sent.elapsed() < PATIENCE {
        match socket.read(&mut buffer) {
            Ok(len) if answers(&buffer[..len], &request, to) => return Ok(Some(sent.elapsed())),
            // Neighbour discovery and other messages also arrive here.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// An echo request. The kernel writes the checksum of ICMPv6, but not that of ICMP.
fn request(to: IpAddr, n: u16, payload: &[u8]) -> Vec<u8> {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let [high, low] = n.to_be_bytes();
    let mut request = vec![kind, 0, 0, 0, IDENTIFIER, IDENTIFIER, high, low];
    request.extend_from_slice(payload);
    let checksum = Sum::of(&request).checksum();
    request[2..4].copy_from_slice(&checksum.to_be_bytes());
    request
}

/// Whether the packet answers the request. Packets from a raw socket contain the IP header only for IPv4.
fn answers(packet: &[u8], request: &[u8], to: IpAddr) -> bool {
    let (kind, header) = match (to, packet.first()) {
        (IpAddr::V4(_), Some(first)) => (0, usize::from(first & 15) * 4),
        _ => (129, 0),
    };
    let Some(answer) = packet.get(header..) else { return false };
    answer.first() == Some(&kind) && answer.get(4..) == request.get(4..)
}

/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// An arbitrary number: no other program pings in the namespace.
const IDENTIFIER: u8 = 0x76;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_by_all_it_repeats() {
        let to = IpAddr::from([192, 0, 2, 1]);
        let request = request(to, 7, b"payload");
        assert!(Sum::of(&request).is_intact());
        let mut packet = vec![0x45; 20];
        packet.extend_from_slice(&request);
        assert!(!answers(&packet, &request, to));
        packet[20] = 0;
        assert!(answers(&packet, &request, to));
        packet[27] ^= 1;
        assert!(!answers(&packet, &request, to));
        assert!(!answers(&packet[..10], &request, to));
        assert!(!answers(&[], &request, to));
    }

    #[test]
    fn a_series_in_words() {
        let ms = Duration::from_millis;
        let pings = Pings { sent: 3, times: vec![ms(2), ms(1)] };
        assert_eq!(pings.to_string(), "2 of 3 answered: 2.00, 1.00 ms");
        assert!(!pings.all_answered());
        assert_eq!(Pings { sent: 1, times: vec![] }.to_string(), "0 of 1 answered");
    }
}
