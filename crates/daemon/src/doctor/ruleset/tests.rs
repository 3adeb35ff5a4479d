//! A table of rules, in the form in which `nft` writes them, and what is known of a datagram after them.

use serde_json::{Value, json};

use super::*;

const PORT: u16 = 51820;

/// A new datagram of the peer, which has the address 192.0.2.2.
fn arriving() -> Packet {
    Packet {
        way: Way::In,
        flow: Flow::New,
        is_v4: true,
        from: (Some([192, 0, 2, 2].into()), Some(PORT)),
        to: (None, Some(PORT)),
        device: Some("eth0".into()),
    }
}

fn chain(name: &str, hook: Option<&str>, policy: &str) -> Value {
    let mut chain = json!({"family": "inet", "table": "filter", "name": name});
    if let Some(hook) = hook {
        let base = json!({"type": "filter", "hook": hook, "prio": 0, "policy": policy});
        for (key, value) in base.as_object().unwrap() {
            chain[key] = value.clone();
        }
    }
    json!({ "chain": chain })
}

fn rules(chain: &str, rules: &[Value]) -> Vec<Value> {
    let rule = |(n, expr): (usize, &Value)| json!({"rule": {"family": "inet", "table": "filter", "chain": chain, "handle": n, "expr": expr}});
    rules.iter().enumerate().map(rule).collect()
}

fn ruleset(objects: &[Value]) -> Ruleset {
    Ruleset::parse(&json!({ "nftables": objects }).to_string()).unwrap()
}

/// Whether the input chain with this policy and these rules drops the datagram for certain.
fn drops(policy: &str, of_input: &[Value], packet: &Packet) -> bool {
    let set =
        json!({"set": {"family": "inet", "table": "filter", "name": "ports", "elem": [22, PORT]}});
    let nets = json!({"set": {"family": "inet", "table": "filter", "name": "nets",
        "elem": [{"prefix": {"addr": "192.0.2.0", "len": 24}}]}});
    let changing = json!({"set": {"family": "inet", "table": "filter", "name": "changing",
        "flags": ["dynamic"]}});
    let map = json!({"map": {"family": "inet", "table": "filter", "name": "verdicts",
        "elem": [[22, {"accept": null}], [PORT, {"jump": {"target": "closed"}}]]}});
    let chains = [
        chain("closed", None, ""),
        chain("open", None, ""),
        chain("unclear", None, ""),
        chain("back", None, ""),
        chain("input", Some("input"), policy),
    ];
    let objects = [
        vec![json!({"metainfo": {}}), set, nets, changing, map],
        chains.to_vec(),
        rules("closed", &[json!([port(PORT), {"counter": {"packets": 7}}, {"drop": null}])]),
        rules("open", &[json!([{"accept": null}])]),
        rules("unclear", &[json!([{"xt": null}, {"accept": null}])]),
        rules("back", &[json!([{"return": null}]), json!([{"drop": null}])]),
        rules("input", of_input),
    ];
    !ruleset(&objects.concat()).droppers(packet).is_empty()
}

fn compare(op: &str, left: &Value, right: &Value) -> Value {
    json!({"match": {"op": op, "left": left, "right": right}})
}

fn field(protocol: &str, field: &str, right: &Value) -> Value {
    compare("==", &json!({"payload": {"protocol": protocol, "field": field}}), right)
}

fn meta(key: &str, right: &Value) -> Value {
    compare("==", &json!({"meta": {"key": key}}), right)
}

fn port(port: u16) -> Value {
    field("udp", "dport", &json!(port))
}

fn state(states: &Value) -> Value {
    compare("in", &json!({"ct": {"key": "state"}}), states)
}

fn then(conditions: &[Value], verdict: &str) -> Value {
    let mut rule = conditions.to_vec();
    rule.push(json!({ verdict: null }));
    Value::Array(rule)
}

fn jump(conditions: &[Value], kind: &str, target: &str) -> Value {
    let mut rule = conditions.to_vec();
    rule.push(json!({kind: {"target": target}}));
    Value::Array(rule)
}

