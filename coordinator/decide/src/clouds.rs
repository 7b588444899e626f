//! Clouds: who may be asked, until when and for how much, and what was asked of them. Nothing goes to a cloud
//! before this was changed by a majority: the reservation is approval, ceiling and record in one step.

use std::collections::{BTreeMap, BTreeSet};

use pomona_common::{Class, CloudName, KeyId, ModelName, Money, Pools, RequestId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::audit::{AuditBook, Deed};
use crate::command::Reply;
use crate::state::ClusterState;

/// Approvals of a cluster.
const APPROVALS: usize = 32;
/// Answers of clouds under way at once.
const OPEN: usize = 512;
/// An answer is over by then; what is not accounted for is taken to have cost what was reserved. All coordinators
/// apply by it, of whatever version: it does not change with any limit.
pub const LONGEST_S: u64 = 1200;
/// Characters of an address.
const ADDRESS_CHARS: usize = 512;

/// See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudBook {
    /// The clouds that may be asked.
    pub approvals: BTreeMap<CloudName, Approval>,
    /// What clouds took this month, approved or not any more.
    pub spent: BTreeMap<CloudName, Month>,
    /// What keys took of clouds this month.
    pub of_keys: BTreeMap<KeyId, Month>,
    /// How much of clouds keys may take in a month; others may take what there is.
    pub budgets: BTreeMap<KeyId, Money>,
    /// Answers under way.
    pub open: BTreeMap<SpillId, Open>,
    /// Models whose prompts go to no cloud, and to no machine that is rented.
    pub private: BTreeSet<ModelName>,
    /// Every request that went to a cloud, in a chain of its own: there are more of them than of changes.
    pub spills: AuditBook,
}

/// An operator's word that a cloud may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Where it is: what is configured otherwise later is not what was approved.
    pub address: String,
    /// Who approved it, as they call themselves.
    pub by: String,
    /// When, in seconds since 1970.
    pub at_s: u64,
    /// Until when, in seconds since 1970.
    pub until_s: u64,
    /// How much it may cost in a month (UTC).
    pub monthly_money: Money,
    /// Tokens of prompts and answers in a month.
    pub monthly_tokens: u64,
}

/// What was taken in one month.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Month {
    /// Which: months since the year 0, UTC.
    pub month: u32,
    /// What it cost, with what is reserved.
    pub money: Money,
    /// Tokens, likewise.
    pub tokens: u64,
    /// Requests.
    pub requests: u64,
}

/// One answer of a cloud: an answer that is asked of a second cloud is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SpillId {
    /// The client's request.
    pub request: RequestId,
    /// Which of its answers.
    pub choice: u32,
    /// Drawn by whoever asks, so that tries differ.
    pub attempt: u64,
}

/// What an answer may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// By whom.
    pub cloud: CloudName,
    /// For whom.
    pub key: Option<KeyId>,
    /// The most that it can cost.
    pub money: Money,
    /// The most tokens that it can take.
    pub tokens: u64,
    /// When, in seconds since 1970.
    pub at_s: u64,
}

/// An answer under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// What it may take.
    pub reserved: Reserved,
    /// The month that has it, as in [`Month`].
    pub month: u32,
}

impl Open {
    fn is_over(&self, now_s: u64) -> bool {
        self.reserved.at_s.saturating_add(LONGEST_S) <= now_s
    }
}

/// A request that is to go to a cloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spill {
    /// Its name.
    pub id: SpillId,
    /// What is reserved for it.
    pub reserved: Reserved,
    /// Where the cloud is, by the configuration of whoever asks.
    pub address: String,
    /// The model that the client asked for.
    pub model: ModelName,
    /// Class of load.
    pub class: Class,
    /// Where the request may be answered.
    pub pools: Pools,
    /// How it is written down.
    pub deed: Deed,
}

/// What an answer took in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// What it cost.
    pub money: Money,
    /// Tokens of prompt and answer.
    pub tokens: u64,
}

