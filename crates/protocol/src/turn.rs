//! What befalls an opened datagram in turn: the replay window, the peer's address, key
//! confirmation. One thread at a time, in the order of arrival.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::activity::{Activity, Contested, Source, Tally};
use crate::drop_reason::DropReason;
use crate::edge::Wake;
use crate::inner::Inner;
use crate::message::DATA_HEADER_LEN;
use crate::replay::{Freshness, Window};
use crate::session::{Contents, Generation, Opened, OpeningKey};
use crate::table::{Arrival, Table};
use crate::time::BootTime;

/// The state that goes with the inbound turn.
#[derive(Debug)]
pub struct Turn {
    /// The session that was heard first most recently: the one the peer seals with, whichever
    /// of two crossed ones that is. Only its newest counter moves the endpoint.
    newest: Option<Generation>,
    /// Which addresses were heard first with which counters, lately.
    runs: VecDeque<Run>,
}

/// From this counter of the session on, up to the next run, the address was the first that a counter came from.
#[derive(Clone, Copy, Debug)]
struct Run {
    generation: Generation,
    since: u64,
    from: SocketAddr,
}

/// Runs that are remembered. Only a change of address begins one.
const RUNS: usize = 64;

impl Default for Turn {
    fn default() -> Self {
        Self { newest: None, runs: VecDeque::with_capacity(RUNS) }
    }
}

impl Turn {
    /// Begins a batch: datagrams of one sender, to be accepted in the order they came.
    pub fn begin<'a>(
        &'a mut self,
        table: &'a Table,
        activity: &'a Activity,
        at: Arrival,
    ) -> Accepting<'a> {
        let (moved, here) = (table.is_elsewhere(at), table.is_here(at));
        let (tally, wake) = (Tally::default(), Wake::NO);
        Accepting {
            turn: self,
            table,
            activity,
            at,
            moved,
            here,
            run: None,
            contested: None,
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

    /// A counter that was overtaken came from `from`. If later ones did too, what lies between may have.
    fn extend_run(&mut self, generation: Generation, counter: u64, from: SocketAddr) {
        if self.first_from(generation, counter).is_none_or(|first| first == from) {
            return;
        }
        let of = |run: &&mut Run| (run.generation, run.from) == (generation, from);
        if let Some(run) = self.runs.iter_mut().rev().find(of) {
            run.since = run.since.min(counter);
        }
    }

    /// Where this counter came from first, as far as that is still known.
    fn first_from(&self, generation: Generation, counter: u64) -> Option<SocketAddr> {
        let of = |run: &&Run| run.generation == generation && run.since <= counter;
        self.runs.iter().rev().find(of).map(|run| run.from)
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
    table: &'a Table,
    activity: &'a Activity,
    at: Arrival,
    /// The batch came from where the peer was not before, and nobody was told yet.
    moved: bool,
    /// The batch came from where the peer is, and that was not noted yet.
    here: bool,
    /// The session whose run this batch belongs to is noted.
    run: Option<Generation>,
    /// A copy came in this batch of what had come from another address.
    contested: Option<Contested>,
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
        let freshness = window.accept(opened.counter);
        let freshness = freshness.inspect_err(|_replayed| self.note_copy(key, opened.counter))?;
        self.note_run(key.generation(), freshness, opened.counter);
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
        if let Some(contested) = self.contested {
            self.wake |= self.activity.contested(contested);
        }
        self.wake
    }

    /// Once a batch, but for what was overtaken.
    fn note_run(&mut self, generation: Generation, freshness: Freshness, counter: u64) {
        match freshness {
            Freshness::Late => self.turn.extend_run(generation, counter, self.at.from),
            Freshness::Newest if self.run != Some(generation) => {
                self.run = Some(generation);
                self.turn.note_run(generation, counter, self.at.from);
            }
            Freshness::Newest => {}
        }
    }

    /// What was accepted before came once more: from another address than at first, and one of the two is where
    /// the peer is or was?
    #[cold]
    fn note_copy(&mut self, key: &OpeningKey, counter: u64) {
        let copy = self.at.from;
        let Some(first) = self.turn.first_from(key.generation(), counter) else { return };
        if first != copy && self.table.is_contested(first, copy) {
            self.contested = Some(Contested { first, copy });
        }
    }

    /// The address is stored before the key is confirmed: who sees the confirmation sees it too.
    fn note(&mut self, key: &OpeningKey, freshness: Freshness, moves: bool) {
        let generation = key.generation();
        if !key.confirmed().is_raised() || self.turn.newest.is_none() {
            self.turn.newest = Some(generation);
        }
        let newest = freshness == Freshness::Newest && self.turn.newest == Some(generation);
        if newest && moves && std::mem::take(&mut self.moved) {
            let Arrival { from, local } = self.at;
            self.wake |= self.activity.heard_from(Source { from, local, generation });
        } else if newest && moves && std::mem::take(&mut self.here) {
            self.activity.heard_here();
        }
        self.wake |= key.confirmed().raise();
    }
}
