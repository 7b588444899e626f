use pomona_common::key::{KeyHash, KeyRecord, KeyTerms};
use pomona_common::{ClusterId, MachineRole};
use proptest::prelude::*;

use super::*;
use crate::audit::verify;

const KEY: KeyId = KeyId::from_bits(1);
/// The middle of June 2026.
const NOW_S: u64 = 1_781_500_000;
const MONTH_S: u64 = 31 * 86_400;

fn cloud(name: &str) -> Result<CloudName, String> {
    name.parse::<CloudName>().map_err(|error| error.to_string())
}

fn model() -> Result<ModelName, String> {
    "org/a".parse::<ModelName>().map_err(|error| error.to_string())
}

fn cluster() -> ClusterState {
    let mut state = ClusterState {
        cluster: Some(ClusterId::from_bits(1)),
        ..ClusterState::default()
    };
    let record = KeyRecord::new("ci", KeyHash([1; 32]), 5);
    state.keys.keys.insert(KEY, record);
    state
}

fn approval(at_s: u64, until_s: u64, money: u64, tokens: u64) -> Approval {
    Approval {
        address: "https://a.example/v1".into(),
        by: "ann".into(),
        at_s,
        until_s,
        monthly_money: Money(money),
        monthly_tokens: tokens,
    }
}

fn spill(number: u64, at_s: u64, money: u64, tokens: u64) -> Result<Spill, String> {
    Ok(Spill {
        id: SpillId {
            request: RequestId::from_bits(number.into()),
            choice: 0,
            attempt: number,
        },
        reserved: Reserved {
            cloud: cloud("a")?,
            key: Some(KEY),
            money: Money(money),
            tokens,
            at_s,
        },
        address: "https://a.example/v1".into(),
        model: model()?,
        class: Class::Batch,
        pools: Pools::default(),
        deed: Deed {
            action: "spill".into(),
            at_s,
            ..Deed::default()
        },
    })
}

fn approved() -> Result<ClusterState, String> {
    let mut state = cluster();
    let approval = approval(NOW_S, NOW_S + 86_400, 100, 1000);
    assert_eq!(approve(&mut state, &cloud("a")?, &approval), Reply::Done);
    assert_eq!(approve(&mut state, &cloud("a")?, &approval), Reply::Unchanged);
    Ok(state)
}

fn refused(state: &mut ClusterState, spill: &Spill, why: &str) {
    let before = state.clone();
    let reply = reserve(state, spill);
    assert!(
        matches!(&reply, Reply::Refused(said) if said.contains(why)),
        "{why}: {reply:?}"
    );
    assert_eq!(*state, before);
}

#[test]
fn nothing_goes_out_without_an_approval_that_holds() -> Result<(), String> {
    refused(&mut cluster(), &spill(1, NOW_S, 1, 1)?, "not approved");
    let mut state = approved()?;
    refused(&mut state, &spill(1, NOW_S + 86_400, 1, 1)?, "has ended");
    let elsewhere = Spill {
        address: "https://b.example/v1".into(),
        ..spill(1, NOW_S, 1, 1)?
    };
    refused(&mut state, &elsewhere, "approved at another address");
    let of_own = Spill {
        pools: Pools::only([MachineRole::Rack]),
        ..spill(1, NOW_S, 1, 1)?
    };
    refused(&mut state, &of_own, "machines of its own");
    state.clouds.private.insert(model()?);
    refused(&mut state, &spill(1, NOW_S, 1, 1)?, "`org/a` is private");
    state.clouds.private.clear();
    // Whatever the entry says of its key.
    let private = KeyTerms {
        private: true,
        ..KeyTerms::default()
    };
    let record = state.keys.keys.get_mut(&KEY).ok_or("the key is gone")?;
    record.terms = private;
    refused(&mut state, &spill(1, NOW_S, 1, 1)?, "API key is private");
    let record = state.keys.keys.get_mut(&KEY).ok_or("the key is gone")?;
    record.terms = KeyTerms::default();
    assert_eq!(reserve(&mut state, &spill(1, NOW_S, 1, 1)?), Reply::Done);
    assert_eq!(reserve(&mut state, &spill(1, NOW_S, 1, 1)?), Reply::Unchanged);
    assert_eq!(revoke(&mut state, &cloud("a")?), Reply::Done);
    refused(&mut state, &spill(2, NOW_S, 1, 1)?, "not approved");
    assert_eq!(state.clouds.spills.head().0, 1);
    Ok(())
}

