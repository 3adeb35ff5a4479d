//! The socket against a real kernel.
