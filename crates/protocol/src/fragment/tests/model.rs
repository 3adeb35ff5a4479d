//! Reassembly without regard to cost: all fragments are kept apart, and every rule is checked on all of them
//! each time.

use super::super::{FRAGMENTS_WITHIN, Fragment, WAITING_PACKETS};
use crate::drop_reason::DropReason;
use crate::session::Generation;
use crate::time::BootTime;

pub(super) struct Model {
    largest: usize,
    /// Oldest first.
    waiting: Vec<Waiting>,
    died: usize,
}

struct Waiting {
    session: Generation,
    first: u64,
    since: BootTime,
    fragments: Vec<Told>,
}

struct Told {
    index: u8,
    count: u8,
    bytes: Vec<u8>,
}

impl Model {
    pub(super) fn new(largest: usize) -> Self {
        Self { largest, waiting: Vec::new(), died: 0 }
    }

    pub(super) fn insert(
        &mut self,
        session: Generation,
        counter: u64,
        Fragment { index, count, bytes }: Fragment<'_>,
        now: BootTime,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        self.expire(now);
        let told = Told { index, count, bytes: bytes.to_vec() };
        if counter < index.into() {
            return Err(DropReason::FragmentMalformed);
        }
        if !is_possible(std::slice::from_ref(&told), self.largest) {
            return Err(DropReason::LargerThanMtu);
        }
        let first = counter - u64::from(index);
        let at = self.place(session, first, now);
        let fragments = &mut self.waiting[at].fragments;
        fragments.push(told);
        if !is_possible(fragments, self.largest) {
            fragments.pop();
            return Err(DropReason::FragmentConflicts);
        }
        if fragments.len() < count.into() {
            return Ok(None);
        }
        let mut fragments = self.waiting.remove(at).fragments;
        fragments.sort_by_key(|fragment| fragment.index);
        Ok(Some(fragments.into_iter().flat_map(|fragment| fragment.bytes).collect()))
    }

    fn place(&mut self, session: Generation, first: u64, since: BootTime) -> usize {
        let known = |waiting: &Waiting| (waiting.session, waiting.first) == (session, first);
        if let Some(at) = self.waiting.iter().position(known) {
            return at;
        }
        if self.waiting.len() == WAITING_PACKETS {
            self.waiting.remove(0);
            self.died += 1;
        }
        self.waiting.push(Waiting { session, first, since, fragments: Vec::new() });
        self.waiting.len() - 1
    }

    pub(super) fn purge(&mut self, now: BootTime) -> usize {
        self.expire(now);
        std::mem::take(&mut self.died)
    }

    fn expire(&mut self, now: BootTime) {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| now.saturating_since(waiting.since) < FRAGMENTS_WITHIN);
        self.died += before - self.waiting.len();
    }
}

/// Whether a packet of at most `largest` bytes can have all these fragments.
fn is_possible(fragments: &[Told], largest: usize) -> bool {
    let count = fragments[0].count;
    let twice =
        |at: usize| fragments[..at].iter().any(|before| before.index == fragments[at].index);
    if fragments.iter().any(|fragment| fragment.count != count) || (0..fragments.len()).any(twice) {
        return false;
    }
    let (last, others): (Vec<&Told>, Vec<_>) =
        fragments.iter().partition(|fragment| fragment.index == count - 1);
    let length = |fragments: &[&Told]| fragments.first().map_or(1, |fragment| fragment.bytes.len());
    let (last, each) = (length(&last), length(&others));
    let alike = others.iter().all(|fragment| fragment.bytes.len() == each);
    alike && usize::from(count - 1) * each + last <= largest
}
