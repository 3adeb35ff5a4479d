//! What befalls an opened datagram in turn: the replay window, the peer's address, key
//! confirmation. One thread at a time, in the order of arrival.

use crate::activity::{Activity, Source, Tally};
use crate::drop_reason::DropReason;
use crate::edge::Wake;
use crate::inner::Inner;
use crate::message::DATA_HEADER_LEN;
use crate::replay::{Freshness, Window};
use crate::session::{Contents, Generation, Opened, OpeningKey};
use crate::table::{Arrival, Table};
use crate::time::BootTime;

/// The state that goes with the inbound turn.
#[derive(Debug, Default)]
pub struct Turn {
    /// The session that was heard first most recently: the one the peer seals with, whichever
    /// of two crossed ones that is. Only its newest counter moves the endpoint.
    newest: Option<Generation>,
}

impl Turn {
    /// Begins a batch: datagrams of one sender, to be accepted in the order they came.
    pub fn begin<'a>(
        &'a mut self,
        table: &'a Table,
        activity: &'a Activity,
        at: Arrival,
    ) -> Accepting<'a> {
        let moved = table.is_elsewhere(at);
        Accepting { turn: self, activity, at, moved, tally: Tally::default(), wake: Wake::NO }
    }
}

/// An authentic control frame on its way to the control plane.
#[derive(Clone, Debug)]
pub struct Framed {
    /// The session that it came on.
    pub(crate) generation: Generation,
    /// What that session may carry.
    pub(crate) contents: Contents,
    /// Datagrams of the session accepted so far, this one's among them.
    pub(crate) accepted: u64,
    pub(crate) at: Arrival,
    pub(crate) plaintext: Vec<u8>,
}

/// One batch being accepted.
pub struct Accepting<'a> {
    turn: &'a mut Turn,
    activity: &'a Activity,
    at: Arrival,
    /// The batch came from where the peer was not before, and nobody was told yet.
    moved: bool,
    tally: Tally,
    wake: Wake,
}

impl Accepting<'_> {
    /// Passes an opened datagram through its window and says what it carries; only now may its
    /// contents be looked at. `datagram` is the whole message as [`OpeningKey::open`] left it.
    ///
    /// # Errors
    /// [`DropReason::Replayed`], with nothing changed; or [`DropReason::InnerMalformed`] after the
    /// session was confirmed and the peer's address noted: the datagram was authentic all the
    /// same.
    pub fn accept(
        &mut self,
        key: &OpeningKey,
        window: &mut Window,
        opened: &Opened,
        datagram: &[u8],
    ) -> Result<Inner, DropReason> {
        let freshness = window.accept(opened.counter)?;
        key.count_accepted();
        let plaintext = &datagram[DATA_HEADER_LEN..][..opened.plaintext_len];
        let inner = Inner::read(key.contents(), plaintext);
        if key.contents() != Contents::Bootstrap {
            self.note(key, freshness, !matches!(inner, Ok(Inner::Control { closes: true, .. })));
        }
        self.tally.datagrams += 1;
        let data = inner.map_or_else(|e| e == DropReason::InnerMalformed, |inner| inner.is_data());
        self.tally.packets += u64::from(data);
        self.tally.bytes += datagram.len() as u64;
        inner
    }

    /// A control frame that [`Accepting::accept`] found in `datagram`, for the control plane.
    pub fn frame(&self, key: &OpeningKey, datagram: &[u8], len: usize) -> Framed {
        Framed {
            generation: key.generation(),
            contents: key.contents(),
            accepted: key.accepted(),
            at: self.at,
            plaintext: datagram[DATA_HEADER_LEN..][..len].to_vec(),
        }
    }

    /// How many datagrams of this batch were accepted so far.
    pub const fn datagrams(&self) -> u64 {
        self.tally.datagrams
    }

    /// Ends the batch: its tally becomes visible to the control plane.
    pub fn end(mut self, now: BootTime) -> Wake {
        self.wake |= self.activity.received(now, self.tally);
        self.wake
    }

    /// The address is stored before the key is confirmed: who sees the confirmation sees it too.
    fn note(&mut self, key: &OpeningKey, freshness: Freshness, moves: bool) {
        let generation = key.generation();
        if !key.confirmed().is_raised() || self.turn.newest.is_none() {
            self.turn.newest = Some(generation);
        }
        let newest = freshness == Freshness::Newest && self.turn.newest == Some(generation);
        if newest && moves && self.moved {
            let Arrival { from, local } = self.at;
            self.wake |= self.activity.heard_from(Source { from, local, generation });
            self.moved = false;
        }
        self.wake |= key.confirmed().raise();
    }
}