#[test]
fn ceilings_hold_for_what_is_under_way_as_well() -> Result<(), String> {
    let mut state = approved()?;
    assert_eq!(reserve(&mut state, &spill(1, NOW_S, 60, 10)?), Reply::Done);
    refused(&mut state, &spill(2, NOW_S, 41, 10)?, "this month's money");
    refused(&mut state, &spill(2, NOW_S, 1, 991)?, "this month's tokens");
    let took = Took {
        money: Money(10),
        tokens: 5,
    };
    let id = spill(1, NOW_S, 60, 10)?.id;
    assert_eq!(settle(&mut state, id, &took), Reply::Done);
    assert_eq!(settle(&mut state, id, &took), Reply::Unchanged);
    assert_eq!(reserve(&mut state, &spill(2, NOW_S, 90, 995)?), Reply::Done);
    refused(&mut state, &spill(3, NOW_S, 1, 0)?, "this month's money");
    // A key's own budget.
    assert_eq!(set_budget(&mut state, KEY, Some(Money(100))), Reply::Done);
    let next = NOW_S + MONTH_S;
    let again = approval(next, next + 1000, 1000, 10_000);
    assert_eq!(approve(&mut state, &cloud("a")?, &again), Reply::Done);
    assert_eq!(reserve(&mut state, &spill(3, next, 100, 1)?), Reply::Done);
    refused(&mut state, &spill(4, next, 1, 1)?, "the API key's money");
    // What is settled in the next month was of the last one.
    let id = spill(2, NOW_S, 90, 995)?.id;
    assert_eq!(
        settle(
            &mut state,
            id,
            &Took {
                money: Money(0),
                tokens: 0
            }
        ),
        Reply::Unchanged
    );
    assert_eq!(state.clouds.spent[&cloud("a")?].money, Money(100));
    assert_eq!(
        verify(Some(state.clouds.spills.before), &state.clouds.spills.latest),
        Ok(())
    );
    Ok(())
}

#[test]
fn what_nobody_settles_keeps_nobody_out_for_good() -> Result<(), String> {
    let mut state = approved()?;
    let long = approval(NOW_S, NOW_S + 86_400, u64::MAX, u64::MAX);
    assert_eq!(approve(&mut state, &cloud("a")?, &long), Reply::Done);
    for number in 0..OPEN as u64 {
        assert_eq!(reserve(&mut state, &spill(number, NOW_S, 1, 1)?), Reply::Done);
    }
    refused(&mut state, &spill(9999, NOW_S, 1, 1)?, "are under way");
    assert_eq!(
        reserve(&mut state, &spill(9999, NOW_S + LONGEST_S, 1, 1)?),
        Reply::Done
    );
    assert_eq!(state.clouds.open.len(), 1);
    // It counts as what was reserved.
    assert_eq!(state.clouds.spent[&cloud("a")?].money, Money(OPEN as u64 + 1));
    Ok(())
}

