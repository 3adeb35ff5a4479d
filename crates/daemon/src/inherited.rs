//! What an earlier process of the tunnel has left to this one ([`hand_on`](crate::hand_on)): its descriptors, as systemd
//! or that process itself hands them over, and the sessions.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recvmsg};
use nix::unistd::Uid;
use thiserror::Error;
use vpnd_crypto::PublicKey;
use vpnd_protocol::inheritance::{self, Inheritance};
use vpnd_tun::Attached;
use vpnd_tunnel::clock;
use zeroize::Zeroizing;

use crate::ask::{AskError, explain};
use crate::config::{Config, MAX_LEN};
use crate::control::Ask;
use crate::exit::Exit;
use crate::hand_on::{Kept, RECORD};
use crate::service;

/// How long the running tunnel may take to finish its work.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most descriptors of one tunnel.
const MOST: usize = 64;

/// The descriptors of an earlier process, not checked yet.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    queues: Vec<OwnedFd>,
    writer: Option<OwnedFd>,
    socket: Option<OwnedFd>,
    sessions: Option<OwnedFd>,
    configuration: Option<OwnedFd>,
}

/// Why a running tunnel was not taken over; it continues to run, unless it has already let go.
#[derive(Debug, Error)]
pub(crate) enum TakeOverError {
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The tunnel refused, or is of another version.
    #[error("the running tunnel refuses to be taken over: {0}")]
    Refused(String),
    #[error(
        "uid {uid} listens at {}, neither root, nor you, nor the user that the tunnel runs as: nothing is taken over",
        path.display()
    )]
    Stranger { path: PathBuf, uid: u32 },
    #[error("cannot take the running tunnel over: {0}")]
    Io(#[from] io::Error),
}

impl TakeOverError {
    /// The exit code of `vpnd`.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::Ask(error) => error.exit(),
            Self::Stranger { .. } => Exit::Permission,
            Self::Refused(_) | Self::Io(_) => Exit::Failure,
        }
    }
}

/// Another user could hand over a device and a socket of its own.
fn trust(stream: &UnixStream, config: &Config) -> Result<(), TakeOverError> {
    let uid = getsockopt(stream, PeerCredentials).map_err(io::Error::from)?.uid();
    let user = config.service.user.as_ref().map(|user| user.uid);
    if uid == 0 || uid == Uid::effective().as_raw() || Some(uid) == user {
        return Ok(());
    }
    Err(TakeOverError::Stranger { path: config.service.control.clone(), uid })
}

impl Inherited {
    /// What systemd has kept. The sessions are removed from its store before anybody reads them, so that no later process
    /// gets the same sessions.
    pub(crate) fn from_service_manager() -> Self {
        let mut inherited = Self::default();
        let Ok(kept) = sd_notify::listen_fds_with_names() else { return inherited };
        for (descriptor, name) in kept {
            inherited.take(&name, own(descriptor));
        }
        if inherited.sessions.is_some() {
            service::forget(Kept::Sessions.name());
        }
        inherited
    }

    /// Everything of the tunnel that runs with this control socket. It has ended when this returns.
    ///
    /// # Errors
    ///
    /// If there is no such tunnel, it refuses, or this process is not allowed to.
    pub(crate) fn from_process(config: &Config) -> Result<Self, TakeOverError> {
        let control = &config.service.control;
        let stream = UnixStream::connect(control).map_err(|error| explain(control, error))?;
        trust(&stream, config)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let ask = serde_json::to_string(&Ask::new("take-over")).map_err(io::Error::other)?;
        (&stream).write_all(format!("{ask}\n").as_bytes())?;
        let mut inherited = Self::default();
        for _ in 0..MOST {
            match receive(&stream)? {
                Received::Descriptor(name, descriptor) => inherited.take(&name, descriptor),
                Received::Text(text) => return Err(TakeOverError::Refused(reason(&text))),
                Received::End => break,
            }
        }
        if inherited.queues.is_empty() || inherited.socket.is_none() {
            return Err(TakeOverError::Refused("it handed nothing over".to_owned()));
        }
        Ok(inherited)
    }

