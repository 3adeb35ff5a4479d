//! Seals and opens several messages under one key. [`Backend::Wide`](super::Backend::Wide) computes messages of
//! equal length together, in less than half the time; the other back ends compute one message after the other.

use std::mem::take;

use super::{AeadKey, Forged, TAG_LEN};
#[cfg(target_arch = "x86_64")]
use super::{Cipher, WideKey};

/// Messages that are sealed or opened together.
pub(crate) const GROUP: usize = 8;

/// One of several messages.
#[derive(Default)]
pub struct Message<'a> {
    /// A counter must be used only once in the life of a key, as with [`AeadKey::seal`].
    pub counter: u64,
    /// The text, followed by [`TAG_LEN`] bytes for its tag.
    pub buffer: &'a mut [u8],
}

impl AeadKey {
    /// Encrypts each message in place, without associated data, and writes its tag behind it. This is fastest
    /// if messages of equal length follow each other.
    ///
    /// # Panics
    ///
    /// When a message has no room for a tag.
    pub fn seal_each<'a>(&self, messages: impl IntoIterator<Item = Message<'a>>) {
        each_group(messages, |group| self.seal_group(group));
    }

    /// Decrypts each message in place, without associated data. Calls `opened` for each message, in their
    /// order, with the counter and either the plaintext or [`Forged`]. The buffer of a forged message must not
    /// be used; the other messages are not affected.
    pub fn open_each<'a>(
        &self,
        messages: impl IntoIterator<Item = Message<'a>>,
        mut opened: impl FnMut(u64, Result<&'a mut [u8], Forged>),
    ) {
        each_group(messages, |group| self.open_group(group, &mut opened));
    }

    fn seal_group(&self, group: &mut [Message<'_>]) {
        #[cfg(target_arch = "x86_64")]
        if let Cipher::Wide(key, _) = &self.cipher
            && group.len() > 1
        {
            return self.seal_wide(key, group);
        }
        for Message { counter, buffer } in group {
            let (text, tag) = buffer.split_last_chunk_mut::<TAG_LEN>().expect(NO_ROOM);
            *tag = self.seal(*counter, &[], text);
        }
    }

    fn open_group<'a>(
        &self,
        group: &mut [Message<'a>],
        mut opened: impl FnMut(u64, Result<&'a mut [u8], Forged>),
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Cipher::Wide(key, _) = &self.cipher
            && group.len() > 1
        {
            return self.open_wide(key, group, opened);
        }
        for Message { counter, buffer } in group {
            opened(*counter, self.open(*counter, &[], take(buffer)));
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn seal_wide(&self, key: &WideKey, group: &mut [Message<'_>]) {
        let (nonces, count) = (self.nonces(group), group.len());
        let (mut texts, mut room) = <([&mut [u8]; GROUP], [Option<_>; GROUP])>::default();
        for ((message, text), room) in group.iter_mut().zip(&mut texts).zip(&mut room) {
            let (start, tag) = message.buffer.split_last_chunk_mut::<TAG_LEN>().expect(NO_ROOM);
            (*text, *room) = (start, Some(tag));
        }
        let tags = key.seal_group(&nonces[..count], &mut texts[..count]);
        for (room, tag) in room.into_iter().flatten().zip(tags) {
            *room = tag;
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn open_wide<'a>(
        &self,
        key: &WideKey,
        group: &mut [Message<'a>],
        mut opened: impl FnMut(u64, Result<&'a mut [u8], Forged>),
    ) {
        let (nonces, count) = (self.nonces(group), group.len());
        let (mut texts, mut tags) = <([&mut [u8]; GROUP], [_; GROUP])>::default();
        for ((message, text), tag) in group.iter_mut().zip(&mut texts).zip(&mut tags) {
            let Some((start, end)) = take(&mut message.buffer).split_last_chunk_mut::<TAG_LEN>()
            else {
                return group.iter().for_each(|short| opened(short.counter, Err(Forged)));
            };
            (*text, *tag) = (start, *end);
        }
        let opens = key.open_group(&nonces[..count], &mut texts[..count], &tags);
        for (message, (text, opens)) in group.iter().zip(texts.into_iter().zip(opens)) {
            opened(message.counter, if opens { Ok(text) } else { Err(Forged) });
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn nonces(&self, group: &[Message<'_>]) -> [[u8; 12]; GROUP] {
        let mut nonces = [[0; 12]; GROUP];
        for (nonce, message) in nonces.iter_mut().zip(group) {
            *nonce = self.algorithm.nonce(message.counter);
        }
        nonces
    }
}

/// Splits the messages into groups of up to [`GROUP`] consecutive messages of equal length.
fn each_group<'a>(
    messages: impl IntoIterator<Item = Message<'a>>,
    mut take: impl FnMut(&mut [Message<'a>]),
) {
    let (mut group, mut len) = (<[Message<'_>; GROUP]>::default(), 0);
    for message in messages {
        if len == GROUP || (len > 0 && message.buffer.len() != group[0].buffer.len()) {
            take(&mut group[..len]);
            len = 0;
        }
        group[len] = message;
        len += 1;
    }
    if len > 0 {
        take(&mut group[..len]);
    }
}

/// Callers allocate every buffer with room for the tag.
const NO_ROOM: &str = "a message has room for its tag";

#[cfg(test)]
mod tests;