/// Months since the year 0, UTC.
pub fn month_of(at_s: u64) -> u32 {
    let at = i64::try_from(at_s).ok().map(OffsetDateTime::from_unix_timestamp);
    match at {
        Some(Ok(at)) => u32::try_from(at.year()).unwrap_or(0) * 12 + u32::from(u8::from(at.month())) - 1,
        Some(Err(_)) | None => u32::MAX,
    }
}

impl Month {
    /// As it is at a time: a month that has begun since starts from nothing. A clock that lags behind begins no
    /// month anew.
    #[must_use]
    pub fn at(self, now_s: u64) -> Self {
        self.from(month_of(now_s))
    }

    fn from(self, month: u32) -> Self {
        if self.month >= month {
            self
        } else {
            Self {
                month,
                ..Self::default()
            }
        }
    }

    fn take(&mut self, month: u32, reserved: &Reserved) {
        *self = self.from(month);
        self.money = self.money.plus(reserved.money);
        self.tokens = self.tokens.saturating_add(reserved.tokens);
        self.requests += 1;
    }

    /// Of what was reserved only this was taken.
    fn settle(&mut self, Open { reserved, month }: &Open, took: &Took) {
        if self.month != *month {
            return;
        }
        self.money = self.money.minus(reserved.money).plus(took.money);
        self.tokens = self
            .tokens
            .saturating_sub(reserved.tokens)
            .saturating_add(took.tokens);
    }
}

impl CloudBook {
    /// Whether a model's prompts leave the team's own machines.
    pub fn is_private(&self, model: &ModelName) -> bool {
        self.private.contains(model)
    }
}

impl ClusterState {
    /// Why a request must not go to a cloud now, in the user's terms. Part of `apply`: what it says of one state
    /// is the same for ever.
    pub fn refuses_spill(&self, spill: &Spill) -> Option<String> {
        let book = &self.clouds;
        let Reserved { cloud, key, at_s, .. } = &spill.reserved;
        let Some(approval) = book.approvals.get(cloud) else {
            return Some(format!("it is not approved: `pomona cloud approve {cloud}`"));
        };
        if approval.until_s <= *at_s {
            return Some(format!("its approval has ended: `pomona cloud approve {cloud}`"));
        }
        if approval.address != spill.address {
            let why = "it was approved at another address than it is configured at here: `pomona cloud list`";
            return Some(why.to_owned());
        }
        if !spill.pools.is_any() {
            return Some(format!(
                "the API key is for machines of its own only ({})",
                spill.pools
            ));
        }
        if book.is_private(&spill.model) {
            return Some(format!("`{}` is private", spill.model));
        }
        // Whatever the entry says of its key.
        let record = key.map(|key| self.keys.keys.get(&key));
        match record {
            Some(None) => return Some("the API key is none any more".to_owned()),
            Some(Some(record)) if !record.terms.reach().is_any() => {
                return Some("the API key is private".to_owned());
            }
            Some(Some(_)) | None => {}
        }
        let open = book.open.values().filter(|open| !open.is_over(*at_s));
        if open.count() >= OPEN {
            return Some(format!("{OPEN} answers of clouds are under way, the limit"));
        }
        self.over_budget(approval, spill)
    }

    fn over_budget(&self, approval: &Approval, spill: &Spill) -> Option<String> {
        let book = &self.clouds;
        let reserved = &spill.reserved;
        let at = |month: Option<&Month>| month.copied().unwrap_or_default().at(reserved.at_s);
        let of_cloud = at(book.spent.get(&reserved.cloud));
        if of_cloud.money.plus(reserved.money) > approval.monthly_money {
            return Some(
                "this might cost more than is left of this month's money: `pomona cloud list`".to_owned(),
            );
        }
        if of_cloud.tokens.saturating_add(reserved.tokens) > approval.monthly_tokens {
            return Some(
                "this might take more than is left of this month's tokens: `pomona cloud list`".to_owned(),
            );
        }
        let key = reserved.key?;
        let budget = *book.budgets.get(&key)?;
        let of_key = at(book.of_keys.get(&key));
        let is_over = of_key.money.plus(reserved.money) > budget;
        is_over.then(|| "this might cost more than is left of the API key's money of this month".to_owned())
    }
}

