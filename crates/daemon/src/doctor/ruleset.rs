//! Judges nftables' rules, as `nft -j list ruleset` writes them: whether they drop a datagram of the tunnel for
//! certain. A condition or a statement that is not understood makes the result uncertain, and never a fault.

mod packet;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;

use packet::{Fact, Sets, Truth, only_entry};
pub(super) use packet::{Flow, Packet, Way};

/// The longest way through chains; the kernel allows 16 jumps.
const DEEPEST: usize = 17;

/// The chain at a hook that drops a datagram, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dropper {
    pub(super) family: String,
    pub(super) table: String,
    pub(super) chain: String,
    /// The number of the rule, in the chain of this name; without a rule the chain's policy drops.
    pub(super) rule: Option<(u64, String)>,
}

/// All chains and sets.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    chains: Vec<Chain>,
    /// The sets of each table, which is named by family and name.
    sets: BTreeMap<(String, String), Sets>,
    /// Whether a rule exempts packets from connection tracking: then their state is not known.
    untracks: bool,
}

#[derive(Debug)]
struct Chain {
    family: String,
    table: String,
    name: String,
    /// The hook, for a base chain that filters.
    hook: Option<String>,
    drops: bool,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    handle: u64,
    expressions: Vec<Value>,
}

/// What becomes of a datagram in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Accepted,
    Dropped(Option<(u64, String)>),
    /// It reaches the end of the chain.
    Through,
    Unclear,
}

/// What a rule does with a datagram that it matches.
enum Verdict<'a> {
    Accept,
    Drop,
    Return,
    Jump(&'a str),
    Goto(&'a str),
    /// Not known.
    Any,
}

impl Ruleset {
    /// Reads the output of `nft -j list ruleset`; `None` if it is something else.
    pub(super) fn parse(output: &str) -> Option<Self> {
        let output: Value = serde_json::from_str(output).ok()?;
        let mut ruleset = Self::default();
        for object in output.get("nftables")?.as_array()? {
            match only_entry(object) {
                Some(("chain", chain)) => ruleset.chains.extend(Chain::read(chain)),
                Some(("rule", rule)) => ruleset.add_rule(rule),
                Some(("set" | "map", set)) => ruleset.add_set(set),
                _ => {}
            }
        }
        Some(ruleset)
    }

    fn add_rule(&mut self, rule: &Value) {
        let Some(expressions) = rule["expr"].as_array() else { return };
        let is_notrack = |one: &Value| only_entry(one).is_some_and(|(kind, _)| kind == "notrack");
        self.untracks |= expressions.iter().any(is_notrack);
        let (family, table, name) =
            (text(rule, "family"), text(rule, "table"), text(rule, "chain"));
        let mut chains = self.chains.iter_mut();
        if let Some(chain) = chains.find(|chain| chain.is(&family, &table, &name)) {
            let handle = rule["handle"].as_u64().unwrap_or_default();
            chain.rules.push(Rule { handle, expressions: expressions.clone() });
        }
    }

    fn add_set(&mut self, set: &Value) {
        // Packets change a dynamic set.
        let is_dynamic = set["flags"].as_array().is_some_and(|all| all.contains(&"dynamic".into()));
        let elements = set.get("elem").cloned().unwrap_or_else(|| Value::Array(Vec::new()));
        let elements = if is_dynamic { Value::Null } else { elements };
        let table = (text(set, "family"), text(set, "table"));
        self.sets.entry(table).or_default().insert(text(set, "name"), elements);
    }

    /// The chains that drop the datagram for certain, whatever the others do.
    pub(super) fn droppers(&self, packet: &Packet) -> Vec<Dropper> {
        let passed = self.chains.iter().filter(|chain| chain.sees(packet));
        passed.filter_map(|chain| self.dropper(chain, packet)).collect()
    }

    fn dropper(&self, chain: &Chain, packet: &Packet) -> Option<Dropper> {
        let rule = match self.walk(chain, packet, DEEPEST) {
            Fate::Dropped(rule) => rule,
            Fate::Through if chain.drops => None,
            _ => return None,
        };
        let (family, table) = (chain.family.clone(), chain.table.clone());
        Some(Dropper { family, table, chain: chain.name.clone(), rule })
    }

    fn walk(&self, chain: &Chain, packet: &Packet, depth: usize) -> Fate {
        let mut is_unclear = depth == 0;
        for rule in chain.rules.iter().filter(|_| depth > 0) {
            let (truth, Some(verdict)) = self.apply(chain, rule, packet) else { continue };
            let ends = matches!(verdict, Verdict::Return | Verdict::Goto(_));
            match (truth, self.fate(chain, rule, verdict, packet, depth)) {
                (Truth::No, _) => {}
                (Truth::Yes, Fate::Accepted) => return Fate::Accepted,
                (Truth::Yes, dropped @ Fate::Dropped(_)) if !is_unclear => return dropped,
                (Truth::Yes, Fate::Through) if ends => break,
                // It may have been dropped here, which the others do not undo.
                (Truth::Unknown, Fate::Dropped(_)) => {}
                (_, Fate::Through) if !ends => {}
                (_, Fate::Dropped(_)) => return Fate::Unclear,
                _ => is_unclear = true,
            }
        }
        if is_unclear { Fate::Unclear } else { Fate::Through }
    }

    fn fate(
        &self,
        chain: &Chain,
        rule: &Rule,
        verdict: Verdict<'_>,
        packet: &Packet,
        depth: usize,
    ) -> Fate {
        match verdict {
            Verdict::Accept => Fate::Accepted,
            Verdict::Drop => Fate::Dropped(Some((rule.handle, chain.name.clone()))),
            Verdict::Return => Fate::Through,
            Verdict::Any => Fate::Unclear,
            Verdict::Jump(name) | Verdict::Goto(name) => {
                let target = self.chains.iter().find(|it| it.is(&chain.family, &chain.table, name));
                target.map_or(Fate::Unclear, |target| self.walk(target, packet, depth - 1))
            }
        }
    }

    /// Whether the rule matches, and its verdict.
    fn apply<'a>(
        &'a self,
        chain: &Chain,
        rule: &'a Rule,
        packet: &Packet,
    ) -> (Truth, Option<Verdict<'a>>) {
        let nothing = Sets::new();
        let table = (chain.family.clone(), chain.table.clone());
        let sets = self.sets.get(&table).unwrap_or(&nothing);
        let mut truth = Truth::Yes;
        for expression in &rule.expressions {
            match only_entry(expression) {
                Some(("match", condition)) => {
                    truth = truth.and(self.matches(packet, condition, sets));
                }
                Some(("counter" | "log" | "mangle" | "dup" | "notrack" | "flow", _)) => {}
                Some(("vmap", map)) => return (truth, self.mapped(packet, map, &table)),
                Some((kind, of)) => match verdict(kind, of) {
                    Some(verdict) => return (truth, Some(verdict)),
                    // It may change which packets the rest is for, or be a verdict itself.
                    None => return (truth.and(Truth::Unknown), Some(Verdict::Any)),
                },
                None => return (truth.and(Truth::Unknown), Some(Verdict::Any)),
            }
            if truth == Truth::No {
                return (truth, None);
            }
        }
        (truth, None)
    }

    fn matches(&self, packet: &Packet, condition: &Value, sets: &Sets) -> Truth {
        let asks_state = condition["left"].get("ct").is_some();
        if asks_state && self.untracks { Truth::Unknown } else { packet.matches(condition, sets) }
    }

    /// The verdict that a map has for the datagram.
    fn mapped<'a>(
        &'a self,
        packet: &Packet,
        map: &'a Value,
        table: &(String, String),
    ) -> Option<Verdict<'a>> {
        let sets = self.sets.get(table);
        let elements = match &map["data"] {
            Value::String(name) => sets?.get(name.strip_prefix('@')?)?,
            data => &data["set"],
        };
        let (nothing, fact) = (Sets::new(), packet.fact(&map["key"]));
        if fact == Fact::Absent {
            return None;
        }
        let (Some(elements), false) = (elements.as_array(), self.untracks) else {
            return Some(Verdict::Any);
        };
        for element in elements {
            match packet::is_among(&fact, key_of(element), sets.unwrap_or(&nothing)) {
                Truth::No => {}
                Truth::Yes => {
                    let of = only_entry(&element[1]).and_then(|(kind, of)| verdict(kind, of));
                    return Some(of.unwrap_or(Verdict::Any));
                }
                Truth::Unknown => return Some(Verdict::Any),
            }
        }
        None
    }
}

