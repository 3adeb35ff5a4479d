//! `UDP_SEGMENT`: the kernel or the network card cuts one send into datagrams. Also the fallback if the kernel
//! refuses that.
//!
//! A refused batch is always sent again, one datagram at a time. Whether the refusal is remembered depends on
//! the error. `EIO` (the outgoing interface cannot checksum, or uses IPsec) is remembered for that route.
//! Kernels before 6.14 return `EINVAL` if a datagram is larger than the MTU, so `EINVAL` is remembered only if
//! it occurs twice for a size that always fits. `EMSGSIZE` (the path's MTU has shrunk) is never remembered. The
//! route to an address may change, so segmentation is tried again after [`RETRY_AFTER`] batches.
//!
//! Linux 7.0 to 7.1.4 accept every batch, but segment one of equal datagrams wrongly before some network cards: the length or
//! the checksum is wrong. To leave out the last datagram would not help, because the others are equal as well. On these
//! kernels such a batch is sent one datagram at a time, and a batch whose last datagram is shorter in one call.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use nix::sys::utsname;
use socket2::{Domain, SockAddr, Type};
use vpnd_protocol::limits::LEAST_DATAGRAM;

use super::cmsg::{Encoder, Kind};
use super::{Gso, Sent, Socket, Transmit, sys};

/// The limit since Linux 6.9, and in stable kernels of that time.
const MANY: usize = 128;
/// The limit (`UDP_MAX_SEGMENTS`) of earlier kernels.
const FEW: usize = 64;
/// After this many `EINVAL` for a size that fits, something other than the size must be the reason.
const STRIKES: u32 = 2;
/// One refused call in this many batches costs practically nothing.
const RETRY_AFTER: u32 = 4096;

const SEGMENT: Kind = Kind { level: libc::SOL_UDP, name: libc::UDP_SEGMENT };

/// The value must be a `u16`: for an `int` the kernel returns `EINVAL`.
pub(super) fn encode(control: &mut Encoder, segment_size: NonZeroU16) {
    control.push(SEGMENT, &segment_size.get().to_ne_bytes());
}

/// The segment size for the kernel; `None` for a single datagram, because the kernel refuses to segment it.
pub(super) fn segment_size(transmit: &Transmit<'_>) -> Option<NonZeroU16> {
    transmit.segment_size.filter(|size| usize::from(size.get()) < transmit.contents.len())
}

/// Whether one call can probably send the whole batch.
pub(super) fn takes_whole(socket: &Socket, transmit: &Transmit<'_>) -> bool {
    segment_size(transmit).is_none_or(|size| {
        let (len, size) = (transmit.contents.len(), usize::from(size.get()));
        let is_equal = len.is_multiple_of(size);
        !transmit.singly
            && socket.segmentation.allows(Route::of(transmit), len.div_ceil(size), is_equal)
    })
}

/// What one message each takes: the whole batch, or each of its datagrams.
pub(super) fn parts<'a>(
    socket: &Socket,
    transmit: Transmit<'a>,
) -> impl Iterator<Item = Transmit<'a>> + use<'a> {
    let segment = segment_size(&transmit).filter(|_| !takes_whole(socket, &transmit));
    if segment.is_some() {
        socket.segmentation.sent_singly(Route::of(&transmit));
    }
    let len = segment.map_or(transmit.contents.len(), |segment| segment.get().into());
    transmit.contents.chunks(len.max(1)).map(move |contents| Transmit { contents, ..transmit })
}

/// How to handle a datagram that is larger than the first link's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Oversize {
    /// Send the datagram in fragments.
    Fragment,
    /// Do not send the datagram over IPv6.
    Skip,
}

/// Sends a batch in one call if the kernel accepts that, and otherwise one datagram at a time.
pub(super) fn send(
    socket: &Socket,
    transmit: &Transmit<'_>,
    oversize: Oversize,
) -> io::Result<Sent> {
    let len = transmit.contents.len();
    let Some(size) = segment_size(transmit) else {
        return send_each(socket, transmit, len.max(1), oversize);
    };
    let segment = usize::from(size.get());
    if !takes_whole(socket, transmit) {
        socket.segmentation.sent_singly(Route::of(transmit));
        return send_each(socket, transmit, segment, oversize);
    }
    let Err(error) = socket.send_once(transmit, Some(size)) else {
        return Ok(Sent { len, ..Sent::default() });
    };
    let Some(refusal) = Refusal::from_error(&error, segment) else { return Err(error) };
    let sent = send_each(socket, transmit, segment, oversize)?;
    // Only now it is certain that the kernel refused the segmentation and not the destination.
    socket.segmentation.learn(Route::of(transmit), refusal);
    Ok(Sent { too_big: sent.too_big || refusal == Refusal::TooBig, ..sent })
}

