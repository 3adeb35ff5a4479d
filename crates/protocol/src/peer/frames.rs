//! Control frames: the two ends announce their properties and a shutdown, and measure round trip and loss. The
//! security of the tunnel depends on none of these.

use std::time::Duration;

use super::window::Counted;
use super::{Change, Diagnosis, Peer};
use crate::drop_reason::DropReason;
use crate::frame::{self, ANSWERS_PROBES, ControlFrame, Frame, Hello, Ping, Pong, Record, Release};
use crate::receive_order::Framed;
use crate::session::{Contents, Generation};
use crate::time::{BootTime, Now};

/// The least time between two measurements while data flows.
const MEASURE_EVERY: Duration = Duration::from_secs(1);
/// The name of this release, as announced to the peer.
const RELEASE: &str = concat!("vpnd ", env!("CARGO_PKG_VERSION"));

/// What the peer announces about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The name of its release, in printable characters.
    pub release: String,
    /// Its optional features, one bit each.
    pub features: u32,
    /// The MTU of its device.
    pub mtu: u16,
    /// The hardware address of its device, if it announced one.
    pub mac: Option<[u8; 6]>,
}

/// How many of the datagrams sent in one direction of a session arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// The number of datagrams sent.
    pub sent: u64,
    /// The number of these that arrived.
    pub arrived: u64,
}

/// The quality of the path, according to the last answered PING of the current session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// The round trip time.
    pub round_trip: Duration,
    /// From us to the peer.
    pub outward: Loss,
    /// From the peer to us.
    pub inward: Loss,
}

impl Quality {
    /// The estimated share of PINGs that get no answer because they or their answers are lost.
    pub(super) fn loss_there_and_back(&self) -> f64 {
        1.0 - self.outward.arriving() * self.inward.arriving()
    }
}

impl Loss {
    /// How many of them have not arrived.
    pub const fn missing(self) -> u64 {
        self.sent.saturating_sub(self.arrived)
    }

    /// The share that arrived.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn arriving(self) -> f64 {
        if self.sent == 0 { 1.0 } else { self.arrived as f64 / self.sent as f64 }
    }
}

/// The measurements by PING and PONG on the current session.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    sequence: u32,
    asked: Option<Asked>,
    measured_at: Option<BootTime>,
    pub(super) quality: Option<Quality>,
}

/// A PING that may still be answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    sequence: u32,
    at: BootTime,
    sent: u64,
}

/// A PING that can only be answered by an end that received it. Its sequence number alone could be guessed,
/// because it is a counter; and the peer itself might pretend to be at an address where it is not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Challenge {
    sequence: u32,
    random: u64,
}

impl Challenge {
    /// The random bits replace the timestamp, which the PONG repeats unchanged and the peer does not interpret.
    pub(super) fn ping(self, sent: u64) -> Ping {
        Ping::new(self.sequence, self.random, sent)
    }

    pub(super) const fn sequence(self) -> u32 {
        self.sequence
    }

    pub(super) fn is_met_by(self, pong: &Pong) -> bool {
        self.sequence == pong.sequence.get() && self.random == pong.timestamp.get()
    }
}

impl Gauge {
    /// A session has become current: starts counting again.
    pub(super) fn begin(&mut self) {
        *self = Self { sequence: self.sequence, measured_at: self.measured_at, ..Self::default() };
    }

    /// A sequence number that no PING had before.
    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn ask(&mut self, now: BootTime, sent: u64) -> Ping {
        let sequence = self.next_sequence();
        self.asked = Some(Asked { sequence, at: now, sent });
        self.measured_at = Some(now);
        Ping::new(sequence, now.as_nanos(), sent)
    }

    /// Takes the answer to the last PING. `arrived` is the number of datagrams received on the session so far.
    /// Returns the measurement.
    fn take(&mut self, now: BootTime, pong: &Pong, arrived: u64) -> Option<Quality> {
        let answers = |asked: &mut Asked| asked.sequence == pong.sequence.get();
        let asked = self.asked.take_if(answers)?;
        let loss = |sent: u64, arrived: u64| Loss { sent, arrived: arrived.min(sent) };
        self.quality = Some(Quality {
            round_trip: now.saturating_since(asked.at),
            outward: loss(asked.sent, pong.received.get()),
            inward: loss(pong.sent.get(), arrived),
        });
        self.quality
    }
}

