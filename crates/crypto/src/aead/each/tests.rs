//! Compares groups of every size with single messages sealed by ring, and these with the reference.

use super::*;
use crate::aead::{Algorithm, Backend, reference};

const BACKENDS: [Backend; 2] = [Backend::Wide, Backend::Ring];
const KEY: [u8; 32] = [0x37; 32];
/// Two whole groups and one more message.
const MOST: usize = 2 * GROUP + 1;
/// A counter that does not fit 32 bits, and carries from one byte to the next within a group.
const FIRST: u64 = 0x0102_0304_ffff_fff8;

fn keys() -> [AeadKey; 2] {
    BACKENDS.map(|backend| AeadKey::with_backend(backend, Algorithm::ChaCha20Poly1305, &KEY))
}

/// [`MOST`] messages of one length, each with its own text and counter, and room for the tag.
fn texts(len: usize) -> Vec<u8> {
    (0..(len + TAG_LEN) * MOST).map(|i| (i * i).to_le_bytes()[1]).collect()
}

fn messages(buffer: &mut [u8], stride: usize) -> impl Iterator<Item = Message<'_>> {
    (FIRST..).zip(buffer.chunks_mut(stride)).map(|(counter, buffer)| Message { counter, buffer })
}

/// Seals one message after the other with [`AeadKey::seal`].
fn sealed_singly(key: &AeadKey, buffer: Vec<u8>, stride: usize) -> Vec<u8> {
    sealed_with(|counter, text| key.seal(counter, &[], text), buffer, stride)
}

fn sealed_with(
    seal: impl Fn(u64, &mut [u8]) -> [u8; TAG_LEN],
    mut buffer: Vec<u8>,
    stride: usize,
) -> Vec<u8> {
    for Message { counter, buffer } in messages(&mut buffer, stride) {
        let (text, tag) = buffer.split_last_chunk_mut().unwrap();
        *tag = seal(counter, text);
    }
    buffer
}

fn opened(key: &AeadKey, sealed: &mut [u8], stride: usize) -> Vec<Result<Vec<u8>, Forged>> {
    let mut all = Vec::new();
    key.open_each(messages(sealed, stride), |counter, text| {
        assert_eq!(counter, FIRST + all.len() as u64);
        all.push(text.map(|text| text.to_vec()));
    });
    all
}

#[test]
fn every_length_and_number_seals_and_opens_as_with_the_others() {
    let [wide, ring] = keys();
    let reference = |counter, text: &mut [u8]| {
        reference::seal(Algorithm::ChaCha20Poly1305, &KEY, counter, &[], text)
    };
    for len in (0..600).chain((600..9100).step_by(503)).chain([1420, 1472, 1473]) {
        let (text, stride) = (texts(len), len + TAG_LEN);
        let expected = sealed_singly(&ring, text.clone(), stride);
        assert!(expected == sealed_with(reference, text.clone(), stride), "{len}");
        for end in (1..=MOST).map(|count| count * stride) {
            let mut buffer = text[..end].to_vec();
            wide.seal_each(messages(&mut buffer, stride));
            assert!(buffer == expected[..end], "{len} {end}");
            let opened = opened(&wide, &mut buffer, stride);
            let each = text[..end].chunks(stride).map(|text| Ok(text[..len].to_vec()));
            assert!(opened.into_iter().eq(each), "{len} {end}");
        }
    }
}

fn together(buffers: &mut [Vec<u8>]) -> impl Iterator<Item = Message<'_>> {
    (FIRST..).zip(buffers).map(|(counter, buffer)| Message { counter, buffer })
}

#[test]
fn lengths_that_change_are_sealed_and_opened_too() {
    let lengths = [100, 100, 100, 40, 0, 0, 1420, 1420, 1420, 1420, 7];
    for key in keys() {
        let mut buffers = lengths.map(|len| vec![3; len + TAG_LEN]);
        key.seal_each(together(&mut buffers));
        for (counter, buffer) in (FIRST..).zip(&buffers) {
            let text = vec![3; buffer.len() - TAG_LEN];
            assert_eq!(key.open(counter, &[], &mut buffer.clone()).unwrap(), text);
        }
        let mut lens = Vec::new();
        key.open_each(together(&mut buffers), |_, text| lens.push(text.unwrap().len()));
        assert_eq!(lens, lengths);
    }
}

/// Alters the text or the tag of each message in groups of each size.
#[test]
fn what_is_forged_gives_nothing_away_and_the_others_open() {
    let [wide, ..] = keys();
    for len in [0, 1, 16, 48, 64, 100, 192, 300, 1420] {
        let (text, stride) = (texts(len), len + TAG_LEN);
        let sealed = sealed_singly(&wide, text.clone(), stride);
        for count in 1..=GROUP + 1 {
            for (place, byte) in (0..count).flat_map(|place| [(place, 0), (place, stride - 1)]) {
                let mut buffer = sealed[..count * stride].to_vec();
                buffer[place * stride + byte] ^= 0x80;
                for (number, opened) in opened(&wide, &mut buffer, stride).into_iter().enumerate() {
                    let text = text[number * stride..][..len].to_vec();
                    assert_eq!(opened, if number == place { Err(Forged) } else { Ok(text) });
                }
                let (left, secret) =
                    (&buffer[place * stride..][..len], &text[place * stride..][..len]);
                assert!(
                    left != secret || secret.iter().all(|byte| *byte == 0),
                    "{len} {count} {place}"
                );
            }
        }
    }
}

#[test]
fn every_cipher_takes_several() {
    for backend in BACKENDS {
        let key = AeadKey::with_backend(backend, Algorithm::Aes256Gcm, &[5; 32]);
        let (text, stride) = (texts(50), 50 + TAG_LEN);
        let mut buffer = text.clone();
        key.seal_each(messages(&mut buffer, stride));
        assert_eq!(buffer, sealed_singly(&key, text, stride));
        buffer[3 * stride] ^= 1;
        let opened = opened(&key, &mut buffer, stride);
        assert_eq!(opened.iter().filter(|text| text.is_ok()).count(), MOST - 1);
        assert_eq!(opened[3], Err(Forged));
    }
}

#[test]
fn what_is_shorter_than_a_tag_is_forged() {
    for key in keys() {
        let opened = opened(&key, &mut [0; 3 * (TAG_LEN - 1)], TAG_LEN - 1);
        assert_eq!(opened, [const { Err(Forged) }; 3]);
    }
}