/// Sends each datagram separately. A datagram that is too big is skipped, so that the others are sent. Any
/// other error ends the send early, and is returned only if nothing was sent.
fn send_each(
    socket: &Socket,
    transmit: &Transmit<'_>,
    segment: usize,
    oversize: Oversize,
) -> io::Result<Sent> {
    let (mut sent, mut fragmenting) = (Sent::default(), None);
    let may_fragment = oversize == Oversize::Fragment && transmit.destination.is_ipv6();
    for datagram in transmit.contents.chunks(segment) {
        let transmit = Transmit { contents: datagram, ..*transmit };
        let mut result = socket.send_once(&transmit, None);
        if may_fragment && fragmenting.is_none() && is_too_big(&result) {
            // The kernel makes fragments from here to the end of the batch.
            fragmenting = Some(socket.fragmenting()?);
            sent.too_big = true;
            result = socket.send_once(&transmit, None);
        }
        match result {
            Ok(()) => {}
            Err(_) if is_too_big(&result) => {
                sent.too_big = true;
                sent.skipped += 1;
            }
            Err(error) if sent.len == 0 => return Err(error),
            Err(_) => break,
        }
        sent.len += datagram.len();
    }
    Ok(sent)
}

fn is_too_big(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE))
}

/// Why the kernel refused to segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// Segmentation is impossible on this route.
    Route,
    /// The datagram is larger than the MTU.
    TooBig,
    /// `EINVAL` for a size that fits.
    Unclear,
}

impl Refusal {
    fn from_error(error: &io::Error, segment: usize) -> Option<Self> {
        match error.raw_os_error()? {
            libc::EIO => Some(Self::Route),
            libc::EINVAL if segment <= usize::from(LEAST_DATAGRAM) => Some(Self::Unclear),
            libc::EMSGSIZE | libc::EINVAL => Some(Self::TooBig),
            _ => None,
        }
    }
}

/// Identifies a route by its addresses, to recognise it after a refusal. Zero means no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route(u64);

impl Route {
    fn of(transmit: &Transmit<'_>) -> Self {
        Self::towards(transmit.destination.ip(), transmit.source)
    }

    fn towards(to: IpAddr, source: Option<IpAddr>) -> Self {
        let mut hasher = DefaultHasher::new();
        (to, source).hash(&mut hasher);
        Self(hasher.finish().max(1))
    }
}

/// The capabilities of the kernel, and the route that it last refused. The threads share this; if an update is
/// lost, one more send is refused.
#[derive(Debug)]
pub(super) struct Segmentation {
    /// Whether whole batches are sent at all.
    enabled: AtomicBool,
    /// Batches of equal datagrams are sent singly, because this kernel segments them wrongly.
    spares_equal: AtomicBool,
    max_segments: usize,
    refused: AtomicU64,
    batches_left: AtomicU32,
    strikes: AtomicU32,
}

impl Segmentation {
    /// Asks the kernel, over the loopback device, how many datagrams one send may contain. If that device is
    /// down, this uses the smaller number.
    pub(super) fn new(wanted: Gso) -> Self {
        let segmentation = Self::of(if probe_segments(MANY).is_ok() { MANY } else { FEW });
        segmentation.want(wanted);
        segmentation
    }

    /// Sends whole batches from now on, or single datagrams.
    pub(super) fn want(&self, wanted: Gso) {
        let kernel = utsname::uname().ok();
        let release =
            kernel.as_ref().and_then(|kernel| kernel.release().to_str()).unwrap_or_default();
        let spares_equal = wanted == Gso::Auto && spoils_equal(release);
        if spares_equal {
            tracing::info!(
                "Linux {release} may send batches of equal datagrams wrongly, so these leave singly; Linux 7.1.5 has \
                 the correction, and [path] gso = true is right if this kernel has it as well"
            );
        }
        self.spares_equal.store(spares_equal, Relaxed);
        self.enabled.store(wanted != Gso::Off, Relaxed);
    }

    fn of(max_segments: usize) -> Self {
        Self {
            enabled: AtomicBool::new(true),
            spares_equal: AtomicBool::new(false),
            max_segments,
            refused: AtomicU64::new(0),
            batches_left: AtomicU32::new(0),
            strikes: AtomicU32::new(0),
        }
    }

    pub(super) fn max_segments(&self) -> usize {
        self.max_segments
    }

    /// Whether the kernel refuses to segment what is sent there from this address of ours.
    pub(super) fn is_refused(&self, to: IpAddr, source: Option<IpAddr>) -> bool {
        self.is_known_to_refuse(Route::towards(to, source))
    }

    fn is_known_to_refuse(&self, route: Route) -> bool {
        self.refused.load(Relaxed) == route.0 && self.batches_left.load(Relaxed) > 0
    }

    fn allows(&self, route: Route, segments: usize, is_equal: bool) -> bool {
        self.enabled.load(Relaxed)
            && segments <= self.max_segments
            && !(is_equal && self.spares_equal.load(Relaxed))
            && !self.is_known_to_refuse(route)
    }

