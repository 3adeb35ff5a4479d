//! Another wanted state for a device that is in use.

use std::fmt::Display;
use std::time::Duration;

use super::*;

/// States that differ in everything that may change.
fn states() -> Vec<Link> {
    let kill_switch =
        |to: &str, metric| Route { when_down: WhenDown::Blackhole, ..route(to, metric, None) };
    let with = |addresses: &[&str], routes: Vec<Route>| Link {
        addresses: nets(addresses),
        routes,
        multicast: Some(true),
        ..link()
    };
    vec![
        Link { multicast: Some(true), ..link() },
        with(&["10.99.0.2/24"], vec![route("198.51.100.0/24", Some(9), None)]),
        with(&["10.99.0.2/24", "10.99.0.3/24"], vec![kill_switch("198.51.100.0/24", None)]),
        with(&["10.97.0.3/24", "2001:db8:1::1/128"], vec![kill_switch("0.0.0.0/0", None)]),
        Link {
            peer_addresses: vec!["10.98.0.2".parse().unwrap(), "2001:db8:9::2".parse().unwrap()],
            txqueuelen: Some(77),
            multicast: Some(false),
            ..with(
                &["10.98.0.1/32", "2001:db8:1::1/64"],
                vec![kill_switch("198.18.0.0/15", Some(3))],
            )
        },
        with(&[], vec![route("198.18.0.0/15", Some(77), Some(1000)), route("::/0", None, None)]),
        with(&["2001:db8:1::1/64"], Vec::new()),
    ]
}

/// The state without the order of addresses and the marks of a link whose carrier comes later.
fn sorted() -> Vec<String> {
    let mut state = state();
    for line in &mut state {
        // Each line of an address begins with a number, and lists its lifetime.
        *line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    state.sort();
    state
}

/// The state when the kernel has come to rest: it adds the local route of an IPv6 address a moment after the address.
async fn quiet() -> Vec<String> {
    loop {
        let seen = sorted();
        tokio::time::sleep(Duration::from_millis(30)).await;
        if sorted() == seen {
            return seen;
        }
    }
}

/// Waits for the expected state, for the same reason.
async fn comes_to(expected: &[String], what: impl Display) {
    let mut seen = sorted();
    for _ in 0..100 {
        if seen == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        seen = sorted();
    }
    assert_eq!(seen, expected, "{what}");
}

#[test]
fn each_state_is_as_if_it_were_the_first_one_and_all_is_given_back() {
    in_namespace(|netlink, _| async move {
        let before = quiet().await;
        let mut fresh = Vec::new();
        for link in states() {
            let setup = netlink.configure(&link, Undo::default()).await.unwrap();
            fresh.push(quiet().await);
            netlink.undo(setup, Stays::default()).await;
            comes_to(&before, "a stop").await;
        }
        let all = states();
        let order = (0..all.len()).flat_map(|from| (0..all.len()).map(move |to| (from, to)));
        for (from, to) in order {
            let setup = netlink.configure(&all[from], Undo::default()).await.unwrap();
            let keeper = Keeper::spawn(&netlink, Heard::everything().unwrap(), setup);
            keeper.link().become_new(all[to].clone()).await.unwrap();
            comes_to(&fresh[to], format_args!("from {from} to {to}")).await;
            netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
            comes_to(&before, format_args!("after {from} and {to}")).await;
        }
    });
}

#[test]
fn a_state_that_is_refused_leaves_the_former_one() {
    in_namespace(|netlink, _| async move {
        ip("route add 192.0.2.0/24 dev other");
        for from in states() {
            let setup = netlink.configure(&from, Undo::default()).await.unwrap();
            let keeper = Keeper::spawn(&netlink, Heard::everything().unwrap(), setup);
            let before = quiet().await;
            for to in states() {
                let taken = route("192.0.2.0/24", None, None);
                let refused = Link { routes: [to.routes, vec![taken]].concat(), ..to };
                let error = keeper.link().become_new(refused).await.unwrap_err();
                assert!(error.to_string().contains("192.0.2.0/24"), "{error}");
                comes_to(&before, "a refusal").await;
            }
            netlink.undo(keeper.stop().await.unwrap(), Stays::default()).await;
        }
    });
}

#[test]
fn routes_of_a_peer_that_is_alive_are_there_without_a_pause() {
    in_namespace(|netlink, _| async move {
        let setup = netlink.configure(&link(), Undo::default()).await.unwrap();
        let keeper = Keeper::spawn(&netlink, Heard::everything().unwrap(), setup);
        let follows = |when_down| Link {
            routes: vec![Route { when_down, ..route("198.51.100.0/24", None, None) }],
            ..link()
        };
        let is_there = || !ip("-4 route show dev there 198.51.100.0/24").is_empty();
        keeper.peer().set(true);
        tokio::time::sleep(Duration::from_millis(100)).await;
        for when_down in [WhenDown::Remove, WhenDown::Keep, WhenDown::Blackhole] {
            keeper.link().become_new(follows(when_down)).await.unwrap();
            assert!(is_there(), "{when_down:?}");
        }
        keeper.peer().set(false);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!is_there());
        keeper.link().become_new(follows(WhenDown::Remove)).await.unwrap();
        assert!(!is_there());
        keeper.link().become_new(follows(WhenDown::Keep)).await.unwrap();
        assert!(is_there());
    });
}
