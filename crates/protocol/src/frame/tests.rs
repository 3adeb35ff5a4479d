//! Frames byte for byte, and frames that no sender should send.

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::*;
use crate::message::Index;
use crate::session::OVERHEAD;

/// A record with its own copy of the data.
#[derive(Clone, Debug)]
enum Said {
    Hello(String, u32, u16),
    Close,
    Ping(Ping),
    Pong(Pong),
    PqInit(Box<PqInit>, usize),
    PqResp(Box<PqResp>),
    Probe(ProbeToken),
    Probed(ProbeToken),
    Unknown(u8, Vec<u8>),
}

impl Said {
    fn add_to(&self, frame: ControlFrame) -> ControlFrame {
        match self {
            Self::Unknown(kind, value) => frame.record(*kind, &[value]),
            known => match known.heard() {
                Record::Hello(hello) => frame.hello(&hello),
                Record::Close => frame.close(),
                Record::Ping(ping) => frame.ping(&ping),
                Record::Pong(pong) => frame.pong(&pong),
                Record::PqInit(chunk) => frame.pq_init(chunk),
                Record::PqResp(answer) => frame.pq_resp(answer),
                Record::Probe(token) => frame.probe(&token),
                Record::Probed(token) => frame.probed(&token),
                Record::Unknown(_) => unreachable!("it is known"),
            },
        }
    }

    fn heard(&self) -> Record<'_> {
        match self {
            Self::Hello(release, features, mtu) => Record::Hello(hello(release, *features, *mtu)),
            Self::Close => Record::Close,
            Self::Ping(ping) => Record::Ping(*ping),
            Self::Pong(pong) => Record::Pong(*pong),
            Self::PqInit(init, part) => Record::PqInit(init.chunks()[*part]),
            Self::PqResp(answer) => Record::PqResp(answer),
            Self::Probe(token) => Record::Probe(*token),
            Self::Probed(token) => Record::Probed(*token),
            Self::Unknown(kind, _) => Record::Unknown(*kind),
        }
    }
}

#[test]
fn a_probe_fills_a_datagram_and_is_read_as_any_other() {
    let token = [7; 16];
    for len in [21, 22, 100, 1200, 1420, 8972] {
        let plaintext = ControlFrame::probe_of(&token, len);
        assert_eq!(plaintext.len(), len);
        let Ok(Frame::Control(records)) = parse(&plaintext) else { panic!("{len}") };
        assert_eq!(records.collect::<Vec<_>>(), [Record::Probe(token)]);
    }
    assert_eq!(ControlFrame::probe_of(&token, 0).len(), 21, "as few as there must be");
}

fn hello(release: &str, features: u32, mtu: u16) -> Hello<'_> {
    Hello { release: Release::new(release).unwrap(), features, mtu, mac: None }
}

fn said() -> impl Strategy<Value = Said> {
    let release = prop::collection::vec(prop::char::range(' ', '~'), 0..=32)
        .prop_map(|name| name.into_iter().collect());
    let numbers = any::<(u32, u64, u64)>();
    let init = (any::<u32>(), bytes::<1184>(), 0..2usize);
    prop_oneof![
        (release, any::<u32>(), any::<u16>()).prop_map(|(a, b, c)| Said::Hello(a, b, c)),
        Just(Said::Close),
        numbers.prop_map(|(a, b, c)| Said::Ping(Ping::new(a, b, c))),
        (numbers, any::<u64>())
            .prop_map(|((a, b, c), d)| Said::Pong(Ping::new(a, b, 0).answer(c, d))),
        init.prop_map(|(index, key, part)| {
            Said::PqInit(Box::new(PqInit::new(Index::new(index), key)), part)
        }),
        bytes::<16>().prop_map(Said::Probe),
        bytes::<16>().prop_map(Said::Probed),
        bytes::<1108>().prop_map(|b| Said::PqResp(Box::new(PqResp::read_from_bytes(&b).unwrap()))),
        (9..=u8::MAX, prop::collection::vec(any::<u8>(), 0..1400))
            .prop_map(|(kind, value)| Said::Unknown(kind, value)),
    ]
}

