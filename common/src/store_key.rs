//! The key of a rented machine's store.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Coordinators derive it, the machine keeps it in memory only: whoever has its disk, and not the
/// cluster's word, has nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreKey(pub [u8; 32]);

impl StoreKey {
    /// As a passphrase: 64 hexadecimal digits.
    pub fn passphrase(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(…)")
    }
}
