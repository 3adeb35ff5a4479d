//! The outbound path, from the device to the socket:
//!
//! 1. *read* the device until it is empty, one packet or super-packet at a time;
//! 2. *split* it into the batch, so that each packet is sealed in place;
//! 3. *seal* the batch, or stage it if there is no key;
//! 4. *send* it in one call: one GSO send for each run of datagrams of equal size.
//!
//! One thread at a time does all of it (`watch` selects the thread). It never allocates memory, takes a lock or
//! waits for more packets, except for packets that are staged because there is no key.
//!
//! A device with several queues has one worker per queue.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::fragment::Plan;
use vpnd_protocol::inner::Inner;
use vpnd_protocol::session::Counters;
use vpnd_protocol::staging::Staging;
use vpnd_protocol::table::Path;
use vpnd_protocol::time::BootTime;
use vpnd_tun::{Mode, READ_BUFFER, VNET_LEN, VnetHeader, split};

use crate::batch::{Batch, Fit};
use crate::clamp::Segments;
use crate::clock;
use crate::nested::{Datagram, Watcher};
use crate::outer::Outer;
use crate::pacing::InFlight;
use crate::shared::{Shared, await_room, is_gone};
use crate::udp::Sent;

pub(crate) struct Outbound {
    shared: Arc<Shared>,
    /// The device queue that this worker reads.
    line: usize,
    read: Box<[u8]>,
    batch: Batch,
    /// The limits of TCP's segment size in this batch.
    segments: Option<Segments>,
    /// A complete packet before it is cut into fragments.
    uncut: Box<[u8]>,
    staging: Staging,
    /// The batch for sending staged packets.
    staged: Batch,
    nested: Watcher,
}

/// How many packets one poll of the device found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// A few small packets at most.
    Light,
    /// More packets, or the device may have more.
    Heavy,
}

/// A poll that reads more bytes than this is heavy; acknowledgments and keystrokes are below this limit.
const LIGHT: usize = 4096;

impl Outbound {
    pub(crate) fn new(shared: Arc<Shared>, line: usize) -> Self {
        let view = shared.view.load();
        let [batch, staged] =
            [(); 2].map(|()| Batch::of(shared.socket.max_segments(), shared.mode, &view));
        let segments = view.policy.segments();
        drop(view);
        let read = vec![0; READ_BUFFER].into_boxed_slice();
        let uncut = vec![0; READ_BUFFER].into_boxed_slice();
        let staging = Staging::one_of(shared.device.queues.len());
        let nested = Watcher::default();
        Self { shared, line, read, batch, segments, uncut, staging, staged, nested }
    }

    /// Uses the policy that is published now for the next batch.
    fn follow(&mut self) {
        let view = self.shared.view.load();
        self.batch.follow(self.shared.mode, &view);
        self.segments = view.policy.segments();
    }

    /// Moves packets from the device, in at most `limit` reads. Staged packets are sent first.
    ///
    /// # Errors
    /// If the device is gone.
    pub(crate) fn poll(&mut self, limit: usize) -> io::Result<Load> {
        self.send_staged()?;
        self.follow();
        let mut bytes = 0;
        for _ in 0..limit {
            match self.shared.device.queues[self.line].read(&mut self.read) {
                Ok(len) => {
                    bytes += len;
                    self.split(len)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.flush()?;
                    return Ok(if bytes > LIGHT { Load::Heavy } else { Load::Light });
                }
                Err(error) if is_gone(&error) => return Err(error),
                Err(_) => self.shared.counters.count(DropReason::DeviceMalformed, 1),
            }
            if self.shared.view.load().table.stop {
                break;
            }
        }
        self.flush()?;
        Ok(Load::Heavy)
    }

    fn split(&mut self, len: usize) -> io::Result<()> {
        // Taken out of `self` during the loop, so that sending may borrow the other fields.
        let read = std::mem::take(&mut self.read);
        let result = self.split_packet(&read[..len]);
        self.read = read;
        result
    }

    pub(crate) fn split_packet(&mut self, read: &[u8]) -> io::Result<()> {
        let mode = self.shared.mode;
        let segments = VnetHeader::decode(read).and_then(|(header, packet)| {
            let prefix = mode.ip_start(packet).unwrap_or_else(|| mode.prefix());
            split(header, packet, prefix).ok().filter(|s| is_whole(mode, packet, s.remaining()))
        });
        let Some(mut segments) = segments else {
            self.shared.counters.count(DropReason::DeviceMalformed, 1);
            return Ok(());
        };
        let is_ours = |datagram: &Datagram<'_>| self.shared.sent(datagram);
        let outer = match self.nested.admit(mode, &read[VNET_LEN..], is_ours) {
            Ok(outer) => outer,
            Err(reason) => {
                self.shared.counters.count(reason, segments.remaining());
                return Ok(());
            }
        };
        let single = segments.remaining() == 1;
        while let Some(len) = segments.next_len() {
            let fit = self.batch.fit(len);
            let packet = match fit {
                Fit::Whole => self.batch.room(len, outer),
                Fit::Fragments(_) => Some(&mut self.uncut[..len]),
                Fit::Never => {
                    self.shared.counters.count(DropReason::TooBig, segments.remaining());
                    return Ok(());
                }
            };
            let Some(packet) = packet else {
                self.flush()?;
                continue;
            };
            segments.write_next(packet);
            // A SYN is never part of a super-packet.
            if let Some(segments) = self.segments.filter(|_| single) {
                segments.clamp(mode, packet);
            }
            if let Fit::Fragments(plan) = fit {
                self.cut(len, plan, outer)?;
            }
        }
        Ok(())
    }

