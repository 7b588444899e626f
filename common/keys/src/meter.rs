//! How much keys take at one entry: limits, and the batches in which the cluster hears of it.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use pomona_common::key::{KeyLimits, KeyRecord};
use pomona_common::spending::{Account, Amount, Batch, Charged, MINUTE_S, Spent, Windows, until_midnight_s};
use pomona_common::{KeyId, ModelName, limits};

use crate::denied::{Bound, Denied};
use crate::ring::KeyRing;

/// How long a key waits that has too many requests running: there is no telling when one ends.
const BUSY_RETRY_S: u64 = 1;
/// A minute and the one after it: by then all windows of now are over.
const MINUTES_S: u64 = 120;
/// Minutes of accounts that an entry keeps for a cluster that does not listen: sixteen for each of all keys.
const FRESH_MAX: usize = 65_536;

/// One of the windows, at a time.
type Window = fn(&Windows, u64) -> Amount;

/// See the module's documentation.
#[derive(Debug)]
pub struct Meter {
    instance: u64,
    /// What runs now, by account.
    running: BTreeMap<Account, Running>,
    /// What the cluster's count does not have yet.
    own: BTreeMap<Account, Windows>,
    /// Of that, what is in no batch, by account and minute.
    fresh: BTreeMap<(Account, u64), Amount>,
    /// The batch on its way.
    sent: Option<Batch>,
    /// Number of the latest batch, and what it ended with: the next one goes on after it.
    number: u64,
    told: Option<(Account, u64)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Running {
    requests: u32,
    /// Tokens that they may take.
    reserved: u64,
}

/// A request that is let in, and what is kept free for it. It has to be given back with [`Meter::end`].
#[derive(Debug)]
#[must_use]
pub struct Reserved {
    /// Where it counts.
    accounts: Vec<Account>,
    tokens: u64,
}

impl Meter {
    /// Of an entry's process, which drew this number.
    pub fn new(instance: u64) -> Self {
        Self {
            instance,
            running: BTreeMap::new(),
            own: BTreeMap::new(),
            fresh: BTreeMap::new(),
            sent: None,
            number: 0,
            told: None,
        }
    }

    /// Lets a request in, which counts from now on.
    ///
    /// # Errors
    /// A limit is reached.
    pub fn begin(
        &mut self,
        ring: &KeyRing,
        (key, record): (KeyId, &KeyRecord),
        model: &ModelName,
        now_s: u64,
    ) -> Result<Reserved, Denied> {
        let mut full = Full::default();
        for (account, limits) in accounts(key, record, model) {
            let running = self.running.get(&account).map_or(0, |running| running.requests);
            if let Some(limit) = limits.concurrency.filter(|limit| running >= *limit) {
                full.note(BUSY_RETRY_S, bound(limit.into(), "requests at once", &account));
            }
            if let Some(limit) = limits.requests_per_minute {
                let limit = u64::from(limit);
                let fits = |at_s| self.known(ring, &account, Windows::minute, at_s).requests < limit;
                if !fits(now_s) {
                    full.note(
                        until(now_s, MINUTES_S, fits),
                        bound(limit, "requests a minute", &account),
                    );
                }
            }
        }
        full.refuse()?;
        let one = Amount {
            requests: 1,
            tokens: 0,
        };
        let accounts: Vec<Account> = accounts(key, record, model).map(|(account, _)| account).collect();
        for account in &accounts {
            self.running.entry(account.clone()).or_default().requests += 1;
            self.spend(account, one, now_s);
        }
        Ok(Reserved { accounts, tokens: 0 })
    }

    /// Keeps tokens free that a request may take, prompt and answers together, instead of those before.
    ///
    /// # Errors
    /// A limit is reached, or can never hold so many.
    pub fn reserve(
        &mut self,
        ring: &KeyRing,
        record: &KeyRecord,
        reserved: &mut Reserved,
        tokens: u64,
        now_s: u64,
    ) -> Result<(), Denied> {
        let mut full = Full::default();
        for account in &reserved.accounts {
            let Some(limits) = limits_of(account, record) else {
                continue;
            };
            let held = self.running.get(account).map_or(0, |running| running.reserved);
            let held = held.saturating_sub(reserved.tokens);
            let checks: [(Option<u64>, &str, Window, u64); 2] = [
                (
                    limits.tokens_per_minute,
                    "tokens a minute",
                    Windows::minute,
                    MINUTES_S,
                ),
                (
                    limits.tokens_per_day,
                    "tokens a day",
                    Windows::day,
                    until_midnight_s(now_s),
                ),
            ];
            for (limit, of, window, at_most) in checks {
                let Some(limit) = limit else {
                    continue;
                };
                let bound = bound(limit, of, account);
                if tokens > limit {
                    let needed = tokens;
                    return Err(Denied::TooMuch { needed, bound });
                }
                let spent = |at_s| self.known(ring, account, window, at_s).tokens;
                let fits = |at_s| spent(at_s).saturating_add(tokens) <= limit;
                if !fits(now_s) {
                    full.note(until(now_s, at_most, fits), bound);
                } else if spent(now_s).saturating_add(tokens).saturating_add(held) > limit {
                    // What runs may give back what it does not take, any moment.
                    full.note(BUSY_RETRY_S, bound);
                }
            }
        }
        full.refuse()?;
        for account in &reserved.accounts {
            let running = self.running.entry(account.clone()).or_default();
            let others = running.reserved.saturating_sub(reserved.tokens);
            running.reserved = others.saturating_add(tokens);
        }
        reserved.tokens = tokens;
        Ok(())
    }

