//! What a former program may have left on a device that stays, and what we leave ourselves. The kernel keeps
//! it with the device, shows most of it to nobody, and gives the next program the device as it is.

use std::io;
use std::os::fd::AsFd;

use crate::ioctl;
use crate::open::Mode;

/// Takes away what keeps packets from whoever is attached: filters and programs. None of them can be read, to
/// be given back later, and what they refer to belonged to a program that is gone.
///
/// # Errors
///
/// If the kernel refuses it.
pub(crate) fn clear(attached: impl AsFd, mode: Mode) -> io::Result<()> {
    match ioctl::clear_programs(attached.as_fd()) {
        // Before Linux 4.16 there are none.
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
        _ => {}
    }
    match mode {
        // It takes no filters.
        Mode::Tun => Ok(()),
        Mode::Tap => ioctl::clear_filters(attached.as_fd()),
    }
}

/// Makes the device that `attached` is attached to give packets as a new one does: complete, each by itself,
/// and behind a header of the usual length where a program asks for one. Super-packets go to nobody but who asks
/// for them anew. It takes no privilege.
///
/// # Errors
///
/// EBADFD once the device was deleted.
pub fn release(attached: impl AsFd) -> io::Result<()> {
    ioctl::set_offload(attached.as_fd(), 0)?;
    ioctl::set_vnet_header(attached.as_fd(), false)
}
