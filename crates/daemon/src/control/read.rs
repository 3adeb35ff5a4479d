//! Reads a request, and the files that follow it.

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use zeroize::{Zeroize, Zeroizing};

use super::wire::{Announced, CONFIG};
use crate::config::{self, Handed};
use crate::keys::{self, HandedKeys, KEY_FILES};

/// Reads into `buffer` until it contains a line; returns the line and the bytes after it.
pub(super) async fn read_line<'b>(
    client: &mut UnixStream,
    buffer: &'b mut [u8],
) -> std::io::Result<(&'b [u8], &'b [u8])> {
    let (mut len, mut end) = (0, None);
    while end.is_none() && len < buffer.len() {
        let more = client.read(&mut buffer[len..]).await?;
        if more == 0 {
            break;
        }
        end = buffer[len..len + more].iter().position(|byte| *byte == b'\n').map(|at| len + at + 1);
        len += more;
    }
    Ok(buffer[..len].split_at(end.unwrap_or(len)))
}

/// Reads the files that follow a request's line.
pub(super) async fn receive(
    mut from: impl AsyncRead + Unpin,
    files: &[Announced],
) -> Result<Handed, String> {
    let (mut source, mut keys) = (None, HandedKeys(Vec::new()));
    for file in files {
        let named_by = KEY_FILES.into_iter().find(|known| *known == file.name);
        let known = keys.0.iter().any(|(known, _)| *known == file.name);
        match named_by {
            Some(named_by) if !known => {
                keys.0.push((named_by, read_text(&mut from, file, keys::MAX_LEN).await?));
            }
            None if file.name == CONFIG && source.is_none() => {
                let mut text = read_text(&mut from, file, config::MAX_LEN).await?;
                source = Some(std::mem::take(&mut *text));
            }
            _ => return Err(format!("{:?} is no file to hand over, or comes twice", file.name)),
        }
    }
    let source = source.ok_or("the configuration was not handed over")?;
    Ok(Handed { source, keys })
}

/// Reads a text into memory that is wiped later. The memory never grows, because that would leave a copy
/// behind.
async fn read_text(
    from: &mut (impl AsyncRead + Unpin),
    file: &Announced,
    limit: usize,
) -> Result<Zeroizing<String>, String> {
    let Announced { name, bytes } = file;
    if *bytes > limit {
        return Err(format!("{name}: it has at most {limit} bytes, this {bytes}"));
    }
    let mut text = Zeroizing::new(vec![0; *bytes]);
    from.read_exact(&mut text).await.map_err(|error| format!("{name}: {error}"))?;
    String::from_utf8(std::mem::take(&mut *text)).map(Zeroizing::new).map_err(|error| {
        error.into_bytes().zeroize();
        format!("{name} is no text")
    })
}
