//! Lines that the network can cause any number of.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vpnd_crypto::SecretKey;

use super::*;

/// Counts the lines of a log.
#[derive(Clone, Default)]
struct Lines(Arc<AtomicUsize>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
        self.0.fetch_add(lines, Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many lines are logged in ten seconds by something that happens ten times a second.
fn lines(mut happens: impl FnMut(&mut Diagnostics, BootTime, u16)) -> usize {
    let mut diagnostics = Diagnostics::new(SecretKey::from_bytes([1; 32]).public());
    let lines = Lines::default();
    let to = lines.clone();
    let log = tracing_subscriber::fmt().with_writer(move || to.clone()).finish();
    tracing::subscriber::with_default(log, || {
        for n in 0..100 {
            let now = BootTime::from_nanos(1) + Duration::from_millis(100) * n.into();
            happens(&mut diagnostics, now, n);
        }
    });
    lines.0.load(Ordering::Relaxed)
}

#[test]
fn a_path_that_shrinks_byte_by_byte_logs_a_line_in_ten_seconds() {
    assert_eq!(lines(|log, now, n| log.mtu_is(now, "vpn0", 1420, 1400 - n)), 1);
    assert_eq!(lines(|log, now, n| log.mtu_refused(now, &n)), 1);
    assert_eq!(lines(|log, now, n| log.fragmentation_stays(now, &n)), 1);
}

#[test]
fn a_name_with_ever_new_addresses_logs_a_line_in_ten_seconds() {
    let at = |n: u16| IpAddr::from([192, 0, 2, n.to_le_bytes()[0]]);
    assert_eq!(lines(|log, now, n| log.covered(now, &"0.0.0.0/0", at(n))), 1);
}

#[test]
fn ports_that_nobody_answers_log_a_line_in_ten_seconds() {
    assert_eq!(lines(|log, now, n| log.port_changed(now, n)), 1);
}
