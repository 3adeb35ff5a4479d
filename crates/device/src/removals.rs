//! If an object is removed five times within ten seconds, vpnd assumes that the removal is intended, and does
//! not restore the object for a while. This applies to that one address, route or rule only; the others are
//! still restored.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::recent::Recent;

/// An object that was restored and is removed this many times …
pub(crate) const OFTEN: usize = 5;
/// … within this time …
pub(crate) const WITHIN: Duration = Duration::from_secs(10);
/// … is not restored for this time.
pub(crate) const PAUSE: Duration = Duration::from_secs(60);

/// Recent removals, by the object's name.
#[derive(Debug, Default)]
pub(crate) struct Removals {
    each: BTreeMap<String, Recent>,
    left_alone: BTreeMap<String, Instant>,
}

impl Removals {
    /// Counts that these objects were removed and restored; returns the objects that vpnd no longer restores.
    pub(crate) fn count<'a>(
        &mut self,
        removed: impl IntoIterator<Item = &'a String>,
    ) -> Vec<&'a str> {
        let mut names: Vec<_> = removed.into_iter().map(String::as_str).collect();
        // Several objects with the same name were removed together, and count once.
        names.dedup();
        names
            .retain(|name| self.each.entry((*name).to_owned()).or_default().count(WITHIN) >= OFTEN);
        for name in &names {
            self.each.remove(*name);
            self.left_alone.insert((*name).to_owned(), Instant::now() + PAUSE);
        }
        self.each.retain(|_, recent| recent.last().is_some_and(|last| last.elapsed() < WITHIN));
        names
    }

    /// Whether vpnd does not restore this object now.
    pub(crate) fn leave(&self, name: &str) -> bool {
        self.left_alone.get(name).is_some_and(|end| *end > Instant::now())
    }

    /// The time at which vpnd restores the first of these objects again.
    pub(crate) fn over(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.left_alone.retain(|_, end| *end > now);
        self.left_alone.values().min().copied()
    }
}
