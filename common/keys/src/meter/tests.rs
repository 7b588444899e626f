//! Limits, waits and batches.

use std::collections::BTreeSet;

use pomona_common::id::IdError;
use pomona_common::key::KeyHash;

use super::*;

const KEY: KeyId = KeyId::from_bits(1);

fn record(limits: KeyLimits) -> KeyRecord {
    let mut record = KeyRecord::new("ci", KeyHash([0; 32]), 0);
    record.terms.limits = limits;
    record
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

/// A model's own limits bound that model and no other, beside the key's.
#[test]
fn limits_of_a_model_bound_it_alone() -> Result<(), IdError> {
    let (one, other): (ModelName, ModelName) = ("org/m".parse()?, "org/other".parse()?);
    let mut record = record(KeyLimits {
        concurrency: Some(3),
        ..KeyLimits::default()
    });
    let of_model = KeyLimits {
        concurrency: Some(1),
        requests_per_minute: Some(2),
        tokens_per_day: Some(100),
        ..KeyLimits::default()
    };
    record.terms.of_models.insert(one.clone(), of_model);
    let (mut meter, ring) = (Meter::new(1), KeyRing::default());
    let begin = |meter: &mut Meter, model: &ModelName, at_s| meter.begin(&ring, (KEY, &record), model, at_s);
    let bound_of = |outcome: &Result<Reserved, Denied>| match outcome {
        Err(Denied::Limited { bound, .. } | Denied::TooMuch { bound, .. }) => Some(bound.model.clone()),
        _ => None,
    };
    let first = begin(&mut meter, &one, 30);
    assert_eq!(bound_of(&begin(&mut meter, &one, 30)), Some(Some(one.clone())));
    let more: Vec<_> = (0..2)
        .filter_map(|_| begin(&mut meter, &other, 30).ok())
        .collect();
    assert_eq!(more.len(), 2, "the other model is not bound");
    assert_eq!(bound_of(&begin(&mut meter, &other, 30)), Some(None), "the key is");
    let ends = first.into_iter().chain(more);
    ends.for_each(|reserved| meter.end(reserved, 40, 31));
    // Forty tokens of the model's hundred are gone, whatever others of the key took.
    let Ok(mut second) = begin(&mut meter, &one, 31) else {
        panic!("one is left of the minute");
    };
    assert!(meter.reserve(&ring, &record, &mut second, 61, 31).is_err());
    assert!(meter.reserve(&ring, &record, &mut second, 60, 31).is_ok());
    meter.end(second, 60, 31);
    assert_eq!(
        bound_of(&begin(&mut meter, &one, 32)),
        Some(Some(one)),
        "two a minute"
    );
    assert!(begin(&mut meter, &other, 32).is_ok());
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
    assert_eq!(
        meter.known(&ring, &account, Windows::minute, 1),
        all,
        "neither lost nor twice"
    );
    Ok(())
}