#[test]
fn a_policy_and_what_lets_in() {
    let answers = then(&[state(&json!(["established", "related"]))], "accept");
    let ssh = then(&[field("tcp", "dport", &json!({"set": [22, {"range": [80, 90]}]}))], "accept");
    let other_port = then(&[port(53)], "accept");
    let lo = then(&[meta("iif", &json!("lo"))], "accept");
    let usual = [lo, answers, ssh, other_port];
    assert!(drops("drop", &usual, &arriving()));
    assert!(!drops("accept", &usual, &arriving()));
    let answer = Packet { flow: Flow::Answer, ..arriving() };
    assert!(!drops("drop", &usual, &answer), "the answer to what we have sent");

    let lets_in = [
        vec![port(PORT)],
        vec![field("udp", "dport", &json!({"set": [PORT, 53]}))],
        vec![field("udp", "dport", &json!({"range": [51000, 52000]}))],
        vec![field("udp", "dport", &json!("@ports"))],
        vec![field("th", "dport", &json!(PORT)), meta("l4proto", &json!({"set": ["tcp", "udp"]}))],
        vec![field("ip", "saddr", &json!("@nets"))],
        vec![field("ip", "saddr", &json!({"prefix": {"addr": "192.0.2.0", "len": 24}}))],
        vec![field("ip", "saddr", &json!({"range": ["192.0.2.1", "192.0.2.9"]}))],
        vec![field("ip", "protocol", &json!("udp"))],
        vec![meta("l4proto", &json!(17))],
        vec![meta("iifname", &json!("eth*"))],
        vec![meta("nfproto", &json!("ipv4"))],
        vec![state(&json!(["established", "new"]))],
        vec![compare("!=", &json!({"meta": {"key": "iifname"}}), &json!("lo"))],
        vec![],
    ];
    for conditions in lets_in {
        let accept = then(&conditions, "accept");
        assert!(!drops("drop", &[usual.to_vec(), vec![accept]].concat(), &arriving()));
        let drop = then(&conditions, "drop");
        assert!(drops("accept", std::slice::from_ref(&drop), &arriving()), "{drop}");
    }
}

#[test]
fn what_is_for_others() {
    let others = [
        vec![port(53)],
        vec![field("tcp", "dport", &json!(PORT))],
        vec![compare("!=", &json!({"payload": {"protocol": "tcp", "field": "dport"}}), &json!(22))],
        vec![field("ip", "saddr", &json!("198.51.100.1"))],
        vec![field("ip6", "saddr", &json!("2001:db8::1"))],
        vec![field("icmp", "type", &json!("echo-request"))],
        vec![meta("iifname", &json!("eth1"))],
        vec![meta("oifname", &json!("eth0"))],
        vec![meta("nfproto", &json!("ipv6"))],
        vec![state(&json!("invalid"))],
        vec![meta("pkttype", &json!("broadcast"))],
        vec![meta("mark", &json!(5)), port(53)],
    ];
    for conditions in others {
        for verdict in ["drop", "reject"] {
            let rule = then(&conditions, verdict);
            assert!(!drops("accept", std::slice::from_ref(&rule), &arriving()), "{rule}");
        }
        let accept = then(&conditions, "accept");
        assert!(drops("drop", std::slice::from_ref(&accept), &arriving()), "{accept}");
    }
}

/// Whatever is not understood makes no fault, neither as an exception from a policy nor as a reason to drop.
#[test]
fn what_is_not_understood() {
    let unclear = [
        json!({"xt": {"type": "match", "name": "conntrack"}}),
        json!({"xt": null}),
        json!({"limit": {"rate": 10, "per": "second"}}),
        meta("mark", &json!(5)),
        meta("skuid", &json!(0)),
        field("ether", "saddr", &json!("00:11:22:33:44:55")),
        field("udp", "length", &json!(1000)),
        field("ip", "daddr", &json!("192.0.2.1")),
        field("ip", "saddr", &json!("a.example.net")),
        field("udp", "dport", &json!("@changing")),
        field("udp", "dport", &json!("@not-there")),
        compare("==", &json!({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}), &json!(false)),
        compare("<", &json!({"payload": {"protocol": "udp", "field": "dport"}}), &json!(9)),
        compare("==", &json!({"concat": []}), &json!({"concat": []})),
        json!({"new in a later nft": {}}),
        json!("not even an object"),
    ];
    for condition in unclear {
        let accept = then(std::slice::from_ref(&condition), "accept");
        assert!(!drops("drop", std::slice::from_ref(&accept), &arriving()), "{accept}");
        let drop = then(&[condition], "drop");
        assert!(!drops("accept", std::slice::from_ref(&drop), &arriving()), "{drop}");
    }
    // One that may drop it, and one that does.
    let maybe = then(&[meta("mark", &json!(5))], "drop");
    assert!(drops("accept", &[maybe.clone(), then(&[port(PORT)], "drop")], &arriving()));
    assert!(drops("drop", &[maybe], &arriving()));
    // The state of a packet that is not tracked.
    let untracked = [json!([{"notrack": null}]), then(&[state(&json!("new"))], "drop")];
    assert!(!drops("accept", &untracked, &arriving()));
}

