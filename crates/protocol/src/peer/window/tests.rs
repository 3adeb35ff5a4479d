use super::*;

use allocation_counter::measure;
use proptest::prelude::*;

const TRIP: Duration = Duration::from_millis(20);

fn at(seconds: u64) -> BootTime {
    // Such that slots are used that are not at the beginning.
    BootTime::from_nanos(0) + Duration::from_secs(10_000 + seconds)
}

fn to() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1))
}

/// The sessions of one generation in both directions.
fn session(number: u64) -> Counted {
    let generation = (0..number).fold(Generation::default(), |one, _| one.next());
    Counted { outward: generation, inward: generation }
}

fn quality(sent: u64, missing: u64) -> Quality {
    let loss = Loss { sent, arrived: sent - missing };
    Quality { round_trip: TRIP, outward: loss, inward: Loss { sent, arrived: sent } }
}

/// What is sent and lost of it outward: in a minute, and in ten.
fn outward(window: &Window, now: u64) -> [Option<(u64, u64)>; 2] {
    let recent = window.recent(at(now));
    [recent.minute, recent.ten_minutes]
        .map(|loss| loss.outward.map(|loss| (loss.sent, loss.sent - loss.arrived)))
}

#[test]
fn what_was_not_measured_is_absent() {
    let mut window = Window::default();
    assert_eq!(window.recent(at(0)), Recent::default());
    window.take(at(0), to(), session(1), quality(50, 0));
    window.take(at(1), to(), session(1), quality(150, 0));
    assert_eq!(outward(&window, 1), [None; 2], "nothing has judged it yet");
    window.take(at(2), to(), session(1), quality(250, 0));
    assert_eq!(outward(&window, 2), [Some((100, 0)); 2]);
    assert_eq!(outward(&window, 60), [Some((100, 0)); 2]);
    assert_eq!(outward(&window, 61), [None, Some((100, 0))]);
    assert_eq!(outward(&window, 601), [None, None]);
    assert_eq!(window.recent(at(62)).round_trip, None);
}

#[test]
fn what_is_under_way_is_not_lost() {
    let mut window = Window::default();
    window.take(at(0), to(), session(1), quality(1, 0));
    window.take(at(1), to(), session(1), quality(101, 60));
    window.take(at(2), to(), session(1), quality(201, 10));
    window.take(at(3), to(), session(1), quality(301, 40));
    assert_eq!(outward(&window, 3), [Some((200, 10)); 2]);
    // Two of the ten came late after all.
    window.take(at(4), to(), session(1), quality(401, 8));
    assert_eq!(outward(&window, 4), [Some((300, 8)); 2]);
}

#[test]
fn a_session_that_ends_takes_with_it_what_is_not_judged() {
    let mut window = Window::default();
    window.take(at(0), to(), session(1), quality(10, 0));
    window.take(at(1), to(), session(1), quality(110, 1));
    window.take(at(2), to(), session(1), quality(500, 400));
    window.take(at(20), to(), session(2), quality(10, 0));
    window.take(at(21), to(), session(2), quality(20, 0));
    window.take(at(22), to(), session(2), quality(30, 0));
    assert_eq!(outward(&window, 22), [Some((100 + 10, 1)); 2]);
}

#[test]
fn after_a_crossing_the_sessions_of_the_two_directions_change_apart() {
    let mut window = Window::default();
    let [old, new] = [1, 2].map(session);
    let both = Counted { outward: new.outward, inward: old.inward };
    window.take(at(1), to(), both, quality(100, 0));
    window.take(at(2), to(), both, quality(200, 0));
    window.take(at(3), to(), new, quality(300, 0));
    window.take(at(4), to(), new, quality(400, 0));
    let recent = window.recent(at(4)).minute;
    assert_eq!(recent.outward.map(|loss| loss.sent), Some(200));
    assert_eq!(recent.inward, None, "both sessions have only begun");
}

#[test]
fn what_an_hour_ago_was_not_judged_is_no_loss_of_today() {
    let mut window = Window::default();
    window.take(at(0), to(), session(1), quality(10, 0));
    window.take(at(0), to(), session(1), quality(1000, 500));
    window.take(at(3600), to(), session(1), quality(1001, 500));
    window.take(at(3601), to(), session(1), quality(1002, 500));
    assert_eq!(outward(&window, 3601), [Some((1, 0)); 2]);
}

