//! A kill switch that outlives its vpnd: handed on to the next start, or removed if vpnd is not started in
//! time.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rtnetlink::packet_core::NLM_F_REQUEST;
use rtnetlink::sys::Socket;

use crate::journal::Journal;
use crate::undo::Change;

/// The remaining blackhole routes and rules, and the means to remove them. Removing them needs no runtime, and
/// no privilege other than `CAP_NET_ADMIN`.
#[derive(Debug)]
#[must_use = "it drops until the next start"]
pub struct Leftover {
    socket: Arc<Socket>,
    guards: Vec<Change>,
    /// Whether the blackholes are the only objects left.
    alone: bool,
    journal: Journal,
    text: Vec<u8>,
}

impl Leftover {
    /// `None` if there is no journal, which would show whether the next start has begun.
    pub(crate) fn new(
        socket: &Arc<Socket>,
        guards: Vec<Change>,
        alone: bool,
        mut journal: Journal,
    ) -> Option<Self> {
        let text = journal.let_go()?;
        Some(Self { socket: Arc::clone(socket), guards, alone, journal, text })
    }

    /// The contents that another process needs, beside the journal, to call [`take_over`](Self::take_over).
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Creates the same object in another process of the same network namespace. The `journal` has had the
    /// contents `text` since it was released.
    ///
    /// # Errors
    ///
    /// If the text belongs to another network namespace, or the kernel gives no netlink socket.
    pub fn take_over(journal: File, text: Vec<u8>) -> io::Result<Self> {
        let mut journal = Journal::take_over(journal, &text)?;
        let changes = journal.left_behind();
        let (mut guards, rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(Change::is_guard);
        guards.reverse();
        let socket = Arc::new(crate::connected()?);
        Ok(Self { socket, guards, alone: rest.is_empty(), journal, text })
    }

    /// Waits, and then removes everything, unless a start has taken it over in the meantime. `delete` removes
    /// the packet filter's table of the kill switch, if there is one; no start can begin before it returns. If
    /// `delete` fails, the journal still names the table.
    pub fn open_after(mut self, wait: Duration, delete: impl FnOnce(&str) -> io::Result<()>) {
        std::thread::sleep(wait);
        if !self.journal.take_back(&self.text) {
            return;
        }
        for guard in &self.guards {
            let (kind, payload) = guard.encode();
            // An object that is already gone is fine, and nobody is left to receive other errors.
            let _sent = framed(kind, &payload).map(|message| self.socket.send(&message, 0));
            self.journal.remove(guard);
        }
        if let Some(table) = self.journal.table() {
            match delete(table) {
                Ok(()) => self.journal.set_table(None),
                Err(error) => still_drops(&error),
            }
        }
        if self.alone && self.journal.table().is_none() {
            self.journal.end();
        }
    }
}

pub(crate) fn still_drops(error: &io::Error) {
    tracing::warn!(
        "cannot delete the kill switch's nftables table, which still drops packets: {error}; `vpnd release` tries \
         again"
    );
}

/// One message with its netlink header; `None` if it is too long for one message.
fn framed(kind: u16, payload: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 16;
    let length = u32::try_from(HEADER + payload.len()).ok()?;
    let mut message = Vec::with_capacity(HEADER + payload.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(payload);
    Some(message)
}
