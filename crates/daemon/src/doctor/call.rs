//! Calls the peer as a start would, with the real key and from the real port, and judges the answer.
//!
//! The session that the peer offers is never used, and its timestamp is stored, so that the tunnel's next call is
//! newer. The peer does nothing but forget the session.

use std::io;
use std::time::{Duration, Instant};

use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use vpnd_crypto::{Algorithm, PresharedKey, PublicKey};
use vpnd_protocol::call::{Call, Reply};
use vpnd_protocol::handshake::Identity;
use vpnd_protocol::profile::{Kem, Mode, Profile};
use vpnd_protocol::terms::{Protocol, Terms};
use vpnd_protocol::timestamp::Stamper;
use vpnd_tunnel::clock;
use vpnd_tunnel::udp::{Egress, Refusal};

use super::finding::{Check, Finding};
use super::line::{Heard, Line};
use super::place::{Target, fixed_port};
use crate::config::Config;
use crate::floor::{FloorError, FloorFile};
use crate::keys::Keys;
use crate::terms::Agreement;

/// How often the peer is called, as datagrams may be lost, ...
const TRIES: u32 = 3;
/// ... and how long an answer may take.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What the peer did.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It answered as the configuration wants.
    Answered,
    /// It answered on other terms: these.
    Otherwise(String),
    /// It answered, and no terms that we can think of open the answer.
    DoesNotOpen,
    /// It answered that nothing listens.
    Closed,
    /// A router, or this host for lack of a neighbour, says that there is nobody.
    Unreachable(io::Error),
    /// Nothing came.
    Silent,
    /// This host does not send.
    Refused(io::Error),
}

/// Who calls whom.
pub(super) struct Caller {
    identity: Identity,
    remote: PublicKey,
    /// The terms of the configuration, and behind them guesses.
    terms: Vec<Terms>,
    /// What each guess would mean.
    guesses: Vec<String>,
    stamper: Stamper,
    floor: FloorFile,
}

impl Caller {
    /// The caller that the configuration describes; `None` if it has no key, which does not happen.
    pub(super) fn new(config: &Config, keys: Keys) -> Option<Self> {
        let preshared = config.peer.preshared_key_file.is_some().then(|| keys.preshared.copy());
        let Agreement { identities, mut terms, .. } = Agreement::of(config, keys);
        let own = terms.first()?.protocol();
        let (guessed, guesses) = guesses(own, preshared.as_ref());
        terms.extend(guessed);
        let floor = FloorFile::of(&config.service.state_dir, &config.name);
        let last = floor.read_of_another(clock::now().wall).ok().flatten();
        let (identity, remote) = (identities.into_iter().next()?, config.peer.public_key);
        Some(Self { identity, remote, terms, guesses, stamper: Stamper::new(last), floor })
    }

    /// Our public key.
    pub(super) fn key(&self) -> &PublicKey {
        self.identity.public()
    }

    /// Calls one address of the peer, in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// If the timestamp cannot be stored; then nothing was sent.
    pub(super) fn call(
        &mut self,
        config: &Config,
        target: &Target,
        egress: &Egress,
    ) -> Result<Outcome, FloorError> {
        let port = fixed_port(config).unwrap_or(0);
        let line = match Line::open(target, port, egress) {
            Ok(line) => line,
            Err(error) => return Ok(Outcome::Refused(error)),
        };
        let mut outcome = Outcome::Silent;
        for _ in 0..TRIES {
            let stamp = self.stamper.next(clock::now().wall);
            self.floor.store_for_another(stamp)?;
            // The kernel's generator, as for each handshake.
            let called = Call::new(&self.identity, &self.remote, stamp, &mut UnwrapErr(SysRng));
            // A key that is nobody's has no answer.
            let Ok(mut call) = called else { return Ok(Outcome::Silent) };
            outcome = self.converse(&line, &mut call);
            if !matches!(outcome, Outcome::Silent) {
                break;
            }
        }
        Ok(outcome)
    }

    /// One try.
    fn converse(&self, line: &Line, call: &mut Call<'_>) -> Outcome {
        let until = Instant::now() + PATIENCE;
        if let Err(error) = line.send(&call.datagram(clock::boot())) {
            return Outcome::Refused(error);
        }
        let mut buffer = [0; 2048];
        loop {
            match line.hear(until, &mut buffer) {
                Heard::Nothing => return Outcome::Silent,
                Heard::Error(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return Outcome::Closed;
                }
                Heard::Error(error) => return Outcome::Unreachable(error),
                Heard::Datagram(len) => match call.hear(clock::boot(), &buffer[..len], &self.terms)
                {
                    Reply::Answered(number) => return self.answered(number),
                    Reply::DoesNotOpen => return Outcome::DoesNotOpen,
                    // If this is refused, the time runs out.
                    Reply::Again => drop(line.send(&call.datagram(clock::boot()))),
                    Reply::Nothing => {}
                },
            }
            if Instant::now() >= until {
                return Outcome::Silent;
            }
        }
    }

    fn answered(&self, number: usize) -> Outcome {
        let wanted = self.terms.len() - self.guesses.len();
        match number.checked_sub(wanted).and_then(|guess| self.guesses.get(guess)) {
            None => Outcome::Answered,
            Some(guess) => Outcome::Otherwise(guess.clone()),
        }
    }
}

