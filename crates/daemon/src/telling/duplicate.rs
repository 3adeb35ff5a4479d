//! The peer's key on two machines: what is said of it, and for how long.

use std::time::Duration;

use vpnd_protocol::time::BootTime;

use super::Trouble;

/// Of two machines that send data the protocol finds one more sign at least every minute or two. After this time without
/// one, only one of them is left.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// The two addresses at which the peer's key was used last, and when.
#[derive(Default)]
pub(super) struct Duplicate(Option<(Trouble, BootTime)>);

impl Duplicate {
    /// Notes one more sign of it. Returns whether these two addresses are new.
    pub(super) fn note(&mut self, now: BootTime, addresses: [String; 2]) -> bool {
        self.forget(now);
        let trouble = Trouble::DuplicateKey(addresses);
        let is_new = self.trouble() != Some(&trouble);
        self.0 = Some((trouble, now));
        is_new
    }

    /// Forgets it when there has been no sign for some minutes.
    pub(super) fn forget(&mut self, now: BootTime) {
        self.0.take_if(|(_, at)| now.saturating_since(*at) >= FORGOTTEN);
    }

    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.0.as_ref().map(|(trouble, _)| trouble)
    }
}

/// The words of the hint and of the log.
pub(crate) fn words([one, other]: &[String; 2]) -> String {
    format!(
        "the peer's key is used at two addresses in turn, {one} and {other}: is its configuration on two machines? \
         Each machine needs a key of its own (vpnd pair)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_news_once_and_goes_when_it_happens_no_more() {
        let at = |seconds| BootTime::default() + Duration::from_secs(seconds);
        let pair = |port: u16| [1, 2].map(|host| format!("192.0.2.{host}:{port}"));
        let mut duplicate = Duplicate::default();
        assert!(duplicate.note(at(0), pair(1)));
        assert!(!duplicate.note(at(250), pair(1)));
        assert!(duplicate.note(at(260), pair(2)));
        duplicate.forget(at(559));
        assert_eq!(duplicate.trouble(), Some(&Trouble::DuplicateKey(pair(2))));
        duplicate.forget(at(560));
        assert_eq!(duplicate.trouble(), None);
        assert!(duplicate.note(at(600), pair(2)));
        assert!(duplicate.note(at(1000), pair(2)), "after a long pause it is news again");
    }
}
