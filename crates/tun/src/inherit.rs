//! Continues with a device that an earlier process has opened. Its addresses, routes and carrier stay as they are, and
//! packets that wait in its queues are not lost.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::adopt::flags;
use crate::ioctl;
use crate::make::any_socket;
use crate::open::{Device, Options, Queue, agree};

/// The descriptors of a device that an earlier process has opened.
#[derive(Debug)]
pub struct Attached {
    /// The queues to read.
    pub queues: Vec<OwnedFd>,
    /// The detached queue for writing, if there are several queues.
    pub writer: Option<OwnedFd>,
}

/// Takes over the device of `attached`, if it is the one that `options` describe: name, mode and number of queues.
///
/// # Errors
///
/// If it is another device, or was deleted. The descriptors are closed then.
pub fn inherit(attached: Attached, options: &Options) -> io::Result<Device> {
    let Attached { queues, writer } = attached;
    let several = queues.len() > 1;
    if queues.len() != usize::from(options.queues) || several != writer.is_some() {
        return Err(io::Error::other("another number of queues"));
    }
    let files: Vec<_> = queues.into_iter().chain(writer).map(File::from).collect();
    let (name, has) = ioctl::attached(files[0].as_fd())?;
    if options.name.as_ref().is_some_and(|wanted| !wanted.contains('%') && *wanted != name) {
        return Err(io::Error::other(format!("it is {name:?}")));
    }
    for file in &files {
        check(file, &name, flags(options.mode, several))?;
    }
    let offload = agree(&files, &name, options.offload)?;
    let mut queues: Vec<_> =
        files.into_iter().map(|file| Queue { file: Arc::new(file), offload }).collect();
    let writer = if several { queues.pop() } else { queues.first().cloned() };
    let writer = writer.ok_or(io::ErrorKind::NotFound)?;
    Ok(Device { name, queues, writer, adopted: has & libc::IFF_PERSIST != 0, claimed: None })
}

impl Device {
    /// Whether the device's carrier is on, in the network namespace of this thread.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn has_carrier(&self) -> io::Result<bool> {
        Ok(ioctl::link_flags(any_socket()?, &self.name)? & libc::IFF_RUNNING != 0)
    }
}

/// Checks that the descriptor is attached to this device, with these flags.
fn check(file: &File, name: &str, wanted: i32) -> io::Result<()> {
    let (of, has) = ioctl::attached(file.as_fd())?;
    if of == name && has & KIND == wanted & KIND && has & wanted == wanted {
        return Ok(());
    }
    Err(io::Error::other(format!("{of:?} is a device of another kind")))
}

/// The flags that tell kinds of devices apart.
const KIND: i32 = libc::IFF_TUN | libc::IFF_TAP | libc::IFF_MULTI_QUEUE;
