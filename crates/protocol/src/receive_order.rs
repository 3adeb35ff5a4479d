//! The in-order section for opened datagrams: the replay window, the peer's address, key confirmation. One
//! thread at a time, in the order of arrival.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::activity::{Activity, Contested, Source, Tally};
use crate::drop_reason::DropReason;
use crate::inner::Inner;
use crate::message::DATA_HEADER_LEN;
use crate::replay::{Freshness, Window};
use crate::session::{Contents, Generation, Opened, OpeningKey};
use crate::table::{Arrival, Table};
use crate::time::BootTime;
use crate::wake_flag::Wake;

/// The state of the in-order section.
#[derive(Debug)]
pub struct ReceiveOrder {
    /// The session whose first datagram arrived most recently. The peer seals with this one, even after
    /// crossed handshakes. Only its newest counter moves the endpoint.
    newest: Option<Generation>,
    /// The addresses that recent counters first came from.
    runs: VecDeque<Run>,
}

/// Counters of the session from `since` up to the next entry first came from this address.
#[derive(Clone, Copy, Debug)]
struct Run {
    generation: Generation,
    since: u64,
    from: SocketAddr,
}

/// The number of entries remembered. Only a change of address begins one.
const RUNS: usize = 64;

impl Default for ReceiveOrder {
    fn default() -> Self {
        Self { newest: None, runs: VecDeque::with_capacity(RUNS) }
    }
}

impl ReceiveOrder {
    /// Begins a batch: datagrams of one sender, to be accepted in the order of arrival.
    pub fn begin<'a>(
        &'a mut self,
        table: &'a Table,
        activity: &'a Activity,
        at: Arrival,
    ) -> Accepting<'a> {
        let (moved, here) = (table.is_elsewhere(at), table.is_here(at));
        let (tally, wake) = (Tally::default(), Wake::NO);
        Accepting {
            order: self,
            table,
            activity,
            at,
            moved,
            here,
            run: None,
            contested: None,
            elsewhere: false,
            tally,
            wake,
        }
    }

    /// The newest counter of the session came from `from` first.
    fn note_run(&mut self, generation: Generation, since: u64, from: SocketAddr) {
        let known = self.runs.iter().rev().find(|run| run.generation == generation);
        if known.is_some_and(|run| run.from == from) {
            return;
        }
        if self.runs.len() == RUNS {
            self.runs.pop_front();
        }
        self.runs.push_back(Run { generation, since, from });
    }

    /// A counter that was overtaken came from `from`. If later ones did too, assume the same for those in
    /// between.
    fn extend_run(&mut self, generation: Generation, counter: u64, from: SocketAddr) {
        if self.first_from(generation, counter).is_none_or(|first| first == from) {
            return;
        }
        let of = |run: &&mut Run| (run.generation, run.from) == (generation, from);
        if let Some(run) = self.runs.iter_mut().rev().find(of) {
            run.since = run.since.min(counter);
        }
    }

    /// The address that this counter first came from, if that is still known.
    fn first_from(&self, generation: Generation, counter: u64) -> Option<SocketAddr> {
        let of = |run: &&Run| run.generation == generation && run.since <= counter;
        self.runs.iter().rev().find(of).map(|run| run.from)
    }
}

/// An authentic control frame for the control plane.
#[derive(Clone, Debug)]
pub struct Framed {
    /// The session it was received on.
    pub(crate) generation: Generation,
    /// What that session may carry.
    pub(crate) contents: Contents,
    /// Datagrams of the session accepted so far, including this one.
    pub(crate) accepted: u64,
    pub(crate) at: Arrival,
    pub(crate) plaintext: Vec<u8>,
}

/// One batch being accepted.
pub struct Accepting<'a> {
    order: &'a mut ReceiveOrder,
    table: &'a Table,
    activity: &'a Activity,
    at: Arrival,
    /// The batch came from a new address of the peer, which was not reported yet.
    moved: bool,
    /// The batch came from the peer's current address, which was not recorded yet.
    here: bool,
    /// The address of this batch's session is recorded.
    run: Option<Generation>,
    /// A datagram of this batch is a copy of one from another address.
    contested: Option<Contested>,
    /// A datagram of this batch came from another address than the path's: the peer may have moved.
    elsewhere: bool,
    tally: Tally,
    wake: Wake,
}