/// Bytes without shrinking, because there are too many.
fn bytes<const N: usize>() -> impl Strategy<Value = [u8; N]> {
    any::<u8>()
        .prop_map(|seed| std::array::from_fn(|at| seed.wrapping_mul(31).wrapping_add(low(at))))
}

/// The low byte of a number.
fn low(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

fn records(plaintext: &[u8]) -> Result<Vec<Record<'_>>, DropReason> {
    match parse(plaintext)? {
        Frame::Control(records) => Ok(records.collect()),
        other => panic!("{other:?}"),
    }
}

/// A control frame of one record.
fn frame(kind: u8, value: &[u8]) -> Vec<u8> {
    ControlFrame::begin().record(kind, &[value]).end()
}

proptest! {
    #[test]
    fn what_was_said_is_heard(all in prop::collection::vec(said(), 0..12)) {
        let begin = ControlFrame::begin();
        let plaintext = all.iter().fold(begin, |frame, said| said.add_to(frame)).end();
        prop_assert_eq!(plaintext.len() % 16, 0);
        let heard: Vec<_> = all.iter().map(Said::heard).collect();
        prop_assert_eq!(records(&plaintext), Ok(heard));
    }

    #[test]
    fn no_plaintext_panics_the_parser(
        kind in prop_oneof![1..=3u8, any::<u8>()],
        pad_len in prop_oneof![0..16u8, any::<u8>()],
        rest in prop::collection::vec(prop_oneof![0..8u8, any::<u8>()], 0..200),
    ) {
        let plaintext = [&[kind, pad_len], &rest[..]].concat();
        if let Ok(Frame::Control(records)) = parse(&plaintext) {
            let _ = records.count();
        }
        let _ = parse(&rest);
    }

    #[test]
    fn an_ethernet_frame_comes_out_as_it_went_in(len in 14..9100usize, filling in any::<u8>()) {
        let inside = vec![filling; len];
        let mut plaintext = ethernet_header(len).to_vec();
        plaintext.extend_from_slice(&inside);
        plaintext.resize(plaintext_len(len), 0);
        prop_assert_eq!(plaintext.len() % 16, 0);
        prop_assert_eq!(parse(&plaintext), Ok(Frame::Ethernet(&inside)));
    }
}

