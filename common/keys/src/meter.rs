//! How much keys take at one entry: limits, and the batches in which the cluster hears of it.

use std::collections::BTreeMap;
use std::ops::Bound;

use pomona_common::key::{KeyLimits, KeyRecord};
use pomona_common::spending::{Account, Amount, Batch, Charged, MINUTE_S, Spent, Windows, until_midnight_s};
use pomona_common::{KeyId, ModelName, limits};

use crate::denied::Denied;
use crate::ring::KeyRing;

/// How long a key waits that has too many requests running: there is no telling when one ends.
const BUSY_RETRY_S: u64 = 1;
/// A minute and the one after it: by then all windows of now are over.
const MINUTES_S: u64 = 120;
/// Minutes of accounts that an entry keeps for a cluster that does not listen: ten a day and key.
const FRESH_MAX: usize = 65_536;

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
                let fits = |at_s| self.minute(ring, &account, at_s).requests < limit;
                if !fits(now_s) {
                    full.note(until(now_s, fits), bound(limit, "requests a minute", &account));
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
        let limited = reserved.accounts.iter().filter_map(|account| {
            let limits = limits_of(account, record)?;
            Some((
                account,
                [
                    (limits.tokens_per_minute, "tokens a minute"),
                    (limits.tokens_per_day, "tokens a day"),
                ],
            ))
        });
        for (account, checks) in limited {
            let held = self.running.get(account).map_or(0, |running| running.reserved);
            let held = held.saturating_sub(reserved.tokens);
            for (limit, of) in checks {
                let Some(limit) = limit else {
                    continue;
                };
                let bound = bound(limit, of, account);
                if tokens > limit {
                    let needed = tokens;
                    return Err(Denied::TooMuch { needed, bound });
                }
                let is_day = of == "tokens a day";
                let spent = |at_s| {
                    let spent = if is_day {
                        self.day(ring, account, at_s)
                    } else {
                        self.minute(ring, account, at_s)
                    };
                    spent.tokens.saturating_add(tokens)
                };
                if spent(now_s).saturating_add(held) <= limit {
                    continue;
                }
                let wait_s = if spent(now_s) <= limit {
                    // What runs may give back what it does not take, any moment.
                    BUSY_RETRY_S
                } else if is_day {
                    until_midnight_s(now_s)
                } else {
                    until(now_s, |at_s| spent(at_s) <= limit)
                };
                full.note(wait_s, bound);
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

    /// A request has ended, which took so many tokens. Its key may be gone meanwhile.
    pub fn end(&mut self, reserved: Reserved, tokens: u64, now_s: u64) {
        for account in &reserved.accounts {
            if let Some(running) = self.running.get_mut(account) {
                running.requests = running.requests.saturating_sub(1);
                running.reserved = running.reserved.saturating_sub(reserved.tokens);
                if running.requests == 0 {
                    self.running.remove(account);
                }
            }
            let requests = 0;
            self.spend(account, Amount { requests, tokens }, now_s);
        }
    }

    /// What the cluster is to hear of: the batch on its way, or a new one. Accounts take turns where there
    /// are more than fit one.
    pub fn batch(&mut self) -> Option<Batch> {
        if self.sent.is_none() && !self.fresh.is_empty() {
            let after = self.told.take().map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.fresh.range((after, Bound::Unbounded)).chain(&self.fresh);
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
        let is_counted =
            |batch: &Batch| charged.is_some_and(|at| at.0 == batch.instance && at.1 >= batch.number);
        let Some(batch) = self.sent.take_if(|batch| is_counted(batch)) else {
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

    fn minute(&self, ring: &KeyRing, account: &Account, at_s: u64) -> Amount {
        self.both(ring, account, |windows| windows.minute(at_s))
    }

    fn day(&self, ring: &KeyRing, account: &Account, at_s: u64) -> Amount {
        self.both(ring, account, |windows| windows.day(at_s))
    }

    /// What all entries have told, and what this one has not told yet.
    fn both(&self, ring: &KeyRing, account: &Account, of: impl Fn(&Windows) -> Amount) -> Amount {
        let of = |windows: Option<&Windows>| windows.map_or(Amount::default(), &of);
        of(ring.spent.get(account)).plus(of(self.own.get(account)))
    }
}

/// The limits that are reached, of which the one counts that lasts longest.
#[derive(Default)]
struct Full(Option<(u64, crate::Bound)>);

impl Full {
    fn note(&mut self, wait_s: u64, bound: crate::Bound) {
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

fn bound(limit: u64, of: &'static str, account: &Account) -> crate::Bound {
    crate::Bound {
        limit,
        of,
        model: account.model.clone(),
    }
}

/// Seconds until something fits a minute, if nothing else comes.
fn until(now_s: u64, fits: impl Fn(u64) -> bool) -> u64 {
    (1..MINUTES_S)
        .find(|wait_s| fits(now_s + wait_s))
        .unwrap_or(MINUTES_S)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use pomona_common::id::IdError;
    use pomona_common::key::{KeyHash, KeyTerms};

    use super::*;

    const KEY: KeyId = KeyId::from_bits(1);

    fn record(limits: KeyLimits) -> KeyRecord {
        KeyRecord {
            name: "ci".into(),
            made_s: 0,
            secret: KeyHash([0; 32]),
            before: None,
            expires_s: None,
            terms: KeyTerms {
                limits,
                ..KeyTerms::default()
            },
        }
    }

    fn retry_after(outcome: &Result<impl Sized, Denied>) -> Option<u64> {
        match outcome {
            Err(Denied::Limited { retry_after_s, .. }) => Some(*retry_after_s),
            _ => None,
        }
    }

    #[test]
    fn requests_are_bounded_at_once_and_by_the_minute() -> Result<(), IdError> {
        let model = "org/m".parse()?;
        let record = record(KeyLimits {
            concurrency: Some(2),
            requests_per_minute: Some(3),
            ..KeyLimits::default()
        });
        let (mut meter, ring) = (Meter::new(1), KeyRing::default());
        let begin = |meter: &mut Meter, at_s| meter.begin(&ring, (KEY, &record), &model, at_s);
        let held: Vec<Reserved> = (0..2).filter_map(|_| begin(&mut meter, 30).ok()).collect();
        assert_eq!(retry_after(&begin(&mut meter, 30)), Some(BUSY_RETRY_S));
        for one in held {
            meter.end(one, 5, 31);
        }
        assert!(begin(&mut meter, 31).is_ok());
        // Three of this minute count less and less in the next: two of them 20 s into it.
        let wait = retry_after(&begin(&mut meter, 31)).unwrap_or_default();
        assert!(begin(&mut meter, 31 + wait - 1).is_err(), "{wait}");
        assert!(begin(&mut meter, 31 + wait).is_ok(), "{wait}");
        Ok(())
    }

    #[test]
    fn tokens_are_kept_free_for_what_runs_and_counted_as_they_were() -> Result<(), IdError> {
        let model = "org/m".parse()?;
        let record = record(KeyLimits {
            tokens_per_minute: Some(1000),
            tokens_per_day: Some(1500),
            ..KeyLimits::default()
        });
        let (mut meter, ring) = (Meter::new(1), KeyRing::default());
        let ask = |meter: &mut Meter, tokens, at_s| {
            let mut one = meter.begin(&ring, (KEY, &record), &model, at_s)?;
            let outcome = meter.reserve(&ring, &record, &mut one, tokens, at_s);
            match outcome {
                Ok(()) => Ok(one),
                Err(denied) => {
                    meter.end(one, 0, at_s);
                    Err(denied)
                }
            }
        };
        assert!(matches!(
            ask(&mut meter, 1001, 0),
            Err(Denied::TooMuch { needed: 1001, .. })
        ));
        let take = |meter: &mut Meter, tokens, at_s| match ask(meter, tokens, at_s) {
            Ok(one) => {
                meter.end(one, tokens, at_s);
                true
            }
            Err(_) => false,
        };
        let first = ask(&mut meter, 900, 0);
        // The one that runs may end at once; nothing is spent yet.
        assert_eq!(retry_after(&ask(&mut meter, 200, 0)), Some(BUSY_RETRY_S));
        if let Ok(first) = first {
            meter.end(first, 300, 1);
        }
        assert!(take(&mut meter, 700, 1));
        // 1,000 of the day's 1,500 are gone; minutes pass, the day does not, and it is the longer wait.
        assert_eq!(retry_after(&ask(&mut meter, 600, 2)), Some(86_400 - 2));
        assert_eq!(retry_after(&ask(&mut meter, 600, 3600)), Some(86_400 - 3600));
        assert!(take(&mut meter, 500, 3600));
        assert!(take(&mut meter, 900, 86_400));
        Ok(())
    }

    #[test]
    fn accounts_take_turns_in_batches() -> Result<(), IdError> {
        let model = "org/m".parse()?;
        let record = record(KeyLimits::default());
        let (mut meter, ring) = (Meter::new(1), KeyRing::default());
        let mut told = BTreeSet::new();
        for round in 1..=3 {
            for key in 0..600 {
                let key = (KeyId::from_bits(key), &record);
                if let Ok(one) = meter.begin(&ring, key, &model, 30) {
                    meter.end(one, 1, 30);
                }
            }
            let batch = meter.batch();
            told.extend(
                batch
                    .into_iter()
                    .flat_map(|batch| batch.spent)
                    .map(|one| one.account),
            );
            meter.counted(Some((1, round)), 30);
        }
        assert_eq!(told.len(), 600, "nobody waits for others who spend more");
        Ok(())
    }

    #[test]
    fn a_batch_is_said_again_until_it_is_counted() -> Result<(), IdError> {
        let model = "org/m".parse()?;
        let record = record(KeyLimits::default());
        let (mut meter, mut ring) = (Meter::new(9), KeyRing::default());
        assert_eq!(meter.batch(), None);
        let one = meter.begin(&ring, (KEY, &record), &model, 0);
        let first = meter.batch();
        if let Ok(one) = one {
            meter.end(one, 50, 1);
        }
        assert_eq!(meter.batch(), first, "one at a time");
        meter.counted(Some((8, 7)), 1);
        assert_eq!(meter.batch(), first, "another process's number says nothing");
        let account = Account {
            key: KEY,
            model: None,
        };
        let request = Amount {
            requests: 1,
            tokens: 0,
        };
        ring.spent.entry(account.clone()).or_default().add(0, 1, request);
        meter.counted(Some((9, 1)), 1);
        let second = meter.batch().map(|batch| (batch.number, batch.spent));
        let rest = Amount {
            requests: 0,
            tokens: 50,
        };
        let rest = Spent {
            account: account.clone(),
            at_s: 0,
            amount: rest,
        };
        assert_eq!(second, Some((2, vec![rest])));
        let all = Amount {
            requests: 1,
            tokens: 50,
        };
        assert_eq!(meter.minute(&ring, &account, 1), all, "neither lost nor twice");
        Ok(())
    }
}