/// Other terms that the peer may have, and what its answer on them means: every profile with our preshared key, and
/// every profile without one.
fn guesses(own: Protocol, preshared: Option<&PresharedKey>) -> (Vec<Terms>, Vec<String>) {
    let none = PresharedKey::default();
    let (mut terms, mut meaning) = (Vec::new(), Vec::new());
    let keys = [Some(preshared.unwrap_or(&none)), preshared.map(|_| &none)];
    for (key, has_none) in keys.into_iter().zip([false, true]) {
        let Some(key) = key else { continue };
        for protocol in protocols().filter(|protocol| has_none || *protocol != own) {
            terms.push(Terms::new(protocol, key));
            let mut differs = Vec::new();
            if protocol != own {
                differs.push(format!("it speaks \"{protocol}\", and this configuration \"{own}\""));
            }
            if has_none {
                differs.push("it has no preshared key, and this configuration has one".to_owned());
            }
            meaning.push(differs.join("; "));
        }
    }
    (terms, meaning)
}

fn protocols() -> impl Iterator<Item = Protocol> {
    let modes = [Mode::Tun, Mode::Tap];
    let ciphers = [Algorithm::ChaCha20Poly1305, Algorithm::Aes256Gcm];
    let kems = [Kem::None, Kem::MlKem768];
    let profiles = modes.into_iter().flat_map(move |mode| {
        let both = ciphers.into_iter().flat_map(move |cipher| kems.map(|kem| (cipher, kem)));
        both.map(move |(cipher, kem)| Protocol::Vpnd(Profile { mode, cipher, kem }))
    });
    [Protocol::WireGuard].into_iter().chain(profiles)
}

/// What an outcome means; `None` if the peer answered as it should.
pub(super) fn finding(target: &Target, outcome: &Outcome, own: &PublicKey) -> Option<Finding> {
    let to = target.to;
    let finding = |cause: String| Finding::new(Check::Peer, cause);
    Some(match outcome {
        Outcome::Answered => return None,
        Outcome::Otherwise(differs) => {
            finding(format!("the peer at {to} answers, but on other terms: {differs}")).advice(
                "give both sides the same protocol, mode, cipher, post_quantum and preshared_key_file",
            )
        }
        Outcome::DoesNotOpen => finding(format!(
            "the peer at {to} answers, but its answer does not open: the preshared keys differ"
        ))
        .advice("copy the file of [peer] preshared_key_file from one side to the other"),
        Outcome::Closed => closed(target),
        Outcome::Unreachable(error) => finding(format!(
            "the host of the peer at {to} is not reached: {error}; a router says so, or no host of this link has that address"
        ))
        .advice("correct [peer] endpoint, or look at the network on the way: `ip neigh`, `tracepath`"),
        Outcome::Refused(error) => refused(target, error),
        Outcome::Silent => silent(target, own),
    })
}

/// The peer's host has nothing at the port.
pub(super) fn closed(Target { to, .. }: &Target) -> Finding {
    let cause = format!("nothing listens at {to}: its host answers with ICMP port unreachable");
    Finding::new(Check::Peer, cause).advice(format!(
        "start the tunnel there, or correct the port in [peer] endpoint, there [interface] listen = {}; a firewall there \
         may also reject the port",
        to.port()
    ))
}

fn refused(target: &Target, error: &io::Error) -> Finding {
    let why = Refusal::of(error).map_or_else(|| error.to_string(), |why| why.to_string());
    Finding::new(
        Check::Peer,
        format!("this host does not send to the peer at {}: {why}", target.to),
    )
    .advice("see `nft list ruleset`, `ip rule` and `ip route get`")
}

fn silent(target: &Target, own: &PublicKey) -> Finding {
    let cause = format!(
        "no answer from the peer at {}: it does not run, or a firewall on the way or there drops UDP to port {}, or \
         [peer] public_key is not its key, or its public_key for us is not ours, or its clock has seen a later time of ours",
        target.to,
        target.to.port()
    );
    Finding::new(Check::Peer, cause).advice(format!(
        "run `vpnd check NAME` and `vpnd doctor NAME` there: its \"our key\" has to be [peer] public_key here, its \"peer \
         key\" {own}; its log names initiations that it refuses"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_all_other_terms() {
        let own = Protocol::WireGuard;
        let (terms, meaning) = guesses(own, None);
        assert_eq!((terms.len(), meaning.len()), (8, 8));
        assert!(terms.iter().all(|terms| terms.protocol() != own));
        let (terms, meaning) = guesses(own, Some(&PresharedKey::from_bytes([7; 32])));
        assert_eq!((terms.len(), meaning.len()), (8 + 9, 8 + 9));
        assert_eq!(meaning[8], "it has no preshared key, and this configuration has one");
        assert!(meaning[9].contains("speaks \"vpnd, tun, ") && meaning[9].contains("no preshared"));
    }

    #[test]
    fn each_outcome_has_its_cause() {
        let to = "192.0.2.2:51820".parse().unwrap();
        let target =
            Target { to, source: None, found: None, egress: Egress::default(), payload: Ok(1472) };
        let own = PublicKey::from_bytes([1; 32]);
        let cause = |outcome| finding(&target, &outcome, &own).map(|it| it.cause);
        assert_eq!(cause(Outcome::Answered), None);
        let error = |errno| io::Error::from_raw_os_error(errno);
        for (outcome, words) in [
            (Outcome::DoesNotOpen, "the preshared keys differ"),
            (Outcome::Closed, "nothing listens at 192.0.2.2:51820"),
            (Outcome::Silent, "public_key is not its key"),
            (Outcome::Unreachable(error(libc::EHOSTUNREACH)), "is not reached"),
            (Outcome::Refused(error(libc::EPERM)), "packet filter"),
            (Outcome::Otherwise("it speaks X".into()), "on other terms: it speaks X"),
        ] {
            let cause = cause(outcome).unwrap();
            assert!(cause.contains(words), "{cause}");
        }
    }
}
