//! Continues with a device that an earlier process has opened. Its addresses, routes and carrier stay as they are, and
//! packets that wait in its queues are not lost.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::adopt::{attach, flags};
use crate::ioctl;
use crate::make::any_socket;
use crate::open::{Device, OpenError, Options, Queue, agree, open_driver};

/// The descriptors of a device that an earlier process has opened.
#[derive(Debug)]
pub struct Attached {
    /// The queues to read.
    pub queues: Vec<OwnedFd>,
    /// The detached queue for writing, if there are several queues.
    pub writer: Option<OwnedFd>,
}

/// Takes over the device of `attached`, if it is the one that `options` describe: name and mode. If it can have several
/// queues, it gets as many as wanted; packets that wait in a queue that is not wanted any more are lost.
///
/// # Errors
///
/// If it is another device, can have one queue only, or was deleted. The descriptors are closed then.
pub fn inherit(attached: Attached, options: &Options) -> io::Result<Device> {
    let Attached { queues, writer } = attached;
    let (queues, writer): (Vec<_>, _) =
        (queues.into_iter().map(File::from).collect(), writer.map(File::from));
    let first = queues.first().ok_or(io::ErrorKind::NotFound)?;
    if !is_here(first)? {
        return Err(io::Error::other("it is in another network namespace"));
    }
    let (name, has) = ioctl::attached(first.as_fd())?;
    if options.name.as_ref().is_some_and(|wanted| !wanted.contains('%') && *wanted != name) {
        return Err(io::Error::other(format!("it is {name:?}")));
    }
    let several = has & libc::IFF_MULTI_QUEUE != 0;
    for file in queues.iter().chain(&writer) {
        check(file, &name, flags(options.mode, several))?;
    }
    let (files, writer) = fit((queues, writer), several, &name, options)?;
    let all: Vec<_> = files.into_iter().chain(writer).collect();
    let offload = agree(&all, &name, options.offload)?;
    let mut queues: Vec<_> =
        all.into_iter().map(|file| Queue { file: Arc::new(file), offload }).collect();
    let writer = if options.queues > 1 { queues.pop() } else { queues.first().cloned() };
    let writer = writer.ok_or(io::ErrorKind::NotFound)?;
    Ok(Device { name, queues, writer, adopted: has & libc::IFF_PERSIST != 0, claimed: None })
}

/// Opens the queues that are wanted and missing, and closes the others. Several queues need one more for writing.
fn fit(
    (mut queues, writer): (Vec<File>, Option<File>),
    several: bool,
    name: &str,
    options: &Options,
) -> io::Result<(Vec<File>, Option<File>)> {
    let wanted = usize::from(options.queues);
    if wanted > 1 && !several {
        return Err(io::Error::other("it can have one queue only"));
    }
    let another = || -> Result<File, OpenError> {
        let file = open_driver(name)?;
        attach(&file, name, options.mode, true).map(|_name| file)
    };
    queues.truncate(wanted);
    while queues.len() < wanted {
        queues.push(another().map_err(io::Error::other)?);
    }
    let writer = match writer.filter(|_| wanted > 1) {
        None if wanted > 1 => {
            let writer = another().map_err(io::Error::other)?;
            ioctl::detach_queue(writer.as_fd())?;
            Some(writer)
        }
        writer => writer,
    };
    Ok((queues, writer))
}

/// Whether the device is in the network namespace of this thread. A process that may not ask finds the device by its name.
fn is_here(file: &File) -> io::Result<bool> {
    let Ok(there) = ioctl::namespace(file.as_fd()) else { return Ok(true) };
    let [there, here] =
        [File::from(there).metadata()?, std::fs::metadata("/proc/thread-self/ns/net")?];
    Ok((there.dev(), there.ino()) == (here.dev(), here.ino()))
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