#[test]
fn a_clock_that_lags_at_the_turn_of_a_month_books_once() -> Result<(), String> {
    let (june, july) = (1_782_863_999, 1_782_864_000);
    let mut state = cluster();
    let long = approval(june - 9, july + 86_400, 1000, 1000);
    assert_eq!(approve(&mut state, &cloud("a")?, &long), Reply::Done);
    assert_eq!(reserve(&mut state, &spill(1, july, 50, 5)?), Reply::Done);
    assert_eq!(reserve(&mut state, &spill(2, june, 70, 7)?), Reply::Done);
    let took = Took {
        money: Money(1),
        tokens: 1,
    };
    for number in [1, 2] {
        assert_eq!(
            settle(&mut state, spill(number, july, 0, 0)?.id, &took),
            Reply::Done
        );
    }
    for month in [state.clouds.spent[&cloud("a")?], state.clouds.of_keys[&KEY]] {
        assert_eq!(
            (month.month, month.money, month.tokens),
            (2026 * 12 + 6, Money(2), 2)
        );
    }
    let mut unknown = spill(3, july, 1, 1)?;
    unknown.reserved.key = Some(KeyId::from_bits(99));
    refused(&mut state, &unknown, "none any more");
    Ok(())
}

#[test]
fn months_are_those_of_the_calendar() {
    assert_eq!(month_of(0), 1970 * 12);
    // 2026-06-30 23:59:59 and the second after it.
    assert_eq!(month_of(1_782_863_999), 2026 * 12 + 5);
    assert_eq!(month_of(1_782_864_000), 2026 * 12 + 6);
    assert_eq!(month_of(u64::MAX), u32::MAX);
    let month = Month {
        month: 2026 * 12 + 6,
        requests: 3,
        ..Month::default()
    };
    // A clock that lags behind.
    assert_eq!(month.at(1_782_863_999), month);
}

#[derive(Debug, Clone)]
enum Step {
    Approve(u64, u64),
    Revoke,
    Reserve(u64, u64),
    Settle(usize, u64),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..400u64, 0..40 * 86_400u64).prop_map(|(money, life)| Step::Approve(money, life)),
        1 => Just(Step::Revoke),
        6 => (0..100u64, 0..50u64).prop_map(|(money, tokens)| Step::Reserve(money, tokens)),
        4 => (0..8usize, 0..100u64).prop_map(|(which, money)| Step::Settle(which, money)),
        2 => (0..20 * 86_400u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Against the plainest bookkeeping there is: a list of what was let out. No answer takes more than was
    /// reserved for it here; where a cloud counts more, that is booked, and only known afterwards.
    #[test]
    fn no_month_costs_more_than_was_approved(steps in prop::collection::vec(step(), 1..80)) {
        let mut state = cluster();
        let name = cloud("a").map_err(TestCaseError::fail)?;
        let (mut now_s, mut number) = (NOW_S, 0);
        let mut approved: Option<(u64, u64)> = None;
        // Of each that was let out: its name, when, and what it costs as far as is known.
        let mut out: Vec<(SpillId, u64, u64, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Approve(money, life) => {
                    let given = approval(now_s, now_s + life, money, u64::MAX);
                    if approve(&mut state, &name, &given) == Reply::Done {
                        approved = Some((money, now_s + life));
                    }
                }
                Step::Revoke => {
                    revoke(&mut state, &name);
                    approved = None;
                }
                Step::Reserve(money, tokens) => {
                    number += 1;
                    let spill = spill(number, now_s, money, tokens).map_err(TestCaseError::fail)?;
                    let of_month = out.iter().filter(|one| month_of(one.1) == month_of(now_s));
                    let taken: u64 = of_month.map(|one| one.2).sum();
                    let may = approved.is_some_and(|(most, until)| now_s < until && taken + money <= most);
                    prop_assert_eq!(reserve(&mut state, &spill) == Reply::Done, may);
                    if may {
                        out.push((spill.id, now_s, money, false));
                    }
                }
                Step::Settle(which, money) => {
                    let count = out.len().max(1);
                    let Some(one) = out.get_mut(which % count) else { continue };
                    let took = Took { money: Money(money.min(one.2)), tokens: 0 };
                    if settle(&mut state, one.0, &took) == Reply::Done {
                        prop_assert!(!one.3, "settled twice");
                        (one.2, one.3) = (took.money.0, true);
                    }
                }
                Step::Wait(seconds) => now_s += seconds,
            }
        }
        prop_assert_eq!(state.clouds.spills.head().0, out.len() as u64);
    }
}
