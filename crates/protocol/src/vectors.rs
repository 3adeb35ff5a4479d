//! Test vectors that `tests/data/vpnd_kat.py` computed for vpnd's additions to the protocol.

use serde_json::Value;

/// One vector; its byte strings are hexadecimal.
pub(crate) struct Vector(Value);

/// The vectors of this name.
pub(crate) fn vectors(name: &str) -> Vec<Vector> {
    let file: Value = serde_json::from_str(include_str!("../tests/data/vpnd_kat.json")).unwrap();
    file[name].as_array().unwrap().iter().cloned().map(Vector).collect()
}

impl Vector {
    pub(crate) fn has(&self, field: &str) -> bool {
        !self.0[field].is_null()
    }

    pub(crate) fn number(&self, field: &str) -> u32 {
        self.0[field].as_u64().unwrap().try_into().unwrap()
    }

    pub(crate) fn array<const N: usize>(&self, field: &str) -> [u8; N] {
        let text = self.0[field].as_str().unwrap();
        assert_eq!(text.len(), 2 * N, "{field}");
        std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..][..2], 16).unwrap())
    }
}