    /// Puts the complete packet in `uncut` into the batch, in fragments.
    fn cut(&mut self, len: usize, plan: Plan, outer: Outer) -> io::Result<()> {
        if !self.batch.cut(&self.uncut[..len], plan, outer) {
            self.flush()?;
            let _room = self.batch.cut(&self.uncut[..len], plan, outer);
        }
        Ok(())
    }

    /// Seals and sends the batch, after all staged packets.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.batch.len() == 0 {
            return Ok(());
        }
        self.send_staged()?;
        let now = clock::boot();
        // Packets that are still staged are sent before this batch, even if a key was published in the
        // meantime.
        let first = self.staging.is_empty();
        if !(first && leave(&self.shared, self.line, &mut self.batch, now)?) {
            self.stage(now);
        }
        self.batch.clear();
        self.follow();
        // A key may have been published in the meantime; or packets that were fragmented for one session are
        // staged, and are fragmented again for the next session.
        self.send_staged()
    }

    fn stage(&mut self, now: BootTime) {
        let mut lost = 0;
        self.batch.for_each_packet(|packet| lost += self.staging.push(now, packet));
        self.shared.counters.count(DropReason::StagingDropped, lost);
        self.shared.wake(self.shared.activity.want_handshake.raise());
    }

    /// Drops packets that were staged for one session and are too large for the next.
    fn drop_too_big(&mut self) {
        let staged = &self.staged;
        while self.staging.peek().is_some_and(|packet| staged.fit(packet.len()) == Fit::Never) {
            self.staging.pop();
            self.shared.counters.count(DropReason::TooBig, 1);
        }
    }

    /// Sends staged packets, the oldest first. Packets that cannot be sealed remain staged.
    fn send_staged(&mut self) -> io::Result<()> {
        while !self.staging.is_empty() {
            let now = clock::boot();
            self.shared.counters.count(DropReason::StagingDropped, self.staging.purge(now));
            let view = self.shared.view.load();
            if !view.table.sends_at(now) {
                break;
            }
            let mode = self.shared.mode;
            self.staged.clear();
            self.staged.follow(mode, &view);
            // Dropped, so that this thread holds no key while a send waits.
            drop(view);
            self.drop_too_big();
            let (packets, staged) = (self.staging.packets(), &mut self.staged);
            let taken =
                packets.take_while(|packet| staged.take(packet, Outer::of(mode, packet))).count();
            if taken == 0 {
                break;
            }
            if !leave(&self.shared, self.line, &mut self.staged, now)? {
                self.shared.wake(self.shared.activity.want_handshake.raise());
                break;
            }
            (0..taken).for_each(|_| self.staging.pop());
        }
        Ok(())
    }
}

/// Seals and sends a batch; returns whether it could be sealed.
fn leave(shared: &Shared, line: usize, batch: &mut Batch, now: BootTime) -> io::Result<bool> {
    shared.pacing.wait(line, || shared.next_counter());
    let Some((path, _under_way)) = seal(shared, line, batch, now) else { return Ok(false) };
    send(shared, batch, &path)?;
    Ok(true)
}

/// Reserves counters and seals the batch; `None` if there is no path, or no key that may still seal.
fn seal<'a>(
    shared: &'a Shared,
    line: usize,
    batch: &mut Batch,
    now: BootTime,
) -> Option<(Path, InFlight<'a>)> {
    // The guard is dropped with this function, so that this thread holds no key while a send waits.
    let view = shared.view.load();
    let (key, path) = view.table.send.as_ref()?;
    if batch.has_fragments() && !key.carries_frames() {
        return None;
    }
    let in_flight = shared.pacing.in_flight(line, key.used());
    let counters: Counters = key.reserve(batch.len(), now).ok()?;
    shared.wake(counters.wake());
    let tapped = shared.tap.wanted();
    if tapped.inner {
        shared.copy_packets(batch);
    }
    batch.seal(key, counters);
    if tapped.outer {
        shared.copy_datagrams(batch, path);
    }
    Some((*path, in_flight))
}

