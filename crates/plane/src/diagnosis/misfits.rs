//! Differences between the TAP devices of both ends.

use vpnd_protocol::peer::Diagnosis;

use super::trouble::Trouble;

/// The differences according to the peer's latest HELLO.
#[derive(Debug, Default)]
pub(super) struct Misfits {
    same_mac: Option<[u8; 6]>,
    mtus: Option<(u16, u16)>,
}

impl Misfits {
    /// Records the differences, which every session reports again. Returns the new ones.
    pub(super) fn compare(
        &mut self,
        same_mac: Option<[u8; 6]>,
        mtus: Option<(u16, u16)>,
    ) -> Option<Diagnosis> {
        let before = std::mem::replace(self, Self { same_mac, mtus });
        let same_mac = same_mac.filter(|mac| before.same_mac != Some(*mac));
        let mtus = mtus.filter(|mtus| before.mtus != Some(*mtus));
        let is_news = same_mac.is_some() || mtus.is_some();
        is_news.then_some(Diagnosis::Devices { same_mac, mtus })
    }

    pub(super) fn trouble(&self) -> Option<Trouble> {
        let mtus = || self.mtus.map(|(ours, theirs)| Trouble::MtuDiffers(ours, theirs));
        self.same_mac.map(Trouble::SameMac).or_else(mtus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_news_once_until_it_was_gone() {
        let mut misfits = Misfits::default();
        let (mac, mtus) = (Some([2; 6]), Some((1420, 1500)));
        let both = Diagnosis::Devices { same_mac: mac, mtus };
        assert_eq!(misfits.compare(mac, mtus), Some(both));
        assert_eq!(misfits.trouble(), Some(Trouble::SameMac([2; 6])));
        assert_eq!(misfits.compare(mac, mtus), None);
        assert_eq!(misfits.compare(None, mtus), None);
        assert_eq!(misfits.trouble(), Some(Trouble::MtuDiffers(1420, 1500)));
        let again = Diagnosis::Devices { same_mac: mac, mtus: None };
        assert_eq!(misfits.compare(mac, mtus), Some(again));
        misfits.compare(None, None);
        assert_eq!(misfits.trouble(), None);
    }
}
