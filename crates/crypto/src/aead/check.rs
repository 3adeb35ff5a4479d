//! The self-test that [`Backend::Wide`] has to pass in every process before it is used.

use super::{AeadKey, Algorithm, Backend, GROUP, Message, TAG_LEN};

/// Lengths near which the implementation takes different branches.
const LENGTHS: [usize; 16] =
    [0, 1, 15, 16, 48, 64, 112, 113, 192, 193, 960, 1420, 1472, 1473, 1984, 3100];
const COUNTS: [usize; 6] = [1, 2, 3, 5, GROUP - 1, GROUP];

/// Whether [`Backend::Wide`] seals and opens as ring does, both single messages and groups.
pub(super) fn agrees_with_ring() -> bool {
    let [wide, ring] = [Backend::Wide, Backend::Ring]
        .map(|backend| AeadKey::with_backend(backend, Algorithm::ChaCha20Poly1305, &[0x5a; 32]));
    let mut cases = LENGTHS.into_iter().flat_map(|len| COUNTS.map(|count| (len, count)));
    cases.all(|(len, count)| outcome(&wide, len, count) == outcome(&ring, len, count))
}

/// Plaintexts; `None` for a message that failed to open.
type Texts = Vec<Option<Vec<u8>>>;

/// The results of one key for messages of one length: sealed; opened; and opened after the first byte of the
/// first message, or the last byte of the last tag, was changed.
fn outcome(key: &AeadKey, len: usize, count: usize) -> (Vec<u8>, [Texts; 3]) {
    let stride = len + TAG_LEN;
    let mut sealed: Vec<u8> = (0..stride * count).map(|i| i.to_le_bytes()[0]).collect();
    key.seal_each(messages(&mut sealed, stride));
    let opened = [(0, 0), (0, 1), (stride * count - 1, 0x80)].map(|(place, change)| {
        let mut buffer = sealed.clone();
        buffer[place] ^= change;
        let mut opened = Vec::new();
        key.open_each(messages(&mut buffer, stride), |_, text| {
            opened.push(text.ok().map(|text| text.to_vec()));
        });
        opened
    });
    (sealed, opened)
}

fn messages(buffer: &mut [u8], stride: usize) -> impl Iterator<Item = Message<'_>> {
    (1 << 40..).zip(buffer.chunks_mut(stride)).map(|(counter, buffer)| Message { counter, buffer })
}