pub(crate) fn approve(state: &mut ClusterState, cloud: &CloudName, approval: &Approval) -> Reply {
    if state.cluster.is_none() {
        return Reply::Refused("the cluster is not founded yet, try again in a moment".into());
    }
    if approval.until_s <= approval.at_s {
        return Reply::Refused("an approval ends after it begins".into());
    }
    if approval.address.is_empty() || approval.address.chars().count() > ADDRESS_CHARS {
        return Reply::Refused(format!("an address has 1 to {ADDRESS_CHARS} characters"));
    }
    let approvals = &mut state.clouds.approvals;
    if approvals.get(cloud) == Some(approval) {
        return Reply::Unchanged;
    }
    if approvals.len() >= APPROVALS && !approvals.contains_key(cloud) {
        return Reply::Refused(format!("{APPROVALS} clouds are approved, the limit"));
    }
    approvals.insert(cloud.clone(), approval.clone());
    Reply::Done
}

pub(crate) fn revoke(state: &mut ClusterState, cloud: &CloudName) -> Reply {
    match state.clouds.approvals.remove(cloud) {
        Some(_) => Reply::Done,
        None => Reply::Refused(format!("`{cloud}` is not approved; see `pomona cloud list`")),
    }
}

pub(crate) fn set_private(state: &mut ClusterState, model: &ModelName, private: bool) -> Reply {
    if private && !state.catalogue.contains_key(model) {
        return Reply::Refused(format!("no model `{model}`; see `pomona models`"));
    }
    let marks = &mut state.clouds.private;
    let is_news = if private {
        marks.insert(model.clone())
    } else {
        marks.remove(model)
    };
    if is_news { Reply::Done } else { Reply::Unchanged }
}

pub(crate) fn set_budget(state: &mut ClusterState, key: KeyId, monthly: Option<Money>) -> Reply {
    if !state.keys.keys.contains_key(&key) {
        return Reply::Refused(format!("no key {key}; see `pomona key list`"));
    }
    let budgets = &mut state.clouds.budgets;
    let before = match monthly {
        Some(monthly) => budgets.insert(key, monthly),
        None => budgets.remove(&key),
    };
    if before == monthly {
        Reply::Unchanged
    } else {
        Reply::Done
    }
}

pub(crate) fn reserve(state: &mut ClusterState, spill: &Spill) -> Reply {
    let reserved = &spill.reserved;
    let known = state.clouds.open.get(&spill.id);
    if known.is_some_and(|known| known.reserved == *reserved) {
        return Reply::Unchanged;
    }
    if let Some(why) = state.refuses_spill(spill) {
        return Reply::Refused(why);
    }
    let book = &mut state.clouds;
    book.open.retain(|_, open| !open.is_over(reserved.at_s));
    let of_cloud = book.spent.entry(reserved.cloud.clone()).or_default();
    let of_key = reserved.key.map(|key| book.of_keys.entry(key).or_default());
    // One month for both, also where a clock lags behind what was booked already.
    let latest = of_cloud.month.max(of_key.as_ref().map_or(0, |month| month.month));
    let month = latest.max(month_of(reserved.at_s));
    of_cloud.take(month, reserved);
    if let Some(of_key) = of_key {
        of_key.take(month, reserved);
    }
    let open = Open {
        reserved: reserved.clone(),
        month,
    };
    book.open.insert(spill.id, open);
    book.spills.write(&spill.deed);
    Reply::Done
}

/// What was reserved is what it took, if nobody says less.
pub(crate) fn settle(state: &mut ClusterState, id: SpillId, took: &Took) -> Reply {
    let book = &mut state.clouds;
    let Some(open) = book.open.remove(&id) else {
        return Reply::Unchanged;
    };
    if let Some(month) = book.spent.get_mut(&open.reserved.cloud) {
        month.settle(&open, took);
    }
    if let Some(month) = open.reserved.key.and_then(|key| book.of_keys.get_mut(&key)) {
        month.settle(&open, took);
    }
    Reply::Done
}

pub(crate) fn forget_key(state: &mut ClusterState, key: KeyId) {
    state.clouds.budgets.remove(&key);
    state.clouds.of_keys.remove(&key);
}

#[cfg(test)]
mod tests;