#[test]
fn chains_that_lead_to_others() {
    let cases = [
        (jump(&[], "jump", "closed"), true),
        (jump(&[port(PORT)], "goto", "closed"), true),
        (jump(&[port(53)], "jump", "closed"), false),
        (jump(&[meta("mark", &json!(5))], "jump", "closed"), false),
        (jump(&[], "jump", "back"), false),
        (jump(&[], "jump", "not-there"), false),
        (
            json!([{"vmap": {"key": {"payload": {"protocol": "udp", "field": "dport"}}, "data": "@verdicts"}}]),
            true,
        ),
        (
            json!([{"vmap": {"key": {"payload": {"protocol": "udp", "field": "dport"}},
            "data": {"set": [[{"range": [1, 9]}, {"accept": null}], [PORT, {"drop": null}]]}}}]),
            true,
        ),
        (
            json!([{"vmap": {"key": {"ct": {"key": "state"}},
            "data": {"set": [["invalid", {"drop": null}], ["established", {"accept": null}]]}}}]),
            false,
        ),
        (
            json!([{"vmap": {"key": {"meta": {"key": "mark"}}, "data": {"set": [[5, {"drop": null}]]}}}]),
            false,
        ),
        (
            json!([{"vmap": {"key": {"payload": {"protocol": "tcp", "field": "dport"}},
            "data": {"set": [[PORT, {"drop": null}]]}}}]),
            false,
        ),
    ];
    for (rule, expected) in cases {
        assert_eq!(drops("accept", std::slice::from_ref(&rule), &arriving()), expected, "{rule}");
    }
    // With a policy that drops, everything drops it that does not accept it.
    for (target, expected) in
        [("back", true), ("closed", true), ("open", false), ("unclear", false)]
    {
        for kind in ["jump", "goto"] {
            let rule = jump(&[], kind, target);
            assert_eq!(drops("drop", &[rule], &arriving()), expected, "{kind} {target}");
        }
    }
    // After one that ends the chain, nothing of it counts.
    let skipped = [jump(&[], "goto", "back"), then(&[], "drop")];
    assert!(!drops("accept", &skipped, &arriving()));
    let may_return = [then(&[meta("mark", &json!(5))], "return"), then(&[], "drop")];
    assert!(!drops("accept", &may_return, &arriving()));
}

#[test]
fn a_chain_that_leads_to_itself_ends() {
    let objects = [
        vec![chain("input", Some("input"), "accept")],
        rules("input", &[jump(&[], "jump", "input")]),
    ];
    assert!(ruleset(&objects.concat()).droppers(&arriving()).is_empty());
}

#[test]
fn the_hook_and_the_family_of_a_chain() {
    let leaving = Packet { way: Way::Out, ..arriving() };
    let over_v6 = Packet { is_v4: false, from: (None, None), ..arriving() };
    for (family, hook, [arrives, leaves, v6]) in [
        ("inet", "input", [true, false, true]),
        ("ip", "prerouting", [true, false, false]),
        ("ip6", "input", [false, false, true]),
        ("ip", "output", [false, true, false]),
        ("inet", "postrouting", [false, true, false]),
        ("inet", "forward", [false, false, false]),
        ("netdev", "ingress", [false, false, false]),
        ("bridge", "input", [false, false, false]),
    ] {
        let mut closed = chain("closed", Some(hook), "drop");
        closed["chain"]["family"] = family.into();
        let ruleset = ruleset(&[closed]);
        let drops = |packet| !ruleset.droppers(packet).is_empty();
        let found = [drops(&arriving()), drops(&leaving), drops(&over_v6)];
        assert_eq!(found, [arrives, leaves, v6], "{family} {hook}");
    }
    let mut nat = chain("nat", Some("prerouting"), "drop");
    nat["chain"]["type"] = "nat".into();
    assert!(ruleset(&[nat]).droppers(&arriving()).is_empty());
}

#[test]
fn who_drops_is_named() {
    let objects = [
        vec![chain("closed", None, ""), chain("input", Some("input"), "accept")],
        rules("closed", &[then(&[port(53)], "drop"), then(&[port(PORT)], "reject")]),
        rules("input", &[jump(&[], "jump", "closed")]),
    ];
    let droppers = ruleset(&objects.concat()).droppers(&arriving());
    let expected = Dropper {
        family: "inet".into(),
        table: "filter".into(),
        chain: "input".into(),
        rule: Some((1, "closed".into())),
    };
    assert_eq!(droppers, [expected]);
}

#[test]
fn what_is_no_ruleset() {
    for output in ["", "{}", "[]", "null", r#"{"nftables": 7}"#] {
        assert!(Ruleset::parse(output).is_none(), "{output}");
    }
    let odd = r#"{"nftables": [7, {}, {"rule": 7}, {"chain": {}}, {"set": null}]}"#;
    assert!(Ruleset::parse(odd).unwrap().droppers(&arriving()).is_empty());
}
