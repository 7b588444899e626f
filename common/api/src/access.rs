//! Who may ask at this entry, and how much they have left: the shell around `pomona_keys`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::HeaderMap;
use pomona_clocks::wall_s;
use pomona_common::key::{KeyRecord, KeyTerms};
use pomona_common::spending::Batch;
use pomona_common::{Class, KeyId, ModelName, Pools};
use pomona_keys::{Denied, KeyRing, KeySecret, Meter, PREFIX, Reserved};

/// What an entry knows of keys. Clones share it.
#[derive(Debug, Clone)]
pub struct Access {
    /// Whether nobody is let in without a key: the endpoint is reached from other machines.
    required: bool,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    ring: KeyRing,
    meter: Meter,
}

/// Whoever asks. A request without a key may do everything, where none is needed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller(Option<(KeyId, Arc<KeyRecord>)>);

/// A request that was let in; dropping it gives back what was kept free for it, and counts what it took.
#[derive(Debug)]
pub(crate) struct Ticket {
    access: Access,
    record: Arc<KeyRecord>,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    /// Until the drop.
    reserved: Option<Reserved>,
    /// Tokens that the meter was not told of yet.
    untold: u64,
}

/// Tokens after which the meter hears of them: a long answer counts while it is made, at all entries.
const TOLD_TOKENS: u64 = 64;