    /// Counts a batch that was not segmented because this route refused it.
    fn sent_singly(&self, route: Route) {
        if self.is_known_to_refuse(route) {
            let left = self.batches_left.load(Relaxed);
            self.batches_left.store(left.saturating_sub(1), Relaxed);
        }
    }

    fn learn(&self, route: Route, refusal: Refusal) {
        match refusal {
            Refusal::TooBig => {}
            Refusal::Unclear if self.strikes.fetch_add(1, Relaxed) + 1 < STRIKES => {}
            Refusal::Route | Refusal::Unclear => {
                self.strikes.store(0, Relaxed);
                self.batches_left.store(RETRY_AFTER, Relaxed);
                if self.refused.swap(route.0, Relaxed) != route.0 {
                    tracing::info!(
                        "the kernel refuses segmentation offload on this route: datagrams are sent one at a time"
                    );
                }
            }
        }
    }
}

/// Whether this release of Linux segments a batch of equal datagrams wrongly: 7.0 to 7.1.4.
fn spoils_equal(release: &str) -> bool {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let version: [u32; 3] = [next(), next(), next()];
    ([7, 0, 0]..=[7, 1, 4]).contains(&version)
}

/// Sends `segments` one-byte datagrams to a socket that nobody reads.
fn probe_segments(segments: usize) -> io::Result<()> {
    let socket = socket2::Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
    let mut control = Encoder::default();
    encode(&mut control, NonZeroU16::MIN);
    let (to, contents) = (socket.local_addr()?, &[0; MANY][..segments]);
    sys::send_message(&socket, &sys::Outgoing { to, contents, control })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Route = Route(1);
    const THERE: Route = Route(2);

    #[test]
    fn a_refused_route_is_tried_again_later_and_no_other_is_affected() {
        let gso = Segmentation::of(FEW);
        assert!(!gso.is_known_to_refuse(HERE));
        gso.learn(HERE, Refusal::Route);
        assert!(gso.is_known_to_refuse(HERE) && !gso.is_known_to_refuse(THERE));
        assert!(gso.allows(THERE, 2, true));
        let is_refused = |gso: &Segmentation| !gso.allows(HERE, 2, true);
        let refused = (0..2 * RETRY_AFTER).take_while(|_| {
            gso.sent_singly(THERE);
            is_refused(&gso) && is_refused(&gso)
        });
        let refused = refused.inspect(|_| gso.sent_singly(HERE)).count();
        assert_eq!(refused, RETRY_AFTER as usize);
        assert!(!gso.is_known_to_refuse(HERE), "it is tried again");
        gso.learn(HERE, Refusal::Route);
        assert!(!gso.allows(HERE, 2, true));
    }

    #[test]
    fn a_path_that_shrank_is_not_held_against_it() {
        let gso = Segmentation::of(FEW);
        (0..100).for_each(|_| gso.learn(HERE, Refusal::TooBig));
        assert!(gso.allows(HERE, FEW, true));
        assert!(!gso.allows(HERE, FEW + 1, true));
    }

    #[test]
    fn one_unclear_refusal_is_forgiven_two_are_not() {
        let gso = Segmentation::of(FEW);
        gso.learn(HERE, Refusal::Unclear);
        assert!(gso.allows(HERE, 2, true));
        gso.learn(HERE, Refusal::Unclear);
        assert!(!gso.allows(HERE, 2, true));
    }

    #[test]
    fn a_batch_that_this_kernel_spoils_is_not_segmented() {
        let gso = Segmentation { spares_equal: true.into(), ..Segmentation::of(FEW) };
        assert!(!gso.allows(HERE, 2, true));
        assert!(gso.allows(HERE, 2, false));
    }

    #[test]
    fn the_kernels_that_spoil_batches() {
        for (release, expected) in [
            ("6.18.44", false),
            ("7.0.0-1-generic", true),
            ("7.0", true),
            ("7.1-rc4", true),
            ("7.1.4-arch1-1", true),
            ("7.1.5", false),
            ("7.2.0", false),
            ("17.0.1", false),
            ("", false),
            ("seven", false),
        ] {
            assert_eq!(spoils_equal(release), expected, "{release}");
        }
    }

    #[test]
    fn what_an_error_means() {
        let refusal =
            |code, segment| Refusal::from_error(&io::Error::from_raw_os_error(code), segment);
        assert_eq!(refusal(libc::EIO, 1400), Some(Refusal::Route));
        assert_eq!(refusal(libc::EMSGSIZE, 1000), Some(Refusal::TooBig));
        assert_eq!(refusal(libc::EINVAL, 1400), Some(Refusal::TooBig));
        assert_eq!(refusal(libc::EINVAL, 1000), Some(Refusal::Unclear));
        assert_eq!(refusal(libc::EAGAIN, 1000), None);
        assert_eq!(refusal(libc::ENETUNREACH, 1000), None);
    }
}