impl Peer {
    /// Takes a control frame that the data path has authenticated.
    ///
    /// # Errors
    /// The reason why the frame or one of its records was ignored, for the counters. The other records took
    /// effect.
    pub fn handle_frame(&mut self, now: Now, framed: &Framed) -> Result<(), DropReason> {
        self.follow_flags(now);
        let result = self.take_frame(now, framed);
        self.handle_wake(now);
        result
    }

    /// A new challenge, for a PING that checks the peer's address.
    pub(super) fn next_challenge(&mut self) -> Challenge {
        let sequence = self.paths.gauge.next_sequence();
        Challenge { sequence, random: self.rng.next_u64() }
    }

    /// Announces that we are shutting down, if the session carries frames.
    pub fn close(&mut self, now: Now) {
        if self.frames_flow() {
            self.send_on_current(now, &ControlFrame::begin().close().end());
        }
    }

    fn take_frame(&mut self, now: Now, framed: &Framed) -> Result<(), DropReason> {
        let Frame::Control(records) = frame::parse(&framed.plaintext)? else {
            return Err(DropReason::UnknownFrame);
        };
        let (mut taken, mut asked, mut greeted) = (Ok(()), false, false);
        for record in records {
            // One answer to each frame, so that the answer is never longer than the frame.
            let asks = matches!(record, Record::Ping(_) | Record::Probe(_));
            if asks && std::mem::replace(&mut asked, true) {
                continue;
            }
            // Only the first HELLO of a frame counts.
            if matches!(record, Record::Hello(_)) && std::mem::replace(&mut greeted, true) {
                continue;
            }
            // A bad record does not prevent the following ones from being handled.
            let one = self.take_record(now, framed, record);
            taken = taken.and(one);
        }
        taken
    }

    fn take_record(
        &mut self,
        now: Now,
        framed: &Framed,
        record: Record<'_>,
    ) -> Result<(), DropReason> {
        let upgrade = matches!(record, Record::PqInit(_) | Record::PqResp(_));
        if upgrade != (framed.contents == Contents::Bootstrap) {
            return Err(DropReason::NotUpgraded);
        }
        match record {
            Record::PqInit(chunk) => self.take_key(now, framed, chunk),
            Record::PqResp(answer) => self.take_answer(now, framed, answer),
            Record::Close => self.take_close(now, framed.generation),
            Record::Hello(hello) => self.take_hello(framed.generation, &hello),
            Record::Ping(ping) => self.answer_ping(now, framed, &ping),
            Record::Pong(pong) => self.take_pong(now, framed, &pong),
            Record::Probe(token) => self.answer_probe(now, framed, &token),
            Record::Probed(token) => self.take_probed(now, framed, &token),
            Record::Unknown(_) => Err(DropReason::UnknownFrame),
        }
    }

    /// The peer is shutting down: this session and older ones are over. A newer one belongs to the peer after
    /// its restart.
    fn take_close(&mut self, now: Now, closed: Generation) -> Result<(), DropReason> {
        if self.keyring.close(closed) {
            self.forget_announcements();
            self.timers.settle_answer();
            self.events.push_back(Change::Closed.into());
            self.declare_dead(now);
        }
        Ok(())
    }

    fn take_hello(&mut self, on: Generation, hello: &Hello<'_>) -> Result<(), DropReason> {
        if !self.is_live(on) {
            return Err(DropReason::Expired);
        }
        let Hello { features, mtu, mac, .. } = *hello;
        let release = hello.release.as_str().to_owned();
        self.paths.alternatives.answers = features & ANSWERS_PROBES != 0;
        self.greeting = Some(Greeting { release, features, mtu, mac });
        self.compare_devices(mtu, mac);
        Ok(())
    }

    /// Compares the TAP devices of both ends. With different MTUs, longer frames are lost at the end with the
    /// smaller one. Two stations with the same hardware address cannot communicate.
    pub(super) fn compare_devices(&mut self, mtu: u16, mac: Option<[u8; 6]>) {
        let Some(own) = self.device.mac else { return };
        let ours = self.device.mtu;
        self.events.push_back(
            Diagnosis::Devices {
                same_mac: mac.filter(|mac| *mac == own),
                mtus: (mtu != ours).then_some((ours, mtu)),
            }
            .into(),
        );
    }

