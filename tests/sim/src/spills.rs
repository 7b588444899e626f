//! Requests that no machine took, and the cloud that may be asked for them. What the log lets out is compared with a
//! book of its own, written from what operators said.

use std::collections::BTreeMap;

use pomona_common::{Class, CloudName, ModelName, Money, Pools, RequestId};
use pomona_decide::clouds::Approval;
use pomona_decide::{Command, Deed, Reserved, Spill, SpillId, Took};

use crate::actions::Action;
use crate::trouble::model;
use crate::world::World;

const ADDRESS: &str = "https://cloud.example/v1";
/// Money is no matter here: tokens have a ceiling.
const MONEY: Money = Money(1);
/// Answers take at most so many milliseconds.
const TAKES: u64 = 20_000;

/// What operators said, and what went out.
#[derive(Debug, Default)]
pub struct Book {
    /// Until when, in seconds, and for how many tokens the cloud is approved.
    approved: Option<(u64, u64)>,
    private: bool,
    /// Tokens that went out, by request: reserved first, then what they took.
    tokens: BTreeMap<SpillId, u64>,
    pub let_out: usize,
    pub refused: usize,
}

#[expect(clippy::panic, reason = "the name is written here")]
fn cloud() -> CloudName {
    "c".parse().unwrap_or_else(|error| panic!("{error}"))
}

/// The model that is private at times.
fn secret() -> ModelName {
    model(1)
}

impl World {
    /// An operator approves the cloud for so many seconds and tokens, or takes that back.
    pub(crate) fn approve(&mut self, approval: Option<(u64, u64)>) {
        let now_s = self.now_s();
        let approval = approval.map(|(lasts_s, tokens)| (now_s + lasts_s, tokens));
        self.book.approved = approval;
        let command = match approval {
            Some((until_s, monthly_tokens)) => Command::ApproveCloud {
                cloud: cloud(),
                approval: Approval {
                    address: ADDRESS.into(),
                    by: "ann".into(),
                    at_s: now_s,
                    until_s,
                    monthly_money: Money(u64::MAX),
                    monthly_tokens,
                },
            },
            None => Command::RevokeCloud(cloud()),
        };
        self.log.commit(command, &mut self.random);
    }

    /// An operator says whether the second model is private.
    pub(crate) fn set_private(&mut self, private: bool) {
        self.book.private = private;
        let model = secret();
        let command = Command::SetPrivate { model, private };
        self.log.commit(command, &mut self.random);
    }

    /// A coordinator asks the log to let a request out.
    pub(crate) fn spill(&mut self, number: u64) {
        if !self.has_quorum(number) {
            return;
        }
        self.count += 1;
        let (at_s, tokens) = (self.now_s_at(number), self.random.between(20, 400));
        let id = SpillId {
            request: RequestId::from_bits(self.count.into()),
            choice: 0,
            attempt: self.random.draw(),
        };
        let spill = Spill {
            id,
            reserved: Reserved {
                cloud: cloud(),
                key: None,
                money: MONEY,
                tokens,
                at_s,
            },
            address: ADDRESS.into(),
            model: model(self.random.between(0, 2) as usize),
            class: Class::Batch,
            pools: Pools::default(),
            deed: Deed::default(),
        };
        let why_not = self.book.forbids(&spill);
        let command = Command::ReserveSpill(Box::new(spill));
        self.log.commit(command, &mut self.random);
        self.apply(number);
        if !self.coordinator(number).state.clouds.open.contains_key(&id) {
            self.book.refused += 1;
            return;
        }
        self.book.let_out += 1;
        self.book.tokens.insert(id, tokens);
        if let Some(why) = why_not {
            let now = self.now;
            self.broken
                .push(format!("{now}: a request went to a cloud, and {why}"));
        }
        // What some took is never told.
        if !self.random.one_in(5) {
            let took = self.random.between(1, tokens + 1);
            let at = self.now + self.random.between(100, TAKES);
            self.at(at, Action::Settle(id, took));
        }
    }

    /// What an answer took is told.
    pub(crate) fn settle(&mut self, id: SpillId, tokens: u64) {
        self.book.tokens.insert(id, tokens);
        let took = Took { money: MONEY, tokens };
        self.log
            .commit(Command::SettleSpill { id, took }, &mut self.random);
    }
}

impl Book {
    fn forbids(&self, spill: &Spill) -> Option<&'static str> {
        let Some((until_s, most)) = self.approved else {
            return Some("nobody approved it");
        };
        if until_s <= spill.reserved.at_s {
            return Some("its approval has ended");
        }
        if self.private && spill.model == secret() {
            return Some("its model is private");
        }
        let taken: u64 = self.tokens.values().sum();
        (taken + spill.reserved.tokens > most).then_some("the month's tokens are used up")
    }
}
