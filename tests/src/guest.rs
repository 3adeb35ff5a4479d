//! A virtual machine with a network card: its system is a network namespace, and its card is a TAP device in
//! the guest and one in the host. The guest's packets leave the host's device unchanged, as super-packets and
//! with incomplete checksums, as from a virtio card under QEMU:
//!
//! ```text
//!   guest [eth0] ── card ── [vnet0] host, a port of br0
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::link::port;
use crate::{Host, Lab, sys};

/// A virtio header, an Ethernet header with two tags, and the largest packet.
const LARGEST: usize = 10 + 22 + 65_536;
/// The position of VLAN tags: after a virtio header and two hardware addresses.
const TAGS_AT: usize = 10 + 12;
/// The time until an unplugged card is quiet, in milliseconds.
const GLANCE: u8 = 20;

/// A virtual machine.
#[derive(Debug)]
pub struct Guest {
    /// Its system; the device is `eth0`.
    pub system: Host,
    card: Arc<File>,
    tags: Arc<[u8]>,
    plugged: Option<Plugged>,
}

/// The card in a host.
#[derive(Debug)]
struct Plugged {
    device: Arc<File>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Guest {
    /// A guest whose device is up and has these addresses. Its card is in no host yet.
    ///
    /// # Errors
    /// Without the privilege to make namespaces and devices.
    pub fn new(lab: &Lab, name: &str, addresses: &[&str]) -> Result<Self> {
        let system = lab.host(name)?;
        let card =
            system.enter(|| sys::open_tap("eth0").context("cannot make the guest's eth0"))?;
        port(&system, "eth0").up()?;
        port(&system, "eth0").address(addresses)?;
        Ok(Self { system, card: Arc::new(card), tags: Arc::from([]), plugged: None })
    }

    /// The same guest in VLANs: its card adds these tags, one after the other, to sent frames, and accepts
    /// only frames with them.
    #[must_use]
    pub fn tagged(mut self, tags: &[[u8; 4]]) -> Self {
        self.tags = tags.concat().into();
        self
    }

    /// Plugs the card into a host, whose br0 gets a port of this name; it is removed from its previous host.
    ///
    /// # Errors
    /// When the host has such a device, or no such bridge.
    pub fn plug(&mut self, host: &Host, name: &str) -> Result<()> {
        self.plugged = None;
        let device = host.enter(|| sys::open_tap(name).context("cannot make the host's device"))?;
        host.run(&format!("ip link set {name} master br0"))?;
        port(host, name).up()?;
        self.plugged = Some(Plugged::new(&self.card, device, &self.tags));
        Ok(())
    }

    /// Announces the guest's new place to every bridge by a reverse ARP request, as QEMU does after a
    /// migration.
    ///
    /// # Errors
    /// When the card is in no host.
    pub fn announce(&self) -> Result<()> {
        let plugged = self.plugged.as_ref().context("the card is in no host")?;
        let mac = port(&self.system, "eth0").mac()?;
        let request = [0, 1, 8, 0, 6, 4, 0, 3];
        let body = [&mac[..], &[0; 4], &mac, &[0; 4]].concat();
        let frame = [&[0; 10][..], &[0xff; 6], &mac, &self.tags, &[0x80, 0x35], &request, &body];
        (&*plugged.device).write_all(&frame.concat()).context("cannot announce the guest")
    }
}

impl Plugged {
    fn new(card: &Arc<File>, device: File, tags: &Arc<[u8]>) -> Self {
        let (device, stop) = (Arc::new(device), Arc::new(AtomicBool::new(false)));
        let start = |from: &Arc<File>, to: &Arc<File>, change: fn(&mut Vec<u8>, &[u8]) -> bool| {
            let (from, to, tags) = (Arc::clone(from), Arc::clone(to), Arc::clone(tags));
            let stop = Arc::clone(&stop);
            thread::spawn(move || carry(&from, &to, &stop, |frame| change(frame, &tags)))
        };
        let threads = vec![start(card, &device, tag), start(&device, card, untag)];
        Self { device, stop, threads }
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // The guest has to repeat what an unplugged card loses.
            let _ = thread.join();
        }
    }
}

/// Moves frames until it is stopped; frames that a device refuses because it is down are lost.
fn carry(
    mut from: &File,
    mut to: &File,
    stop: &AtomicBool,
    mut change: impl FnMut(&mut Vec<u8>) -> bool,
) {
    let mut frame = Vec::with_capacity(LARGEST);
    while !stop.load(Ordering::Relaxed) {
        frame.resize(LARGEST, 0);
        match from.read(&mut frame) {
            Ok(len) => {
                frame.truncate(len);
                if change(&mut frame) {
                    let _ = to.write(&frame);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut wanted = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut wanted, PollTimeout::from(GLANCE));
            }
            Err(_) => return,
        }
    }
}

/// Adds tags, and shifts the offsets in the virtio header.
fn tag(frame: &mut Vec<u8>, tags: &[u8]) -> bool {
    if frame.len() < TAGS_AT {
        return false;
    }
    frame.splice(TAGS_AT..TAGS_AT, tags.iter().copied());
    shift(frame, |place| place.wrapping_add(length(tags)));
    true
}

/// Removes tags; a frame with other tags is not for this guest.
fn untag(frame: &mut Vec<u8>, tags: &[u8]) -> bool {
    let is_ours = frame.get(TAGS_AT..).is_some_and(|rest| rest.starts_with(tags));
    if is_ours {
        frame.drain(TAGS_AT..TAGS_AT + tags.len());
        shift(frame, |place| place.wrapping_sub(length(tags)));
    }
    is_ours
}

fn length(tags: &[u8]) -> u16 {
    u16::try_from(tags.len()).unwrap_or_default()
}

/// The offsets of `hdr_len` and the checksum start in a virtio header.
fn shift(frame: &mut [u8], change: impl Fn(u16) -> u16) {
    for at in [2, 6] {
        let place = u16::from_ne_bytes([frame[at], frame[at + 1]]);
        if place > 0 {
            frame[at..at + 2].copy_from_slice(&change(place).to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_comes_off_as_it_went_on() {
        let tags = [0x81, 0, 0, 7];
        let mut frame: Vec<u8> = (0..60).collect();
        let before = frame.clone();
        assert!(tag(&mut frame, &tags));
        assert_eq!((frame.len(), &frame[22..26]), (64, &tags[..]));
        assert_eq!((frame[6], frame[7]), (before[6] + 4, before[7]));
        assert!(!untag(&mut frame.clone(), &[0x81, 0, 0, 8]));
        assert!(untag(&mut frame, &tags));
        assert_eq!(frame, before);
    }
}