impl Accepting<'_> {
    /// Passes an opened datagram through its replay window and returns its contents, which must not be read
    /// before. `datagram` is the whole message as [`OpeningKey::open`] left it.
    ///
    /// # Errors
    /// [`DropReason::Replayed`], with nothing changed. Or [`DropReason::InnerMalformed`]: such a datagram is
    /// authentic, so it still confirms the session and its source is recorded. A datagram that only tests a
    /// path changes only the window.
    pub fn accept(
        &mut self,
        key: &OpeningKey,
        window: &mut Window,
        opened: &Opened,
        datagram: &[u8],
    ) -> Result<Inner, DropReason> {
        let freshness = window.accept(opened.counter);
        let freshness = freshness.inspect_err(|_replayed| self.note_copy(key, opened.counter))?;
        self.note_run(key.generation(), freshness, opened.counter);
        let plaintext = &datagram[DATA_HEADER_LEN..][..opened.plaintext_len];
        let inner = Inner::read(key.contents(), plaintext);
        if matches!(inner, Ok(Inner::Control { aside: true, .. })) {
            return inner;
        }
        key.count_accepted();
        if key.contents() != Contents::Bootstrap {
            self.note(key, freshness, !matches!(inner, Ok(Inner::Control { closes: true, .. })));
        }
        self.tally.datagrams += 1;
        let data = inner.map_or_else(|e| e == DropReason::InnerMalformed, |inner| inner.is_data());
        self.tally.packets += u64::from(data);
        self.tally.bytes += datagram.len() as u64;
        inner
    }

    /// Extracts a control frame that [`Accepting::accept`] found in `datagram`, for the control plane.
    pub fn frame(&self, key: &OpeningKey, datagram: &[u8], len: usize) -> Framed {
        Framed {
            generation: key.generation(),
            contents: key.contents(),
            accepted: key.accepted(),
            at: self.at,
            plaintext: datagram[DATA_HEADER_LEN..][..len].to_vec(),
        }
    }

    /// The number of datagrams of this batch accepted so far.
    pub const fn datagrams(&self) -> u64 {
        self.tally.datagrams
    }

    /// Ends the batch: its totals become visible to the control plane.
    pub fn end(mut self, now: BootTime) -> Wake {
        self.wake |= self.activity.received(now, self.tally);
        if self.elsewhere {
            self.activity.heard_elsewhere(now);
        }
        if let Some(contested) = self.contested {
            if self.table.leads_to(contested.copy) {
                self.activity.copied_there();
            }
            self.wake |= self.activity.contested(contested);
        }
        self.wake
    }

    /// Records the source address, once per batch except for overtaken datagrams.
    fn note_run(&mut self, generation: Generation, freshness: Freshness, counter: u64) {
        match freshness {
            Freshness::Late => self.order.extend_run(generation, counter, self.at.from),
            Freshness::Newest if self.run != Some(generation) => {
                self.run = Some(generation);
                self.order.note_run(generation, counter, self.at.from);
            }
            Freshness::Newest => {}
        }
    }

    /// A datagram that was accepted before came again: records a contest if it came from another address than
    /// the first time, and one of the two is the peer's current or former address.
    #[cold]
    fn note_copy(&mut self, key: &OpeningKey, counter: u64) {
        let copy = self.at.from;
        let Some(first) = self.order.first_from(key.generation(), counter) else { return };
        if first != copy && self.table.is_contested(first, copy) {
            self.contested = Some(Contested { first, copy });
        }
    }

    /// Stores the address before it confirms the key, so that a thread that sees the confirmation sees the
    /// address too.
    fn note(&mut self, key: &OpeningKey, freshness: Freshness, moves: bool) {
        let generation = key.generation();
        if !key.confirmed().is_raised() || self.order.newest.is_none() {
            self.order.newest = Some(generation);
        }
        let newest = freshness == Freshness::Newest && self.order.newest == Some(generation);
        if newest && moves && std::mem::take(&mut self.moved) {
            let Arrival { from, local } = self.at;
            self.wake |= self.activity.heard_from(Source { from, local, generation });
            if self.table.leads_to(from) {
                self.activity.heard_there();
            } else {
                self.elsewhere = true;
            }
        } else if newest && moves && std::mem::take(&mut self.here) {
            self.activity.heard_here();
        }
        self.wake |= key.confirmed().raise();
    }
}
