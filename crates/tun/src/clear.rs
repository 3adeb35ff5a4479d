//! Resets settings that outlive the program that made them. The kernel keeps them with a persistent device,
//! hardly shows them, and the next program inherits them. This resets settings of earlier programs and our own.

use std::io;
use std::os::fd::AsFd;

use crate::ioctl;
use crate::open::Mode;

/// Removes filters and programs that keep packets from the attached program. They cannot be read, so they
/// cannot be restored later; and the objects that they refer to belonged to a program that is gone.
///
/// # Errors
///
/// If the kernel refuses it.
pub(crate) fn clear(attached: impl AsFd, mode: Mode) -> io::Result<()> {
    match ioctl::clear_programs(attached.as_fd()) {
        // Linux before 4.16 has no such programs.
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
        _ => {}
    }
    match mode {
        // A TUN device has no filters.
        Mode::Tun => Ok(()),
        Mode::Tap => ioctl::clear_filters(attached.as_fd()),
    }
}

/// Makes the device deliver packets as a new device does: complete, one per read, and with a header of the
/// usual length if a program asks for one. A program that wants super-packets has to ask for them again. This
/// needs no privilege.
///
/// # Errors
///
/// EBADFD once the device was deleted.
pub fn release(attached: impl AsFd) -> io::Result<()> {
    ioctl::set_offload(attached.as_fd(), 0)?;
    ioctl::set_vnet_header(attached.as_fd(), false)
}
