//! Handles requests from the control socket.

use std::io;
use std::time::{Duration, Instant};

use vpnd_plane::RotateError;
use vpnd_tunnel::clock;

use super::candidate::ABOUT_TO_CHANGE;
use super::{Forgetting, Shell};
use crate::control::{Request, Wanted};
use crate::hand_on;
use crate::metrics::Scrape;
use crate::status::{Fault, PathMtu, Status};

/// How long a data thread may be busy until the client is told that it may have copies of keys.
const HEEDED_WITHIN: Duration = Duration::from_millis(500);
const BUSY: &str = "the session keys are dropped, but a thread that is busy with packets may still have copies of them on its \
                    stack: it wipes it when it pauses";

impl Shell {
    /// Answers a request; the client may have left.
    ///
    /// # Errors
    /// If the event loop fails.
    pub(super) async fn answer(&mut self, request: Request) -> io::Result<()> {
        match request {
            Request::Status(reply) => drop(reply.send(self.status())),
            Request::Ping(reply) => self.ping(reply),
            Request::Capture(wanted, reply) => drop(reply.send(self.capture(wanted))),
            Request::HandOn(stream) => self.offer(stream).await,
            Request::Reload(_, reply) | Request::Rotate { reply, .. }
                if self.candidate.is_some() =>
            {
                drop(reply.send(Err(ABOUT_TO_CHANGE.to_owned())));
            }
            Request::Reload(wanted, reply) => {
                let Wanted { config, keys, source } = *wanted;
                let reloaded = self.become_new(config, keys).await?;
                let reloaded = reloaded.map_err(|refused| refused.to_string());
                if reloaded.is_ok() {
                    // A restart must not go back to what it was before.
                    hand_on::keep_configuration(&source);
                }
                drop(reply.send(logged("reloaded", reloaded)));
            }
            Request::Compare(wanted, reply) => {
                let Wanted { config, keys, .. } = &*wanted;
                drop(reply.send(self.compare(config, keys)));
            }
            Request::Forget(reply) => {
                tracing::info!(
                    "session keys are dropped, as asked: the host is about to be suspended"
                );
                self.plane.forget(clock::now());
                // This thread has used keys too. It wipes its stack before it answers.
                self.has_published = true;
                self.forgetting = Some(reply);
            }
            Request::Rotate { finish, reply } => {
                let what = if finish { "rotation finished" } else { "rotated" };
                drop(reply.send(logged(what, self.rotate(finish))));
            }
        }
        Ok(())
    }

    /// Answers when no thread has the dropped keys any more, not even on its stack.
    pub(super) async fn forgotten(&self, reply: Forgetting) {
        let begun = Instant::now();
        while !self.engine.is_heeded() && begun.elapsed() < HEEDED_WITHIN {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let forgotten = if self.engine.is_heeded() { Ok(()) } else { Err(BUSY.to_owned()) };
        drop(reply.send(logged("forgotten", forgotten)));
    }

    /// Answers a request for the metrics; the client may have left.
    pub(super) fn scraped(&mut self, scrape: Scrape) {
        drop(scrape.send(self.status()));
    }

    fn status(&mut self) -> Status {
        let now = clock::now();
        let peer = self.plane.status(now);
        self.see_counters();
        let state = self.plane.state(now);
        let age = now.boot.saturating_since(state.since);
        let (trouble, zones) = (self.plane.trouble(), &self.diagnostics.zones);
        let fault = trouble.as_ref().map(|trouble| Fault { trouble, zones });
        let mut status = Status::new(
            &self.around.about,
            now.boot.saturating_since(self.started),
            (state, age),
            &peer,
            self.engine.counters(),
            fault,
        )
        .with_ecn_ignored(self.engine.marks_everything())
        .with_path_mtu(
            peer.path_size.as_ref().map(|size| PathMtu::new(size, self.plane.mtu_follows())),
        )
        .with_capture(self.captured(), self.around.running.service.allow_key_log)
        .lacking(&self.around.missing.borrow())
        .bypassed_by(&self.around.bypassed.borrow());
        status.peer.endpoint = peer.endpoint.map(|at| self.diagnostics.zones.show(at));
        status.stopping = self.around.stop.get().is_some();
        status
    }

    fn rotate(&mut self, finish: bool) -> Result<(), String> {
        let why_not = |error| match error {
            RotateError::NotMoved => "no session was established under a next key yet",
            RotateError::NoNextKey => "name the key in `next_private_key_file`, and reload",
        };
        self.plane.rotate(clock::now(), finish).map_err(|error| why_not(error).to_owned())
    }
}

/// Logs what a request has changed, or why it failed.
fn logged(what: &str, result: Result<(), String>) -> Result<(), String> {
    match &result {
        Ok(()) => tracing::info!("{what}, as asked"),
        Err(error) => tracing::warn!("not {what}: {error}"),
    }
    result
}