/// The key of an element of a map.
fn key_of(element: &Value) -> &Value {
    match only_entry(&element[0]) {
        Some(("elem", with_more)) => &with_more["val"],
        _ => &element[0],
    }
}

fn verdict<'a>(kind: &str, of: &'a Value) -> Option<Verdict<'a>> {
    let target = || of["target"].as_str();
    Some(match kind {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "return" => Verdict::Return,
        "jump" => Verdict::Jump(target()?),
        "goto" => Verdict::Goto(target()?),
        _ => return None,
    })
}

impl Chain {
    fn read(chain: &Value) -> Option<Self> {
        let is_filter = chain["type"] != "nat";
        Some(Self {
            family: chain["family"].as_str()?.to_owned(),
            table: chain["table"].as_str()?.to_owned(),
            name: chain["name"].as_str()?.to_owned(),
            hook: chain["hook"].as_str().filter(|_| is_filter).map(str::to_owned),
            drops: chain["policy"] == "drop",
            rules: Vec::new(),
        })
    }

    fn is(&self, family: &str, table: &str, name: &str) -> bool {
        self.family == family && self.table == table && self.name == name
    }

    /// Whether the datagram passes this chain by a hook.
    fn sees(&self, packet: &Packet) -> bool {
        let hooks = match packet.way {
            Way::In => ["prerouting", "input"],
            Way::Out => ["output", "postrouting"],
        };
        let family = if packet.is_v4 { "ip" } else { "ip6" };
        let is_hook = self.hook.as_deref().is_some_and(|hook| hooks.contains(&hook));
        is_hook && (self.family == "inet" || self.family == family)
    }
}

fn text(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}
