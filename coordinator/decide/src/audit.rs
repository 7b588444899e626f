//! Who changed what: every change that an operator makes, in a chain of hashes. Whoever has noted one hash can
//! tell whether anything before it was altered since. The replicated state keeps the latest; coordinators write
//! all that they see to disk.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use pomona_common::limits;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::apply;
use crate::command::{Command, Reply};
use crate::membership::printable;
use crate::state::ClusterState;

/// A link of the chain: SHA-256 over the one before and the entry. Zeros come before the first.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct AuditHash(pub [u8; 32]);

impl Serialize for AuditHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for AuditHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// A text that is no hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoHash;

impl fmt::Display for NoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a hash has 64 hexadecimal digits")
    }
}

impl std::error::Error for NoHash {}

impl FromStr for AuditHash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<Self, NoHash> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoHash);
        }
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| NoHash)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| NoHash)?;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A change as people read it. Whoever proposes it says so: coordinators of different versions that apply it
/// must come to the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// Who says they did it: the user of the machine on which it was typed.
    pub by: String,
    /// What was done, such as `key.revoke`.
    pub action: String,
    /// To what.
    pub subject: String,
    /// How, as JSON where it has parts; shortened when it is long.
    pub detail: String,
    /// When, in seconds since 1970, by the clock of the coordinator that was asked.
    pub at_s: u64,
}

/// A command and what it is called in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Audited {
    /// The name for it.
    pub deed: Deed,
    /// What to do.
    pub command: Command,
}

/// A change that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Counts up from 1.
    pub number: u64,
    /// The change.
    pub deed: Deed,
    /// The hash up to and with this entry.
    pub hash: AuditHash,
}

/// The end of the chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditBook {
    /// The hash before the oldest that is kept.
    pub before: AuditHash,
    /// The latest [`AUDIT_KEPT`](limits::AUDIT_KEPT).
    pub latest: VecDeque<AuditEntry>,
}

impl AuditBook {
    /// Number and hash of the last entry.
    pub fn head(&self) -> (u64, AuditHash) {
        let last = self.latest.back();
        last.map_or((0, self.before), |last| (last.number, last.hash))
    }

    /// Adds an entry, with texts as short as the log has them.
    pub(crate) fn write(&mut self, deed: &Deed) {
        let short = |text: &str| text.chars().take(limits::AUDIT_DETAIL_CHARS).collect::<String>();
        let deed = Deed {
            by: printable(&deed.by),
            action: printable(&deed.action),
            subject: short(&deed.subject),
            detail: short(&deed.detail),
            at_s: deed.at_s,
        };
        let (number, before) = self.head();
        let number = number + 1;
        let hash = link(before, number, &deed);
        self.latest.push_back(AuditEntry { number, deed, hash });
        while self.latest.len() > limits::AUDIT_KEPT {
            self.before = self.latest.pop_front().map_or(self.before, |oldest| oldest.hash);
        }
    }
}

/// Every part with its length before it, so that no two entries read the same.
fn link(before: AuditHash, number: u64, deed: &Deed) -> AuditHash {
    let mut hash = Sha256::new();
    hash.update(b"pomona audit 1");
    hash.update(before.0);
    hash.update(number.to_be_bytes());
    hash.update(deed.at_s.to_be_bytes());
    for part in [&deed.by, &deed.action, &deed.subject, &deed.detail] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    AuditHash(hash.finalize().into())
}

/// Checks entries that follow each other. `before` is the hash before the first of them, where it is known.
///
/// # Errors
/// The number of the first that does not follow from what is before it.
pub fn verify<'a>(
    mut before: Option<AuditHash>,
    entries: impl IntoIterator<Item = &'a AuditEntry>,
) -> Result<(), u64> {
    let mut number = None;
    for entry in entries {
        let follows = number.is_none_or(|number| number + 1 == entry.number);
        let is_linked = before.is_none_or(|before| link(before, entry.number, &entry.deed) == entry.hash);
        if !follows || !is_linked {
            return Err(entry.number);
        }
        (number, before) = (Some(entry.number), Some(entry.hash));
    }
    Ok(())
}

