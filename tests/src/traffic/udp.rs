//! UDP datagrams of chosen lengths, and which of them arrived unchanged.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::{Host, sys};

/// If no datagram comes for this long, no more will come.
const SILENCE: Duration = Duration::from_millis(1500);
/// The number sent without a pause.
const BURST: usize = 16;
/// Nothing is sent to it.
const DISCARD: u16 = 9;

/// Sends one datagram of each length, never fragmented by the sender, to an address of `to`.
///
/// # Errors
/// If one cannot be sent unfragmented, or does not arrive unchanged; the error has its length.
pub fn one_of_each(from: &Host, to: &Host, address: &str, lengths: &[usize]) -> Result<()> {
    let missing = lost(from, to, address, lengths)?;
    let count = missing.len();
    ensure!(count == 0, "{count} of {} lengths did not arrive: {missing:?}", lengths.len());
    Ok(())
}

/// The largest packet that the kernel lets a program on `from` send to this address unfragmented.
///
/// # Errors
/// If there is no route.
pub fn mtu_towards(from: &Host, address: &str) -> Result<u16> {
    let address: IpAddr = address.parse()?;
    let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = from.enter(|| {
        let socket = UdpSocket::bind(any)?;
        socket.connect((address, DISCARD))?;
        Ok(socket)
    })?;
    Ok(u16::try_from(sys::route_mtu(&socket, address.is_ipv6())?)?)
}

fn lost(from: &Host, to: &Host, address: &str, lengths: &[usize]) -> Result<BTreeSet<usize>> {
    let address: IpAddr = address.parse()?;
    let receiver = to.enter(|| UdpSocket::bind((address, 0)).context("cannot bind"))?;
    sys::receive_buffer(&receiver, 16 << 20)?;
    let sender = from.enter(|| {
        let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let sender = UdpSocket::bind(any)?;
        sender.connect(receiver.local_addr()?)?;
        Ok(sender)
    })?;
    sys::never_fragment(&sender, address.is_ipv6())?;
    thread::scope(|scope| {
        let arriving = scope.spawn(|| take(&receiver, lengths));
        for (index, len) in lengths.iter().enumerate() {
            sender.send(&payload(*len)).with_context(|| format!("cannot send {len} bytes"))?;
            if index % BURST == BURST - 1 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        arriving.join().map_err(|_panic| anyhow!("the receiver panicked"))?
    })
}

/// Receives until all have arrived or no more come, and returns the missing ones.
fn take(receiver: &UdpSocket, lengths: &[usize]) -> Result<BTreeSet<usize>> {
    receiver.set_read_timeout(Some(SILENCE))?;
    let mut missing: BTreeSet<usize> = lengths.iter().copied().collect();
    let mut buffer = vec![0; 65_536];
    while !missing.is_empty() {
        match receiver.recv(&mut buffer) {
            Ok(len) => {
                ensure!(buffer[..len] == payload(len)[..], "{len} bytes arrived, not as they were");
                missing.remove(&len);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(missing)
}

/// The bytes of a datagram of this length.
fn payload(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(u64::try_from(len).unwrap_or_default()).fill_bytes(&mut bytes);
    bytes
}