    /// The number of received datagrams is that of the PING's session, the number of sent ones that of the
    /// session we seal on. These sessions differ after crossed handshakes and during a rekey.
    fn answer_ping(&mut self, now: Now, framed: &Framed, ping: &Ping) -> Result<(), DropReason> {
        let Some(current) = self.keyring.current().filter(|_| self.frames_flow()) else {
            return Ok(());
        };
        let sent = current.sealing.counted() + 1;
        let pong = ping.answer(framed.accepted, sent);
        self.send_on_current(now, &ControlFrame::begin().pong(&pong).end());
        Ok(())
    }

    fn take_pong(&mut self, now: Now, framed: &Framed, pong: &Pong) -> Result<(), DropReason> {
        self.paths.answered(now.boot, framed.at.from);
        self.settle_contest(now, pong);
        self.follow_pong(now, framed, pong);
        self.take_echo(now, pong);
        let found = self.paths.gauge.take(now.boot, pong, framed.accepted);
        if let (Some(found), Some(to)) = (found, self.endpoint()) {
            let current = self.keyring.current().map(|current| current.opening.generation());
            let of = Counted { outward: current.unwrap_or_default(), inward: framed.generation };
            self.window.take(now.boot, to, of, found);
            self.compare_segmentation(now, of.outward, found.outward);
        }
        Ok(())
    }

    /// Forgets what the peer announced, and the measurements: their session is over.
    pub(super) fn forget_announcements(&mut self) {
        self.greeting = None;
        self.paths.gauge.begin();
    }

    /// Sends the first datagram of a session, which confirms the session to the peer.
    pub(super) fn greet(&mut self, now: Now) -> bool {
        if self.frames_flow() {
            let hello = ControlFrame::begin();
            let frame = self.hello(hello).end();
            return self.send_on_current(now, &frame);
        }
        self.send_keepalive(now)
    }

    /// Sends the responder's HELLO, if the session carries frames.
    pub(super) fn greet_back(&mut self, now: Now) {
        if self.frames_flow() {
            self.greet(now);
        }
    }

    /// Sends a sign of life: a PING if the session carries frames, otherwise a keepalive. Returns whether there
    /// was a session to send it on.
    pub(super) fn send_sign_of_life(&mut self, now: Now) -> bool {
        let Some(current) = self.keyring.current().filter(|_| self.frames_flow()) else {
            return self.send_keepalive(now);
        };
        let sent = current.sealing.counted() + 1;
        let ping = self.paths.gauge.ask(now.boot, sent);
        let mut frame = ControlFrame::begin().ping(&ping);
        if self.greeting.is_none() {
            frame = self.hello(frame);
        }
        self.send_on_current(now, &frame.end())
    }

    /// Measures the path while data flows. An idle tunnel stays silent.
    pub(super) fn measure(&mut self, now: Now) {
        let seen = self.timers.seen();
        let data = seen.data_sent.max(seen.data_received);
        let due = |at: BootTime| now.boot.saturating_since(at) >= MEASURE_EVERY;
        let flows = |at: BootTime| now.boot.saturating_since(at) < MEASURE_EVERY;
        let is_due = data.is_some_and(flows) && self.paths.gauge.measured_at.is_none_or(due);
        let is_asked = self.asks_for_segmentation(now.boot);
        if self.frames_flow() && (is_due || is_asked) {
            self.send_sign_of_life(now);
        }
    }

    fn hello(&self, frame: ControlFrame) -> ControlFrame {
        let (mtu, mac) = (self.device.mtu, self.device.mac);
        match Release::new(RELEASE) {
            Some(release) => {
                let features = ANSWERS_PROBES;
                frame.hello(&Hello { release, features, mtu, mac })
            }
            None => frame,
        }
    }

    /// Whether the current session carries frames, which is so between two vpnd.
    pub(super) fn frames_flow(&self) -> bool {
        let current = self.keyring.current();
        current.is_some_and(|session| session.sealing.carries_frames())
    }

    fn is_live(&self, generation: Generation) -> bool {
        self.keyring.opening().any(|key| key.generation() == generation)
    }
}
