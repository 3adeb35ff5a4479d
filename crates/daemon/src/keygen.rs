//! `genkey`, `pubkey` and `genpsk`: they use standard input and output like `wg`, or files.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use rand::rand_core::UnwrapErr;
use rand::rngs::SysRng;
use vpnd_crypto::{PresharedKey, SecretKey};
use zeroize::Zeroizing;

use crate::exit::Exit;
use crate::keys;

/// Options of `genkey` and `genpsk`.
#[derive(Debug, Args)]
pub(crate) struct OutputOptions {
    /// A new file, which only its owner may read
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Options of `pubkey`.
#[derive(Debug, Args)]
pub(crate) struct PubkeyOptions {
    /// The private key's file [default: standard input]
    pub(crate) file: Option<PathBuf>,
}

/// Makes a private key. Prints the key; or, if the key is saved in a file, the public key, which the peer's
/// configuration needs.
pub(crate) fn genkey(options: &OutputOptions) -> anyhow::Result<ExitCode> {
    let secret = SecretKey::generate(&mut UnwrapErr(SysRng));
    match &options.output {
        None => print(&secret.to_base64()),
        Some(path) => {
            keys::create(path, &secret.to_base64())?;
            print(&secret.public().to_string())
        }
    }
}

/// Prints the public half of a private key.
pub(crate) fn pubkey(options: &PubkeyOptions) -> anyhow::Result<ExitCode> {
    let secret = match &options.file {
        Some(path) => keys::read_secret(path, keys::credentials_directory().as_deref())?,
        None => from_stdin()?,
    };
    print(&secret.public().to_string())
}

/// Makes a preshared key.
pub(crate) fn genpsk(options: &OutputOptions) -> anyhow::Result<ExitCode> {
    let key = PresharedKey::generate(&mut UnwrapErr(SysRng)).to_base64();
    match &options.output {
        None => print(&key),
        Some(path) => {
            keys::create(path, &key)?;
            Ok(Exit::Success.into())
        }
    }
}

fn from_stdin() -> anyhow::Result<SecretKey> {
    let mut text = Zeroizing::new(String::with_capacity(keys::MAX_LEN));
    let read = io::stdin().take(keys::MAX_LEN as u64).read_to_string(&mut text);
    read.context("cannot read standard input")?;
    SecretKey::from_base64(text.trim()).context("standard input holds no private key")
}

fn print(line: &str) -> anyhow::Result<ExitCode> {
    writeln!(io::stdout(), "{line}").context("cannot write to standard output")?;
    Ok(Exit::Success.into())
}