#[test]
fn the_round_trip_is_smoothed_and_of_one_path() {
    let mut window = Window::default();
    let mut trip = |second: u64, to: SocketAddr, millis: u64| {
        let round_trip = Duration::from_millis(millis);
        window.take(at(second), to, session(1), Quality { round_trip, ..quality(second, 0) });
        window.recent(at(second)).round_trip.unwrap()
    };
    let of = |smoothed, jitter| RoundTrip {
        smoothed: Duration::from_millis(smoothed),
        jitter: Duration::from_millis(jitter),
    };
    assert_eq!(trip(1, to(), 100), of(100, 0));
    assert_eq!(trip(2, to(), 180), of(110, 5));
    let elsewhere = SocketAddr::from(([192, 0, 2, 2], 1));
    assert_eq!(trip(3, elsewhere, 7), of(7, 0));
}

#[test]
fn counts_that_no_honest_peer_sends_are_survived() {
    let mut window = Window::default();
    for (second, sent, arrived) in
        [(1, u64::MAX, 0), (2, 5, u64::MAX), (3, u64::MAX, 3), (4, 0, 0), (5, u64::MAX, 0)]
    {
        let loss = Loss { sent, arrived };
        let found = Quality { round_trip: Duration::MAX, outward: loss, inward: loss };
        window.take(at(second), to(), session(1), found);
        let minute = window.recent(at(second)).minute;
        assert!(minute.outward.is_none_or(|loss| loss.arrived <= loss.sent), "{minute:?}");
    }
}

#[test]
fn nothing_is_allocated_after_the_start() {
    let mut window = Window::default();
    let allocations = measure(|| {
        for second in 0..2000 {
            window.take(at(second), to(), session(1), quality(10 * second, second / 7));
            std::hint::black_box(window.recent(at(second)));
        }
    });
    assert_eq!(allocations.count_total, 0);
}

/// Seconds since the last PING, datagrams since then, how many of them are lost, and whether it is the first PING of
/// a session.
fn pings() -> impl Strategy<Value = Vec<(u64, u64, u64, bool)>> {
    let gap = prop_oneof![8 => 1..3_u64, 2 => 1..90_u64, 1 => 1..2000_u64];
    let ping = (gap, 1..1000_u64, 0..100_u64, prop::bool::weighted(0.05));
    prop::collection::vec(ping, 1..300)
}

proptest! {
    /// Against a list of everything that was ever judged.
    #[test]
    fn the_ring_adds_up_like_a_list(pings in pings()) {
        let mut window = Window::default();
        let (mut now, mut sessions, mut total) = (0, 1, (0, 0));
        let (mut waiting, mut begins, mut judged) = (None, true, Vec::new());
        for (gap, sent, lost, is_new) in pings {
            now += gap;
            if is_new {
                (sessions, total, waiting, begins) = (sessions + 1, (0, 0), None, true);
            }
            let lost = lost.min(sent);
            total = (total.0 + sent, total.1 + lost);
            if let Some(settled) = waiting.replace((now, sent, lost)) {
                judged.extend((!std::mem::take(&mut begins)).then_some(settled));
            }
            window.take(at(now), to(), session(sessions), quality(total.0, total.1));
            let expected = [60, 600].map(|seconds| {
                let recent = judged.iter().filter(|(then, ..)| now - then < seconds);
                let sum = recent.fold((0, 0), |sum, (_, sent, lost)| (sum.0 + sent, sum.1 + lost));
                (sum.0 > 0).then_some(sum)
            });
            prop_assert_eq!(outward(&window, now), expected);
        }
    }

    /// Every other PONG finds any number of datagrams under way.
    #[test]
    fn reordering_alone_is_never_loss(under_way in prop::collection::vec(0..500_u64, 1..200)) {
        let mut window = Window::default();
        for (second, under_way) in (1_u64..).zip(under_way) {
            let missing = if second.is_multiple_of(2) { 0 } else { under_way };
            window.take(at(second), to(), session(1), quality(500 * second, missing));
            let lost = outward(&window, second).map(|loss| loss.map_or(0, |(_, lost)| lost));
            prop_assert_eq!(lost, [0; 2]);
        }
    }
}
