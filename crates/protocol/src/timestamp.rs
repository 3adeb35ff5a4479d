//! TAI64N timestamps, which make each initiation newer than the last; and the high-water mark of our own
//! ones. Our timestamps always exceed it, so that the peer still accepts our initiations after our clock was
//! set back.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::time::WallTime;

/// The second of 1970-01-01T00:00:00Z. TAI was 10 s ahead when leap seconds began. The kernel and
/// wireguard-go ignore those since, so all these timestamps are comparable.
const EPOCH: u64 = (1 << 62) + 10;
/// TAI64 reserves the seconds after this one.
const LAST_SECOND: u64 = (1 << 63) - 1;
const NANOS_PER_SECOND: u32 = 1_000_000_000;
/// The resolution of a timestamp, about 17 ms: like the reference, it reveals no more of the clock.
const STEP: u32 = 1 << 24;

/// Issues the timestamps of our initiations, each newer than all before.
#[derive(Debug)]
pub struct Stamper {
    last: Option<Timestamp>,
}

impl Stamper {
    /// Continues after `floor`, the last timestamp that an earlier run sent.
    pub const fn new(floor: Option<Timestamp>) -> Self {
        Self { last: floor }
    }

    /// The last timestamp that was issued, by this run or an earlier one.
    pub(crate) const fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// The timestamp for an initiation at `wall`: that of the clock, or the first one after the last sent,
    /// whichever is later. The last possible timestamp repeats.
    pub fn next(&mut self, wall: WallTime) -> Timestamp {
        let floor = self.last.map(Timestamp::successor);
        let stamp = Timestamp::from_wall(wall).max(floor.unwrap_or(Timestamp::ZERO));
        *self.last.insert(stamp)
    }
}

/// A TAI64N timestamp; a later one compares as greater, and so do its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Timestamp {
    seconds: U64,
    nanos: U32,
}

impl Timestamp {
    const ZERO: Self = Self { seconds: U64::ZERO, nanos: U32::ZERO };

    /// The timestamp of a time, rounded down to 2^24 ns.
    pub fn from_wall(wall: WallTime) -> Self {
        let since = wall.since_unix();
        let seconds = EPOCH.saturating_add(since.as_secs()).min(LAST_SECOND);
        Self::floored(seconds, since.subsec_nanos())
    }

    /// A timestamp as received, with any value.
    pub const fn from_bytes(bytes: [u8; 12]) -> Self {
        zerocopy::transmute!(bytes)
    }

    /// The timestamp in its wire format.
    pub const fn as_bytes(&self) -> &[u8; 12] {
        zerocopy::transmute_ref!(self)
    }

    /// The first timestamp after this one that is a multiple of 2^24 ns; the last possible one is its own
    /// successor.
    fn successor(self) -> Self {
        let (seconds, nanos) = (self.seconds.get(), self.nanos.get().saturating_add(STEP));
        if nanos < NANOS_PER_SECOND {
            return Self::floored(seconds, nanos);
        }
        if seconds < LAST_SECOND { Self::floored(seconds + 1, 0) } else { self }
    }

    fn floored(seconds: u64, nanos: u32) -> Self {
        Self { seconds: U64::new(seconds), nanos: U32::new(nanos - nanos % STEP) }
    }
}

/// TAI64N's external form: `@` and 24 hexadecimal digits.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{:016x}{:08x}", self.seconds.get(), self.nanos.get())
    }
}

impl FromStr for Timestamp {
    type Err = NotATimestamp;

    fn from_str(text: &str) -> Result<Self, NotATimestamp> {
        let digits = text.strip_prefix('@').ok_or(NotATimestamp::Form)?;
        if digits.len() != 24 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotATimestamp::Form);
        }
        let (seconds, nanos) = digits.split_at(16);
        let seconds = u64::from_str_radix(seconds, 16).map_err(|_| NotATimestamp::Form)?;
        let nanos = u32::from_str_radix(nanos, 16).map_err(|_| NotATimestamp::Form)?;
        if seconds > LAST_SECOND || nanos >= NANOS_PER_SECOND {
            return Err(NotATimestamp::Range);
        }
        Ok(Self { seconds: U64::new(seconds), nanos: U32::new(nanos) })
    }
}