/// Sends a sealed batch. No network error stops the worker.
fn send(shared: &Shared, batch: &Batch, path: &Path) -> io::Result<()> {
    let (mut sent, mut path, mut at) = (0, *path, clock::boot());
    while sent < batch.bytes() {
        if shared.urgent.is_waiting() {
            shared.send_urgent();
        }
        match shared.socket.send_all(batch.transmits(path, sent)) {
            Ok(done) => {
                sent += done.len;
                note(shared, &done);
                path.from = path.from.filter(|_| !done.source_lost);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                await_room(shared.socket.as_fd())?;
                if shared.view.load().table.stops_at_once() {
                    return Ok(());
                }
                at = clock::boot();
            }
            Err(error) => {
                shared.refuse(&error);
                // The kernel may refuse one run and accept the next run.
                let next = batch.run_end(sent);
                let refused = batch.remaining(sent) - batch.remaining(next);
                shared.counters.count(DropReason::SendFailed, refused);
                sent = next;
            }
        }
    }
    // This is the time before the send and not after it: the answer may arrive while this thread still waits
    // for a processor, and would then seem to be older than the sent datagrams.
    shared.wake(shared.activity.sent(at, batch.tally()));
    Ok(())
}

/// Records what a successful send shows about the path.
fn note(shared: &Shared, sent: &Sent) {
    shared.counters.count(DropReason::TooBig, sent.skipped);
    if sent.too_big {
        shared.activity.path_too_small();
    }
    if sent.source_lost {
        shared.wake(shared.activity.source_lost.raise());
    }
}

/// Whether a packet is IP and has the length that its header states. For a super-packet, only whether it is IP,
/// because each segment gets a new length. For an Ethernet frame, whether it has a header.
fn is_whole(mode: Mode, packet: &[u8], segments: usize) -> bool {
    if mode == Mode::Tap {
        return packet.len() >= mode.prefix();
    }
    match Inner::packet(packet) {
        Ok(found) => matches!(found, Inner::Packet { .. }),
        Err(_) => segments > 1 && matches!(packet[0] >> 4, 4 | 6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clamp::Clamp;
    use crate::filter::Filter;
    use crate::tests::{ends, inbound, lines, read_packet, receive};
    use crate::udp::tests::in_namespace;
    use crate::view::Policy;
    use std::thread;
    use vpnd_protocol::replay::WINDOW;

    /// The read of a device for a SYN that offers this MSS.
    fn read_syn(mss: u16) -> Vec<u8> {
        let mut read = read_packet(44);
        let tcp = &mut read[VNET_LEN + 20..];
        (tcp[12], tcp[13]) = (6 << 4, 2);
        tcp[20..].copy_from_slice(&[&[2, 4][..], &mss.to_be_bytes()].concat());
        read[VNET_LEN + 9] = 6;
        read
    }

    /// The MSS of a SYN that is sealed after a policy with this clamp was published.
    fn clamped(near: &Shared, line: &mut Outbound, mtu: u16, clamp: Option<Clamp>) -> u16 {
        let policy = Policy::new(Mode::Tun, mtu, Filter::new(&[])).with_clamp(clamp);
        near.view.set_policy(&policy);
        line.flush().unwrap();
        line.poll(0).map(drop).unwrap();
        line.split_packet(&read_syn(1400)).unwrap();
        let mut mss = 0;
        line.batch.for_each_packet(|packet| mss = u16::from_be_bytes([packet[42], packet[43]]));
        mss
    }

    #[test]
    fn the_segment_size_follows_the_policy() {
        in_namespace(|| {
            let (near, _far) = ends(1);
            let line = &mut lines(&near)[0];
            for (mtu, clamp, mss) in [
                (1420, Some(Clamp::Mtu), 1380),
                (1300, Some(Clamp::Mtu), 1260),
                (1300, Some(Clamp::Mss(1200)), 1200),
                (1300, None, 1400),
                (9000, Some(Clamp::Mtu), 1400),
            ] {
                assert_eq!(clamped(&near, line, mtu, clamp), mss, "{clamp:?} over {mtu}");
            }
        });
    }

    #[test]
    fn a_line_that_is_held_up_before_its_send_loses_nothing_to_the_others() {
        in_namespace(|| {
            let (near, far) = ends(2);
            let (mut lines, mut inbound, packet) = (lines(&near), inbound(&far), read_packet(100));
            let (held, other) = lines.split_at_mut(1);
            (0..40).for_each(|_| held[0].split_packet(&packet).unwrap());
            let sealed = seal(&near, 0, &mut held[0].batch, clock::boot());
            let (path, in_flight) = sealed.unwrap();
            thread::scope(|scope| {
                let windows = scope.spawn(|| {
                    (0..WINDOW * 2).for_each(|_| other[0].split_packet(&packet).unwrap());
                    other[0].flush().unwrap();
                });
                // The wait is long enough for all packets to be sent.
                for _ in 0..100 {
                    receive(&mut inbound);
                    thread::sleep(std::time::Duration::from_millis(1));
                }
                assert!(!windows.is_finished() && near.next_counter() < WINDOW);
                send(&near, &held[0].batch, &path).unwrap();
                drop(in_flight);
                while !windows.is_finished() {
                    receive(&mut inbound);
                }
            });
            receive(&mut inbound);
            assert_eq!(near.activity.traffic().packets_sent, WINDOW * 2 + 40);
            assert_eq!(far.counters.dropped(DropReason::Replayed), 0);
        });
    }
}
