//! What arrives on the connection to an earlier process: descriptors, or words.

use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::hand_on::RECORD;

/// One message.
pub(super) enum Received {
    Descriptor(String, OwnedFd),
    /// An answer in words.
    Text(Vec<u8>),
    End,
}

/// The next message.
///
/// # Errors
///
/// If nothing arrives in time, or it makes no sense.
pub(super) fn receive(stream: &UnixStream) -> io::Result<Received> {
    let mut record = [0; RECORD];
    let mut room = nix::cmsg_space!([RawFd; 1]);
    let (len, mut descriptors) = {
        let mut parts = [IoSliceMut::new(&mut record)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
        let mut descriptors = Vec::new();
        for one in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(some) = one {
                descriptors.extend(some.into_iter().map(own));
            }
        }
        (message.bytes, descriptors)
    };
    match (len, descriptors.pop()) {
        (0, _) => Ok(Received::End),
        (RECORD, Some(descriptor)) if descriptors.is_empty() => {
            let name = record.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok(Received::Descriptor(String::from_utf8_lossy(name).into_owned(), descriptor))
        }
        (len, None) => {
            let mut text = record[..len].to_vec();
            match stream.take(4096).read_to_end(&mut text) {
                // Who refuses closes the connection without reading what was sent to it meanwhile.
                Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
                _ => Ok(Received::Text(text)),
            }
        }
        _ => Err(io::Error::other("a record with another number of descriptors than one")),
    }
}

/// The reason in a refusal.
pub(super) fn reason(text: &[u8]) -> String {
    let refusal = serde_json::from_slice::<crate::control::Refusal>(text);
    refusal.map_or_else(|_| "its answer makes no sense".to_owned(), |refusal| refusal.error)
}

/// A descriptor that was given to this process.
pub(super) fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: systemd and the kernel have just given this descriptor to this process, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