/// Why a text is not a timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotATimestamp {
    /// Not the external form.
    #[error("not a TAI64N timestamp: expected @ and 24 hexadecimal digits")]
    Form,
    /// The form is right, but the values are out of range.
    #[error("not a TAI64N timestamp: its seconds or nanoseconds are out of range")]
    Range,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn wall(seconds: u64, nanos: u32) -> WallTime {
        WallTime::from_unix(Duration::new(seconds, nanos))
    }

    fn any_wall() -> impl Strategy<Value = WallTime> {
        (any::<u64>(), 0..NANOS_PER_SECOND).prop_map(|(s, n)| wall(s >> (s % 64), n))
    }

    #[test]
    fn a_moment_has_the_bytes_of_the_reference() {
        let stamp = Timestamp::from_wall(wall(1_700_000_000, 123_456_789));
        assert_eq!(stamp.to_string(), "@400000006553f10a07000000");
        assert_eq!(stamp.as_bytes()[..9], [0x40, 0, 0, 0, 0x65, 0x53, 0xf1, 0x0a, 7]);
    }

    #[test]
    fn a_clock_set_back_does_not_set_the_stamps_back() {
        let mut before = Stamper::new(None);
        let last = before.next(wall(2_000_000_000, 0));
        let mut after = Stamper::new(Some(last));
        assert!(after.next(wall(0, 0)) > last);
        assert_eq!(after.next(wall(0, 0)).nanos.get(), 2 * STEP);
        let caught_up = wall(2_000_000_001, 0);
        assert_eq!(after.next(caught_up), Timestamp::from_wall(caught_up));
    }

    #[test]
    fn the_last_stamp_repeats() {
        let end = WallTime::from_unix(Duration::MAX);
        let mut stamper = Stamper::new(None);
        let last = stamper.next(end);
        assert_eq!(stamper.next(end), last);
        assert_eq!(last.to_string().parse(), Ok(last));
    }

    #[test]
    fn a_damaged_floor_is_refused() {
        let form = [
            "",
            "@",
            "@400000006553f10a0700000",
            "400000006553f10a07000000",
            "@+00000006553f10a07000000",
        ];
        for text in form {
            assert_eq!(text.parse::<Timestamp>(), Err(NotATimestamp::Form), "{text}");
        }
        for text in ["@800000006553f10a07000000", "@400000006553f10a3b9aca00"] {
            assert_eq!(text.parse::<Timestamp>(), Err(NotATimestamp::Range), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_stamp_is_newer_than_the_last_and_not_behind_the_clock(
            floor in proptest::option::of(any_wall()),
            moments in proptest::collection::vec(any_wall(), 1..50),
        ) {
            let mut last = floor.map(Timestamp::from_wall);
            let mut stamper = Stamper::new(last);
            for wall in moments {
                let stamp = stamper.next(wall);
                prop_assert!(stamp >= Timestamp::from_wall(wall));
                prop_assert!(last.is_none_or(|last| stamp > last) || stamp.seconds == LAST_SECOND);
                prop_assert_eq!(stamp.nanos.get() % STEP, 0);
                prop_assert!(stamp.nanos.get() < NANOS_PER_SECOND);
                last = Some(stamp);
            }
        }

        #[test]
        fn a_successor_is_newer_whatever_the_bytes(bytes in any::<[u8; 12]>()) {
            let stamp = Timestamp::from_bytes(bytes);
            prop_assert!(stamp.successor() > stamp || stamp.seconds.get() >= LAST_SECOND);
        }

        #[test]
        fn order_is_that_of_the_bytes(a in any::<[u8; 12]>(), b in any::<[u8; 12]>()) {
            prop_assert_eq!(Timestamp::from_bytes(a).cmp(&Timestamp::from_bytes(b)), a.cmp(&b));
            prop_assert_eq!(*Timestamp::from_bytes(a).as_bytes(), a);
        }

        #[test]
        fn the_external_form_reads_back(moment in any_wall()) {
            let stamp = Timestamp::from_wall(moment);
            prop_assert_eq!(stamp.to_string().parse(), Ok(stamp));
        }
    }
}
