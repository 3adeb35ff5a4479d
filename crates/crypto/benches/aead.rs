//! Measures the time to seal and to open one packet, for each cipher of each back end.
#![allow(clippy::unwrap_used, reason = "what does not open is a figure of nothing")]

use std::time::Duration;

use aes_gcm::Aes256Gcm;
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use criterion::{BatchSize, Criterion, Throughput};
use vpnd_crypto::{AeadKey, Algorithm, Backend, Message, TAG_LEN};

/// Packets per measured batch: few enough that they stay in the cache, where a receive leaves them.
const L1: BatchSize = BatchSize::NumIterations(16);
/// Packets sealed or opened together.
const GROUP: usize = 8;
const KEY: [u8; 32] = [7; 32];
/// From a bare acknowledgment to the largest packet of an Ethernet.
const SIZES: [usize; 6] = [64, 256, 576, 1024, 1420, 1500];

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for backend in [Backend::Wide, Backend::Ring] {
        for algorithm in [Algorithm::ChaCha20Poly1305, Algorithm::Aes256Gcm] {
            let key = AeadKey::with_backend(backend, algorithm, &KEY);
            let name = format!("{algorithm:?}/{backend:?}");
            seal(&mut criterion, &name, |counter, text| key.seal(counter, &[], text));
            open(&mut criterion, &name, &key);
            seal_each(&mut criterion, &name, &key);
            open_each(&mut criterion, &name, &key);
        }
    }
    portable(&mut criterion);
    criterion.final_summary();
}

/// RustCrypto's code, which vpnd does not use for packets.
fn portable(criterion: &mut Criterion) {
    let chacha = ChaCha20Poly1305::new(&KEY.into());
    seal(criterion, "ChaCha20Poly1305/RustCrypto", |counter, text| {
        chacha.encrypt_inout_detached(&nonce(counter).into(), &[], text.into()).unwrap()
    });
    let aes = Aes256Gcm::new(&KEY.into());
    seal(criterion, "Aes256Gcm/RustCrypto", |counter, text| {
        aes.encrypt_inout_detached(&nonce(counter).into(), &[], text.into()).unwrap()
    });
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

fn seal<T>(criterion: &mut Criterion, name: &str, seal: impl Fn(u64, &mut [u8]) -> T) {
    let mut group = criterion.benchmark_group(format!("seal/{name}"));
    for size in SIZES {
        let mut packet = vec![0; size];
        let mut counters = 0..;
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(size.to_string(), |bencher| {
            bencher.iter(|| seal(counters.next().unwrap(), &mut packet));
        });
    }
}

fn open(criterion: &mut Criterion, name: &str, key: &AeadKey) {
    let mut group = criterion.benchmark_group(format!("open/{name}"));
    for size in SIZES {
        let mut sealed = vec![0; size];
        let tag = key.seal(1, &[], &mut sealed);
        sealed.extend(tag);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(size.to_string(), |bencher| {
            let open = |packet: &mut Vec<u8>| key.open(1, &[], packet).map(|text| text.len());
            bencher.iter_batched_ref(|| sealed.clone(), open, L1);
        });
    }
}

/// Measures the time per message (the reciprocal of the throughput), which is comparable with `seal`.
fn seal_each(criterion: &mut Criterion, name: &str, key: &AeadKey) {
    let mut group = criterion.benchmark_group(format!("seal_each/{name}"));
    for size in SIZES {
        let mut packets = vec![0; (size + TAG_LEN) * GROUP];
        let mut counters = 0..;
        group.throughput(Throughput::Elements(GROUP as u64));
        group.bench_function(size.to_string(), |bencher| {
            bencher.iter(|| key.seal_each(messages(&mut packets, size, &mut counters)));
        });
    }
}

fn open_each(criterion: &mut Criterion, name: &str, key: &AeadKey) {
    let mut group = criterion.benchmark_group(format!("open_each/{name}"));
    for size in SIZES {
        let mut sealed = vec![0; (size + TAG_LEN) * GROUP];
        key.seal_each(messages(&mut sealed, size, &mut (0..)));
        group.throughput(Throughput::Elements(GROUP as u64));
        group.bench_function(size.to_string(), |bencher| {
            let open = |packets: &mut Vec<u8>| {
                key.open_each(messages(packets, size, &mut (0..)), |_, text| {
                    text.unwrap();
                });
            };
            bencher.iter_batched_ref(|| sealed.clone(), open, BatchSize::NumIterations(2));
        });
    }
}

/// Packets back to back, of `size` bytes and a tag each.
fn messages<'a>(
    packets: &'a mut [u8],
    size: usize,
    counters: &mut impl Iterator<Item = u64>,
) -> impl Iterator<Item = Message<'a>> {
    let buffers = packets.chunks_exact_mut(size + TAG_LEN);
    buffers.zip(counters).map(|(buffer, counter)| Message { counter, buffer })
}