    /// A request that goes on took so many tokens more, of those that are kept free for it.
    pub fn take(&mut self, reserved: &mut Reserved, tokens: u64, now_s: u64) {
        let of_reserved = tokens.min(reserved.tokens);
        reserved.tokens -= of_reserved;
        for account in &reserved.accounts {
            if let Some(running) = self.running.get_mut(account) {
                running.reserved = running.reserved.saturating_sub(of_reserved);
            }
            let requests = 0;
            self.spend(account, Amount { requests, tokens }, now_s);
        }
    }

    /// A request has ended, which took so many tokens more. Its key may be gone meanwhile.
    pub fn end(&mut self, mut reserved: Reserved, tokens: u64, now_s: u64) {
        self.take(&mut reserved, tokens, now_s);
        for account in &reserved.accounts {
            if let Some(running) = self.running.get_mut(account) {
                running.requests = running.requests.saturating_sub(1);
                running.reserved = running.reserved.saturating_sub(reserved.tokens);
                if running.requests == 0 {
                    self.running.remove(account);
                }
            }
        }
    }

    /// What the cluster is to hear of: the batch on its way, or a new one. Accounts take turns where there
    /// are more than fit one.
    pub fn batch(&mut self) -> Option<Batch> {
        if self.sent.is_none() && !self.fresh.is_empty() {
            let after = self.told.take().map_or(Unbounded, Excluded);
            let next = self.fresh.range((after, Unbounded)).chain(&self.fresh);
            // Once around and no further.
            let count = limits::BATCH_ENTRIES.min(self.fresh.len());
            let next: Vec<(Account, u64)> = next.take(count).map(|(at, _)| at.clone()).collect();
            self.told = next.last().cloned();
            let mut spent = Vec::with_capacity(count);
            for at in next {
                if let Some(amount) = self.fresh.remove(&at) {
                    let (account, minute) = at;
                    let at_s = minute * MINUTE_S;
                    spent.push(Spent {
                        account,
                        at_s,
                        amount,
                    });
                }
            }
            self.number += 1;
            self.sent = Some(Batch {
                instance: self.instance,
                number: self.number,
                spent,
            });
        }
        self.sent.clone()
    }

    /// The cluster has counted up to this batch, says whoever knows.
    pub fn counted(&mut self, charged: Option<Charged>, now_s: u64) {
        let is_counted = |batch: &mut Batch| charged.is_some_and(|charged| batch.is_in(charged));
        let Some(batch) = self.sent.take_if(is_counted) else {
            return;
        };
        for one in batch.spent {
            if let Some(own) = self.own.get_mut(&one.account) {
                own.take_out(one.at_s, now_s, one.amount);
            }
        }
        self.own.retain(|_, own| !own.is_over(now_s));
    }

    fn spend(&mut self, account: &Account, amount: Amount, now_s: u64) {
        if amount == Amount::default() {
            return;
        }
        self.own
            .entry(account.clone())
            .or_default()
            .add(now_s, now_s, amount);
        let fresh = self.fresh.entry((account.clone(), now_s / MINUTE_S)).or_default();
        *fresh = fresh.plus(amount);
        while self.fresh.len() > FRESH_MAX {
            // Nobody counts for so long: what is oldest of some account is forgotten.
            self.fresh.pop_first();
        }
    }

    /// What all entries have told of a window, and what this one has not told yet.
    fn known(&self, ring: &KeyRing, account: &Account, window: Window, at_s: u64) -> Amount {
        let of = |windows: Option<&Windows>| windows.map_or(Amount::default(), |one| window(one, at_s));
        of(ring.spent.get(account)).plus(of(self.own.get(account)))
    }
}

/// The limits that are reached, of which the one counts that lasts longest.
#[derive(Default)]
struct Full(Option<(u64, Bound)>);

impl Full {
    fn note(&mut self, wait_s: u64, bound: Bound) {
        if self.0.as_ref().is_none_or(|(longest_s, _)| *longest_s < wait_s) {
            self.0 = Some((wait_s, bound));
        }
    }

    fn refuse(self) -> Result<(), Denied> {
        match self.0 {
            None => Ok(()),
            Some((retry_after_s, bound)) => Err(Denied::Limited { bound, retry_after_s }),
        }
    }
}

/// Where a request counts: for the key, and for the model where the key has limits for it.
fn accounts<'a>(
    key: KeyId,
    record: &'a KeyRecord,
    model: &ModelName,
) -> impl Iterator<Item = (Account, &'a KeyLimits)> {
    let terms = &record.terms;
    let of_key = (Account { key, model: None }, &terms.limits);
    let of_model = terms.of_models.get_key_value(model).map(|(model, limits)| {
        let model = Some(model.clone());
        (Account { key, model }, limits)
    });
    std::iter::once(of_key).chain(of_model)
}

/// The limits of an account as the key has them now.
fn limits_of<'a>(account: &Account, record: &'a KeyRecord) -> Option<&'a KeyLimits> {
    match &account.model {
        None => Some(&record.terms.limits),
        Some(model) => record.terms.of_models.get(model),
    }
}

fn bound(limit: u64, of: &'static str, account: &Account) -> Bound {
    Bound {
        limit,
        of,
        model: account.model.clone(),
    }
}

/// Seconds until something fits, if nothing else comes; `at_most` where minutes that slide out do not help.
fn until(now_s: u64, at_most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    (1..MINUTES_S)
        .find(|wait_s| fits(now_s + wait_s))
        .unwrap_or(at_most)
}

#[cfg(test)]
mod tests;