    fn take(&mut self, name: &str, descriptor: OwnedFd) {
        match Kept::named(name) {
            Some(Kept::Queue) => self.queues.push(descriptor),
            Some(Kept::Writer) => self.writer = Some(descriptor),
            Some(Kept::Socket) => self.socket = Some(descriptor),
            Some(Kept::Sessions) => self.sessions = Some(descriptor),
            Some(Kept::Configuration) => self.configuration = Some(descriptor),
            None => tracing::debug!("{name:?} is kept, and nobody knows what it is"),
        }
    }

    /// The text of the configuration that the earlier process ran with.
    pub(crate) fn configuration(&self) -> Option<String> {
        let mut text = String::new();
        let file = self.configuration.as_ref()?.try_clone().ok()?;
        read(file, MAX_LEN as u64, |file| file.read_to_string(&mut text)).ok()?;
        Some(text)
    }

    /// The device; `None` if there is none.
    pub(crate) fn device(&mut self) -> Option<Attached> {
        let queues = std::mem::take(&mut self.queues);
        (!queues.is_empty()).then(|| Attached { queues, writer: self.writer.take() })
    }

    /// The UDP socket.
    pub(crate) fn socket(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }

    /// The sessions with this peer, if the earlier process has ended in order; `None` if it has crashed.
    pub(crate) fn sessions(&mut self, peer: &PublicKey) -> Option<Inheritance> {
        let file = self.sessions.take()?;
        read_sessions(file, peer)
            .inspect_err(|error| {
                tracing::warn!("the sessions of the earlier process cannot be continued: {error}");
            })
            .ok()
    }
}

fn read_sessions(file: OwnedFd, peer: &PublicKey) -> io::Result<Inheritance> {
    const KEY: usize = 32;
    let most = KEY + inheritance::MAX_LEN;
    // With its full capacity from the beginning, so that no copy of a key is left in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most + 1));
    read(file, most as u64, |file| file.read_to_end(&mut bytes))?;
    let (of, left) = bytes.split_at_checked(KEY).ok_or(io::ErrorKind::UnexpectedEof)?;
    if of != peer.as_bytes() {
        return Err(io::Error::other("they are with another peer"));
    }
    Inheritance::decode(left).map_err(io::Error::other)
}

/// Reads at most `most` bytes from the beginning: the position is shared with whoever has written them.
fn read<T>(
    file: OwnedFd,
    most: u64,
    with: impl FnOnce(&mut io::Take<File>) -> io::Result<T>,
) -> io::Result<T> {
    let mut file = File::from(file);
    file.rewind()?;
    with(&mut file.take(most))
}

/// The crash of an earlier process leaves its device. The peer counts as alive if the device's carrier says so.
pub(crate) fn of_a_crash(has_carrier: bool) -> Inheritance {
    if has_carrier { Inheritance::of_a_crash(clock::boot()) } else { Inheritance::default() }
}

enum Received {
    Descriptor(String, OwnedFd),
    /// An answer in words.
    Text(Vec<u8>),
    End,
}

fn receive(stream: &UnixStream) -> io::Result<Received> {
    let mut record = [0; RECORD];
    let mut room = nix::cmsg_space!([RawFd; 1]);
    let (len, descriptor) = {
        let mut parts = [IoSliceMut::new(&mut record)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
        let rights = message.cmsgs()?.find_map(|one| match one {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        (message.bytes, rights.map(own))
    };
    match (len, descriptor) {
        (0, _) => Ok(Received::End),
        (_, Some(descriptor)) => {
            let name = record.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(Received::Descriptor(String::from_utf8_lossy(name).into_owned(), descriptor))
        }
        (len, None) => {
            let mut text = record[..len].to_vec();
            stream.take(4096).read_to_end(&mut text)?;
            Ok(Received::Text(text))
        }
    }
}

/// The reason in a refusal.
fn reason(text: &[u8]) -> String {
    let refusal = serde_json::from_slice::<crate::control::Refusal>(text);
    refusal.map_or_else(|_| "its answer makes no sense".to_owned(), |refusal| refusal.error)
}

/// A descriptor that was given to this process.
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: systemd and the kernel have just given this descriptor to this process, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