/// Carries a command out, and writes it down when it changed something.
pub(crate) fn apply_audited(state: &mut ClusterState, audited: &Audited) -> Reply {
    if matches!(audited.command, Command::Audited(_)) {
        return Reply::Refused("a command is written down once".into());
    }
    let reply = apply(state, &audited.command);
    if reply == Reply::Done {
        state.audit.write(&audited.deed);
    }
    reply
}

#[cfg(test)]
mod tests {
    use pomona_common::{ClusterId, TokenId};

    use super::*;

    fn audited(command: Command, at_s: u64) -> Command {
        let deed = Deed {
            by: "ann".into(),
            action: "test".into(),
            subject: format!("subject {at_s}"),
            detail: "x".repeat(5000),
            at_s,
        };
        Command::Audited(Box::new(Audited { deed, command }))
    }

    fn found(id: u128) -> Command {
        Command::Found(ClusterId::from_bits(id))
    }

    /// A book with so many entries.
    fn book(entries: u64) -> AuditBook {
        let mut book = AuditBook::default();
        for at_s in 1..=entries {
            book.write(&Deed {
                at_s,
                ..Deed::default()
            });
        }
        book
    }

    #[test]
    fn what_changes_something_is_written_down_and_nothing_else() {
        let mut state = ClusterState::default();
        assert_eq!(apply(&mut state, &audited(found(1), 5)), Reply::Done);
        assert_eq!(apply(&mut state, &audited(found(1), 6)), Reply::Unchanged);
        for refused in [found(2), audited(Command::RevokeToken(TokenId::from_bits(1)), 8)] {
            assert!(!matches!(apply(&mut state, &audited(refused, 7)), Reply::Done));
        }
        assert_eq!(state.audit.latest.len(), 1);
        let entry = &state.audit.latest[0];
        assert_eq!(
            (entry.number, entry.deed.at_s, entry.deed.by.as_str()),
            (1, 5, "ann")
        );
        assert_eq!(entry.deed.detail.len(), limits::AUDIT_DETAIL_CHARS);
    }

    #[test]
    fn an_entry_survives_its_json() -> Result<(), serde_json::Error> {
        let entry = book(1).latest[0].clone();
        let text = serde_json::to_string(&entry)?;
        assert!(text.contains(&entry.hash.to_string()));
        assert_eq!(serde_json::from_str::<AuditEntry>(&text)?, entry);
        for bad in ["", "0", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(bad.parse::<AuditHash>(), Err(NoHash));
        }
        Ok(())
    }

    #[test]
    fn the_book_is_bounded_and_goes_on_from_what_it_forgot() {
        let kept = limits::AUDIT_KEPT as u64;
        let book = book(kept + 10);
        assert_eq!(book.latest.len() as u64, kept);
        assert_eq!((book.latest[0].number, book.head().0), (11, kept + 10));
        assert_eq!(verify(Some(book.before), &book.latest), Ok(()));
    }

    #[test]
    fn whatever_is_altered_breaks_the_chain() {
        let sound = book(5);
        type Alter = fn(&mut AuditBook);
        let altered: [(Alter, u64); 6] = [
            (|book| book.latest[2].deed.by = "bob".into(), 3),
            (|book| book.latest[2].deed.at_s += 1, 3),
            (|book| book.latest[2].hash.0[0] ^= 1, 3),
            (|book| drop(book.latest.remove(2)), 4),
            (|book| book.latest.swap(1, 2), 3),
            (|book| book.before.0[31] ^= 1, 1),
        ];
        for (alter, at) in altered {
            let mut book = sound.clone();
            alter(&mut book);
            assert_eq!(verify(Some(book.before), &book.latest), Err(at));
        }
        // Text that moves from one part into the next is another entry.
        let deed = |action: &str, subject: &str| Deed {
            action: action.into(),
            subject: subject.into(),
            ..Deed::default()
        };
        let hash = |deed| link(AuditHash::default(), 1, &deed);
        assert_ne!(hash(deed("ab", "c")), hash(deed("a", "bc")));
    }
}
