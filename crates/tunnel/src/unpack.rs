//! Turns an accepted datagram into a packet for the device, if the peer may send it. A fragment is stored until
//! the other fragments of its packet have arrived.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vpnd_protocol::drop_reason::DropReason;
use vpnd_protocol::fragment::Reassembly;
use vpnd_protocol::frame::{self, Frame};
use vpnd_protocol::inner::Inner;
use vpnd_protocol::session::OpeningKey;
use vpnd_protocol::time::BootTime;
use vpnd_tun::Mode;

use crate::ecn::{self, Ecn, Marks, Verdict};
use crate::shared::Shared;
use crate::view::Policy;

pub(crate) struct Unpack {
    shared: Arc<Shared>,
    /// Packets of which only some fragments have arrived.
    fragments: Reassembly,
    /// The generation of the policy for which the buffers were sized.
    generation: u64,
    marks: Marks,
    /// When a path that marks everything was last logged.
    told: Option<BootTime>,
}

/// The properties of a datagram that the unpacking depends on: policy, key, counter, outer mark and time.
pub(crate) struct Place<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) key: &'a OpeningKey,
    pub(crate) counter: u64,
    pub(crate) outer: Ecn,
    pub(crate) now: BootTime,
}

/// What a datagram contains for delivery.
pub(crate) enum Found<'a> {
    Nothing,
    /// A packet in the plaintext itself, with its range.
    Packet(Range<usize>),
    /// A packet that is complete with this fragment.
    Whole(&'a [u8]),
}

impl Unpack {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let view = shared.view.load();
        let (fragments, generation) =
            (Reassembly::new(view.policy.largest_packet().into()), view.policy.generation());
        drop(view);
        Self { shared, fragments, generation, marks: Marks::default(), told: None }
    }

    /// Begins a batch: makes room for the packets that its policy allows, and forgets old marks before the
    /// remaining marks decide about packets.
    pub(crate) fn begin(&mut self, policy: &Policy, now: BootTime) {
        if self.generation != policy.generation() {
            self.generation = policy.generation();
            self.fragments.resize(policy.largest_accepted().into());
        }
        self.marks.age(now);
    }

    /// Counts the mark of a batch; `datagrams` of its datagrams were authentic and not received before.
    pub(crate) fn note_mark(&mut self, outer: Ecn, datagrams: u64, now: BootTime) {
        let Some(verdict) = self.marks.note(outer, datagrams, now) else { return };
        let everything = verdict == Verdict::Everything;
        self.shared.marks_everything.store(everything, Ordering::Relaxed);
        if everything && self.told.is_none_or(|at| now.saturating_since(at) >= TOLD_EVERY) {
            self.told = Some(now);
            tracing::warn!(
                "more than half of the received datagrams are marked \"congestion experienced\": something on the \
                 path marks all of them. vpnd ignores the mark for packets without ECN"
            );
        }
    }

    /// Processes the inner packet or fragment in `plaintext`.
    ///
    /// # Errors
    /// The reason why it is dropped.
    pub(crate) fn packet(
        &mut self,
        inner: Inner,
        place: Place<'_>,
        plaintext: &mut [u8],
    ) -> Result<Found<'_>, DropReason> {
        match inner {
            Inner::Packet { len, source } => {
                let mark = self.mark(place.outer);
                admit(&self.shared, place.policy, mark, (source, &mut plaintext[..len]))?;
                Ok(Found::Packet(0..len))
            }
            Inner::Ethernet { start, len } => {
                let mark = self.mark(place.outer);
                admit_frame(&self.shared, place.policy, mark, &mut plaintext[start..start + len])?;
                Ok(Found::Packet(start..start + len))
            }
            Inner::Fragment { len, .. } => self.fragment(place, &plaintext[..len]),
            Inner::Keepalive | Inner::Control { .. } => Ok(Found::Nothing),
        }
    }

    /// Counts the packets whose fragments did not all arrive in time.
    pub(crate) fn purge(&mut self, now: BootTime) -> usize {
        self.fragments.purge(now)
    }

    fn mark(&self, outer: Ecn) -> Mark {
        Mark { outer, believed: self.marks.believed() }
    }

    /// Processes a fragment. A congestion mark on one fragment applies to its whole packet.
    fn fragment(&mut self, place: Place<'_>, plaintext: &[u8]) -> Result<Found<'_>, DropReason> {
        let Frame::Fragment(fragment) = frame::parse(plaintext)? else {
            return Err(DropReason::UnknownFrame);
        };
        let Place { policy, key, counter, outer, now } = place;
        let believed = self.marks.believed();
        let fragment = (fragment, outer == Ecn::Ce);
        let whole = self.fragments.insert_marked(key.generation(), counter, fragment, now)?;
        let Some((packet, congested)) = whole else { return Ok(Found::Nothing) };
        let mark = Mark { outer: if congested { Ecn::Ce } else { outer }, believed };
        if self.shared.mode == Mode::Tap {
            admit_frame(&self.shared, policy, mark, packet)?;
            return Ok(Found::Whole(packet));
        }
        let Inner::Packet { len, source } = Inner::packet(packet)? else {
            return Err(DropReason::InnerMalformed);
        };
        admit(&self.shared, policy, mark, (source, &mut packet[..len]))?;
        Ok(Found::Whole(&packet[..len]))
    }
}

/// The outer mark of a datagram, and whether vpnd believes it.
#[derive(Clone, Copy)]
struct Mark {
    outer: Ecn,
    believed: bool,
}

/// The least time between two log lines about a path that marks everything.
const TOLD_EVERY: Duration = Duration::from_secs(3600);

/// Lets a packet pass if the peer may send it, and adapts it for delivery.
fn admit(
    shared: &Shared,
    policy: &Policy,
    mark: Mark,
    (source, packet): (IpAddr, &mut [u8]),
) -> Result<(), DropReason> {
    let filter = policy.filter();
    if !filter.allows(source) {
        if filter.could_allow(source) {
            shared.refused_sources.note(source);
        }
        return Err(DropReason::SourceNotAllowed);
    }
    if policy.guard().stops(packet) {
        return Err(DropReason::Guarded);
    }
    ecn::decapsulate(mark.outer, mark.believed, packet)?;
    clamp(shared, policy, packet);
    Ok(())
}

fn clamp(shared: &Shared, policy: &Policy, packet: &mut [u8]) {
    if let Some(segments) = policy.segments() {
        segments.clamp(shared.mode, packet);
    }
}

/// Like [`admit`], for a frame. On a bridge the peer may use every hardware address that `allowed_macs` does
/// not exclude; congestion marks and the segment size are handled as for packets.
fn admit_frame(
    shared: &Shared,
    policy: &Policy,
    mark: Mark,
    frame: &mut [u8],
) -> Result<(), DropReason> {
    if frame.len() < shared.mode.prefix() {
        return Err(DropReason::InnerMalformed);
    }
    // A network card would drop the frame, too, but a bridge would drop it without counting it.
    if frame.len() > usize::from(policy.largest_packet()) {
        return Err(DropReason::LargerThanMtu);
    }
    if policy.macs().is_some_and(|macs| !macs.allow(frame)) {
        return Err(DropReason::SourceMacNotAllowed);
    }
    if policy.guard().stops_frame(frame) {
        return Err(DropReason::Guarded);
    }
    if let Some(ip) = shared.mode.ip_start(frame) {
        ecn::decapsulate(mark.outer, mark.believed, &mut frame[ip..])?;
    }
    clamp(shared, policy, frame);
    Ok(())
}