#[test]
fn the_bytes_of_a_frame() {
    let ping = Ping::new(0x0403_0201, 0x1817_1615_1413_1211, 9);
    let plaintext = ControlFrame::begin()
        .hello(&hello("vpnd 0.2.0", 0x8000_0001, 1420))
        .ping(&ping)
        .pong(&ping.answer(7, 8))
        .close()
        .end();
    let expected = [
        &[1, 9, 1, 17, 0][..],
        &[1, 0, 0, 0x80, 0x8c, 5, 10],
        b"vpnd 0.2.0",
        &[3, 28, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18],
        &[9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[4, 28, 0, 1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18],
        &[7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
        &[2, 0, 0],
        &[0; 9],
    ]
    .concat();
    assert_eq!(plaintext, expected);
}

#[test]
fn a_kind_that_is_not_known_is_unknown_whatever_follows() {
    for kind in (0..=u8::MAX).filter(|kind| !(1..=3).contains(kind)) {
        for rest in [&[][..], &[0], &[255], &[0; 31]] {
            let plaintext = [&[kind], rest].concat();
            assert_eq!(parse(&plaintext), Err(DropReason::UnknownFrame), "{plaintext:?}");
        }
    }
}

#[test]
fn padding_may_be_any_that_there_is_room_for() {
    for len in 0..300 {
        let mut plaintext = vec![0xff; len];
        plaintext.iter_mut().take(1).for_each(|kind| *kind = ETHERNET);
        for pad_len in 0..=u8::MAX {
            plaintext.iter_mut().skip(1).take(1).for_each(|at| *at = pad_len);
            let inside = len.checked_sub(2 + usize::from(pad_len)).filter(|&inside| inside >= 14);
            let expected = inside.map(|inside| Frame::Ethernet(&plaintext[2..2 + inside]));
            assert_eq!(parse(&plaintext), expected.ok_or(DropReason::FrameMalformed));
        }
    }
    assert_eq!(records(&[CONTROL, 0]), Ok(vec![]), "nothing to say");
}

#[test]
fn a_length_that_a_type_cannot_have_spoils_the_frame() {
    let shortest = [(record::HELLO, 7), (record::PING, 28), (record::PONG, 28)];
    let exact = [
        (record::CLOSE, 0, 0),
        (record::PQ_INIT, 0, 641),
        (record::PQ_INIT, 1, 550),
        (record::PQ_INIT, 2, usize::MAX),
        (record::PQ_RESP, 0, 1108),
    ];
    for len in 0..1400 {
        let zeros = vec![0; len];
        for (kind, shortest) in shortest {
            let heard = records(&frame(kind, &zeros)).map(|heard| heard.len());
            let expected = if len >= shortest { Ok(1) } else { Err(DropReason::FrameMalformed) };
            assert_eq!(heard, expected, "type {kind}, {len} bytes");
        }
        for (kind, first, right) in exact {
            let mut value = zeros.clone();
            value.iter_mut().take(1).for_each(|at| *at = first);
            let sound = records(&frame(kind, &value)).is_ok();
            assert_eq!(sound, len == right, "type {kind}, {len} bytes of {first}");
        }
    }
    let spoiled = ControlFrame::begin().close().record(record::PING, &[&[0; 27]]).close().end();
    assert_eq!(records(&spoiled), Err(DropReason::FrameMalformed));
}

#[test]
fn a_record_ends_within_its_frame() {
    for kind in [record::HELLO, record::PING, 99] {
        let mut plaintext = frame(kind, &[0; 40]);
        assert!(records(&plaintext).is_ok());
        plaintext[3] += 1;
        assert_eq!(records(&plaintext), Err(DropReason::FrameMalformed));
    }
    for cut in [1, 2] {
        let half = [&[CONTROL, 0], &[99, 0][..cut]].concat();
        assert_eq!(records(&half), Err(DropReason::FrameMalformed));
    }
}

#[test]
fn a_later_release_may_add_fields_and_types() {
    let ping = Ping::new(1, 2, 3);
    let greeting = hello("vpnd 9", 1, 9000);
    let (fixed, release, _none) = greeting.wire();
    let plaintext = ControlFrame::begin()
        .record(200, &[b"quite new"])
        .record(record::HELLO, &[fixed.as_bytes(), release.as_bytes(), &[0; 6], b"more"])
        .record(record::PING, &[ping.as_bytes(), b"more"])
        .record(0, &[])
        .record(record::PONG, &[ping.answer(4, 5).as_bytes(), b"more"])
        .end();
    let expected = vec![
        Record::Unknown(200),
        Record::Hello(greeting),
        Record::Ping(ping),
        Record::Unknown(0),
        Record::Pong(ping.answer(4, 5)),
    ];
    assert_eq!(records(&plaintext), Ok(expected));
}

#[test]
fn a_device_with_a_hardware_address_says_it_behind_the_release() {
    let greeting = Hello { mac: Some([2, 0, 0x5e, 0, 0x53, 1]), ..hello("vpnd 1", 0, 1500) };
    let plaintext = ControlFrame::begin().hello(&greeting).end();
    assert_eq!(records(&plaintext), Ok(vec![Record::Hello(greeting)]));
    let (fixed, release, _mac) = greeting.wire();
    let cut = [fixed.as_bytes(), release.as_bytes(), &[2, 0, 0x5e]].concat();
    let none = Record::Hello(hello("vpnd 1", 0, 1500));
    assert_eq!(records(&frame(record::HELLO, &cut)), Ok(vec![none]));
}

#[test]
fn a_release_is_short_and_printable() {
    for bad in ["a\nb", "\x1b[2J", "\u{7f}", "é", "\u{202e}", "0123456789abcdef0123456789abcdef0"]
    {
        assert_eq!(Release::new(bad), None, "{bad:?}");
        let value = [&[0, 0, 0, 0, 0, 0, low(bad.len())], bad.as_bytes()].concat();
        assert_eq!(records(&frame(record::HELLO, &value)), Err(DropReason::FrameMalformed));
    }
    let not_utf8 = [0, 0, 0, 0, 0, 0, 1, 0xff];
    assert_eq!(records(&frame(record::HELLO, &not_utf8)), Err(DropReason::FrameMalformed));
    assert_eq!(Release::new("vpnd 0.2.0~rc1").unwrap().as_str(), "vpnd 0.2.0~rc1");
}

#[test]
fn an_answer_is_never_longer_than_its_question() {
    let ping = Ping::new(1, 2, 3);
    let question = ControlFrame::begin().ping(&ping).end();
    assert_eq!(question.len(), ControlFrame::begin().pong(&ping.answer(1, 1)).end().len());
    let init = PqInit::new(Index::new(1), [7; 1184]);
    let chunks = init.chunks().map(|chunk| ControlFrame::begin().pq_init(chunk).end().len());
    let answer = PqResp { index: Index::new(2), ciphertext: [8; 1088], mac: [9; 16] };
    let answer = ControlFrame::begin().pq_resp(&answer).end().len();
    assert_eq!(chunks.map(|len| len + OVERHEAD), [688, 592]);
    assert_eq!(answer + OVERHEAD, 1152);
}

#[test]
fn a_post_quantum_key_comes_together_in_any_order() {
    let init = PqInit::new(Index::new(0x0403_0201), std::array::from_fn(low));
    assert_eq!(init.as_bytes()[..7], [1, 1, 2, 3, 4, 0, 1]);
    for order in [[0, 1], [1, 0]] {
        let mut assembly = PqInitAssembly::default();
        let [first, second] = order.map(|part| init.chunks()[part]);
        assert_eq!(assembly.insert(first), Ok(None));
        assert_eq!(assembly.insert(first), Ok(None), "the same again");
        assert_eq!(assembly.insert(second), Ok(Some(&init)));
        assert_eq!(assembly.insert(first), Ok(Some(&init)), "its answer was lost");
    }
}

#[test]
fn a_second_post_quantum_key_changes_nothing() {
    let init = PqInit::new(Index::new(1), [7; 1184]);
    let (mut head, mut tail) = (init, init);
    head.index = Index::new(2);
    tail.encapsulation_key[1183] = 8;
    let mut assembly = PqInitAssembly::default();
    for (chunk, outcome) in [
        (init.chunks()[0], Ok(None)),
        (head.chunks()[0], Err(PqInitError::Differs)),
        (init.chunks()[1], Ok(Some(&init))),
        (tail.chunks()[1], Err(PqInitError::Differs)),
        (init.chunks()[0], Ok(Some(&init))),
    ] {
        assert_eq!(assembly.insert(chunk), outcome);
    }
}

#[test]
fn a_suite_that_is_not_known_is_named() {
    let mut bytes = PqInit::new(Index::new(1), [7; 1184]).as_bytes().to_vec();
    bytes[0] = 2;
    let init = PqInit::ref_from_bytes(&bytes).unwrap();
    let mut assembly = PqInitAssembly::default();
    assert_eq!(assembly.insert(init.chunks()[1]), Ok(None));
    assert_eq!(assembly.insert(init.chunks()[0]), Err(PqInitError::UnknownSuite(2)));
}