impl Access {
    /// Of an entry whose process drew this number.
    pub fn new(required: bool, instance: u64) -> Self {
        let inner = Inner {
            ring: KeyRing::default(),
            meter: Meter::new(instance),
        };
        Self {
            required,
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// Whether nobody is let in without a key.
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// Changes what is known of keys.
    pub fn learn(&self, change: impl FnOnce(&mut KeyRing)) {
        let mut inner = self.inner();
        let Inner { ring, meter } = &mut *inner;
        change(ring);
        meter.counted(ring.charged, wall_s());
    }

    /// What the cluster is to hear of: the same again until [`Access::learn`] brings that it was counted.
    pub fn batch(&self) -> Option<Batch> {
        self.inner().meter.batch()
    }

    /// Who asks, by `Authorization: Bearer` or `x-api-key`; some clients send both, of which one is ours.
    /// Where no key is needed, other texts say nothing: many clients send something.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Caller, Denied> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text("authorization").and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
        });
        let shown = [bearer, text("x-api-key").map(str::trim)];
        let mut shown = shown.into_iter().flatten().filter(|shown| !shown.is_empty());
        let ours = shown.clone().find(|shown| shown.starts_with(PREFIX));
        let Some(ours) = ours else {
            return match shown.next() {
                _ if !self.required => Ok(Caller(None)),
                Some(_) => Err(Denied::Invalid),
                None => Err(Denied::Missing),
            };
        };
        let secret: KeySecret = ours.parse().map_err(|_| Denied::Invalid)?;
        let record = self.inner().ring.open(&secret, wall_s())?.clone();
        Ok(Caller(Some((secret.id(), Arc::new(record)))))
    }

    /// Lets a request for a model in.
    pub(crate) fn begin(&self, caller: &Caller, model: &ModelName) -> Result<Option<Ticket>, Denied> {
        let Some((id, record)) = &caller.0 else {
            return Ok(None);
        };
        let mut inner = self.inner();
        let Inner { ring, meter } = &mut *inner;
        let reserved = meter.begin(ring, (*id, record), model, wall_s())?;
        drop(inner);
        Ok(Some(Ticket {
            access: self.clone(),
            record: record.clone(),
            held: Mutex::new(Held {
                reserved: Some(reserved),
                untold: 0,
            }),
        }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Caller {
    /// Where its requests may be answered.
    pub(crate) fn reach(&self) -> Pools {
        self.terms().map(KeyTerms::reach).unwrap_or_default()
    }

    /// What the key is good for.
    pub(crate) fn terms(&self) -> Option<&KeyTerms> {
        self.0.as_ref().map(|(_, record)| &record.terms)
    }

    /// Its name.
    pub(crate) fn key(&self) -> Option<KeyId> {
        self.0.as_ref().map(|(id, _)| *id)
    }

    /// Checks that a model may be asked for.
    pub(crate) fn may_ask(&self, model: &ModelName) -> Result<(), Denied> {
        match self.terms() {
            Some(terms) if !terms.allow_model(model) => Err(Denied::Model(model.clone())),
            _ => Ok(()),
        }
    }

    /// Checks that requests may have this class.
    pub(crate) fn may_be(&self, class: Class) -> Result<(), Denied> {
        match self.terms() {
            Some(terms) if !terms.allow_class(class) => Err(Denied::Class(class)),
            _ => Ok(()),
        }
    }

    /// Under which KV prefixes are shared: with requests of the same key only, or among those without one.
    pub(crate) fn cache_salt(&self) -> u64 {
        self.0.as_ref().map_or(0, |(id, _)| {
            let bits = id.bits();
            ((bits >> 64) as u64 ^ bits as u64).max(1)
        })
    }
}

impl Ticket {
    /// Keeps so many tokens free, prompt and answers together.
    pub(crate) fn reserve(&self, tokens: u64) -> Result<(), Denied> {
        let mut held = self.held();
        let mut inner = self.access.inner();
        let Inner { ring, meter } = &mut *inner;
        match &mut held.reserved {
            Some(reserved) => meter.reserve(ring, &self.record, reserved, tokens, wall_s()),
            None => Ok(()),
        }
    }

    /// Counts tokens that were read or made.
    pub(crate) fn took(&self, tokens: u64) {
        let mut held = self.held();
        held.untold += tokens;
        if held.untold < TOLD_TOKENS {
            return;
        }
        let untold = std::mem::take(&mut held.untold);
        if let Some(reserved) = &mut held.reserved {
            self.access.inner().meter.take(reserved, untold, wall_s());
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut held = self.held();
        let untold = held.untold;
        if let Some(reserved) = held.reserved.take() {
            self.access.inner().meter.end(reserved, untold, wall_s());
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use pomona_common::key::{KeyHash, KeyLimits};

    use super::*;

    /// Headers by name.
    type Shown<'a> = &'a [(&'static str, &'a str)];

    fn key() -> KeySecret {
        KeySecret::new(KeyId::from_bits(3 << 64 | 5), 7)
    }

    fn entry(required: bool, terms: KeyTerms) -> Access {
        let access = Access::new(required, 1);
        access.learn(|ring| {
            let record = KeyRecord {
                terms,
                ..KeyRecord::new("ci", key().hash(), 0)
            };
            ring.keys.insert(key().id(), record);
        });
        access
    }

    fn headers(all: Shown<'_>) -> HeaderMap {
        let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        all.iter()
            .map(|(name, text)| (name.parse().unwrap_or(axum::http::header::VIA), value(text)))
            .collect()
    }

    #[test]
    fn a_key_is_found_wherever_clients_put_it() {
        let ours = key().to_string();
        let bearer = format!("bearer {ours}");
        let shown: [Shown<'_>; 4] = [
            &[("authorization", &bearer)],
            &[("x-api-key", &ours)],
            &[("authorization", "Bearer sk-dummy"), ("x-api-key", &ours)],
            &[("authorization", &bearer), ("x-api-key", "none")],
        ];
        for required in [true, false] {
            let access = entry(required, KeyTerms::default());
            for all in shown {
                let found = access
                    .caller(&headers(all))
                    .map(|caller| caller.terms().is_some());
                assert_eq!(found, Ok(true), "{all:?}");
            }
        }
    }

    #[test]
    fn other_texts_say_nothing_on_loopback_and_open_nothing_elsewhere() {
        let wrong = KeySecret::new(key().id(), 8).to_string();
        let cut = &key().to_string()[..40];
        let cases: [(Shown<'_>, Denied, bool); 5] = [
            (&[], Denied::Missing, true),
            (&[("authorization", "Basic abc")], Denied::Missing, true),
            (&[("x-api-key", "sk-dummy")], Denied::Invalid, true),
            (&[("x-api-key", &wrong)], Denied::Invalid, false),
            (&[("x-api-key", cut)], Denied::Invalid, false),
        ];
        let (loopback, lan) = (
            entry(false, KeyTerms::default()),
            entry(true, KeyTerms::default()),
        );
        for (all, denied, is_open) in cases {
            let of = |access: &Access| {
                access
                    .caller(&headers(all))
                    .map(|caller| caller.terms().is_some())
            };
            assert_eq!(of(&lan), Err(denied.clone()), "{all:?}");
            assert_eq!(
                of(&loopback),
                if is_open { Ok(false) } else { Err(denied) },
                "{all:?}"
            );
        }
    }

    #[test]
    fn a_request_that_ends_counts_what_it_took_and_gives_back_the_rest() -> Result<(), Denied> {
        let limits = KeyLimits {
            concurrency: Some(1),
            tokens_per_day: Some(100),
            ..KeyLimits::default()
        };
        let terms = KeyTerms {
            limits,
            ..KeyTerms::default()
        };
        let access = entry(true, terms);
        let bearer = format!("Bearer {}", key());
        let caller = access.caller(&headers(&[("authorization", &bearer)]))?;
        let Ok(model) = "org/a".parse() else {
            return Err(Denied::Invalid);
        };
        let first = access.begin(&caller, &model)?;
        if let Some(ticket) = &first {
            ticket.reserve(100)?;
            (0..59).for_each(|_| ticket.took(1));
            ticket.took(1);
        }
        assert!(matches!(
            access.begin(&caller, &model),
            Err(Denied::Limited { .. })
        ));
        drop(first);
        let second = access.begin(&caller, &model)?;
        let ticket = second.as_ref().ok_or(Denied::Missing)?;
        assert!(matches!(ticket.reserve(41), Err(Denied::Limited { .. })));
        ticket.reserve(40)?;
        let spent = access.batch().map(|batch| batch.spent[0].amount.tokens);
        assert_eq!(spent, Some(60));
        Ok(())
    }

    #[test]
    fn a_long_answer_counts_while_it_is_made() -> Result<(), Denied> {
        let access = entry(true, KeyTerms::default());
        let bearer = format!("Bearer {}", key());
        let caller = access.caller(&headers(&[("authorization", &bearer)]))?;
        let Ok(model) = "org/a".parse() else {
            return Err(Denied::Invalid);
        };
        let ticket = access.begin(&caller, &model)?.ok_or(Denied::Missing)?;
        ticket.reserve(1000)?;
        (0..100).for_each(|_| ticket.took(1));
        let spent = access.batch().map(|batch| batch.spent[0].amount.tokens);
        assert_eq!(spent, Some(TOLD_TOKENS));
        Ok(())
    }

    #[test]
    fn keys_share_no_cache_with_each_other_or_with_nobody() {
        let caller = |bits| {
            Caller(Some((
                KeyId::from_bits(bits),
                Arc::new(KeyRecord::new("a", KeyHash([0; 32]), 0)),
            )))
        };
        let salts = [Caller::default(), caller(1), caller(2), caller(0)].map(|caller| caller.cache_salt());
        assert_eq!(salts[0], 0);
        assert!(salts[1] != salts[2] && salts[1..].iter().all(|salt| *salt != 0));
    }
}
