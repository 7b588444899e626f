//! Whose turn it is: the class of the next step, then its model.
//!
//! The most urgent class with work runs. Each less urgent one earns its share of every such step
//! and takes a turn once it has earned a whole one; a turn is a step, or one slice of a step that
//! was interrupted. A class that has nothing but decoding rows beside the running ones needs no
//! turn of its own: its rows ride along.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::{Class, ModelName};

use crate::scheduler::Scheduler;
use crate::sequence::{Phase, Sequence};

/// Steps that give somebody a first token may pass everybody else this often in a row.
const FIRST_TOKENS_IN_A_ROW: u32 = 4;
/// What a turn costs, in percent of steps.
const TURN: u32 = 100;

/// What the arbiter remembers between steps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns {
    /// Earned by each class, in percent of a turn.
    credit: [u32; 3],
    /// Steps for first tokens that passed a class, or a model, whose turn it was.
    passed_class: u32,
    passed_model: u32,
    /// The step in which each model last ran for a class.
    last_run: BTreeMap<(Class, ModelName), u64>,
    steps: u64,
}

/// Who runs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The interrupted step of this class goes on.
    Resume(Class),
    /// A new step of this class and model; `rides` says which less urgent classes' decoding rows
    /// take part.
    Begin {
        class: Class,
        model: ModelName,
        rides: [bool; 3],
    },
}

/// Work of one class that no interrupted step holds.
#[derive(Debug, Clone, Default)]
struct Claim {
    /// Models with work, and whether any of it is a first token that is waited for.
    models: Vec<(ModelName, bool)>,
    /// Whether all of it is decoding.
    decodes_only: bool,
    parked: bool,
}

impl Claim {
    fn of(scheduler: &Scheduler, class: Class) -> Self {
        if scheduler.knobs.class(class).is_paused() {
            return Self::default();
        }
        let parked = scheduler.parked.contains_key(&class);
        let mut claim = Self {
            models: Vec::new(),
            decodes_only: !parked,
            parked,
        };
        for (id, sequence) in scheduler.running() {
            if sequence.class != class || scheduler.is_parked(*id) {
                continue;
            }
            let prefills = matches!(sequence.phase, Phase::Prefill { .. });
            claim.decodes_only &= !prefills;
            match claim
                .models
                .iter_mut()
                .find(|(model, _)| *model == sequence.model)
            {
                Some((_, first)) => *first |= prefills,
                None => claim.models.push((sequence.model.clone(), prefills)),
            }
        }
        claim
    }

    fn exists(&self) -> bool {
        self.parked || !self.models.is_empty()
    }

    fn only_decodes_on(&self, model: &ModelName) -> bool {
        self.decodes_only && self.models.iter().all(|(at, _)| at == model)
    }
}

/// Decides and records the turn; `None` when nothing runs.
pub(crate) fn next(scheduler: &mut Scheduler, now: Duration) -> Option<Turn> {
    let rests = |class| class == Class::Batch && scheduler.pace.rest(now).is_some();
    let claims = Class::ALL.map(|class| match rests(class) {
        true => Claim::default(),
        false => Claim::of(scheduler, class),
    });
    let claim = |class: Class| &claims[class.index()];
    let top = Class::ALL.into_iter().find(|class| claim(*class).exists())?;
    let first_token = top == Class::Interactive && claim(top).models.iter().any(|(_, first)| *first);
    let turns = &mut scheduler.turns;
    for class in Class::ALL {
        if class <= top || !claim(class).exists() {
            turns.credit[class.index()] = 0;
        }
    }
    let class = turns.class(top, first_token);
    let others = || {
        Class::ALL
            .into_iter()
            .filter(|other| *other > top && claim(*other).exists())
    };
    if class == top {
        for other in others() {
            // Nobody saves up turns: a class that was passed gets one, not several in a row.
            let credit = &mut turns.credit[other.index()];
            if *credit < TURN {
                *credit += scheduler.knobs.class(other).step_share;
            }
        }
    }
    if claim(class).parked {
        return Some(Turn::Resume(class));
    }
    let model = turns.model(class, claim(class), first_token && class == top)?;
    let mut rides = [false; 3];
    for other in others().filter(|other| *other > class) {
        let credit = &mut turns.credit[other.index()];
        if *credit >= TURN && claim(other).only_decodes_on(&model) {
            *credit -= TURN;
            rides[other.index()] = true;
        }
    }
    Some(Turn::Begin { class, model, rides })
}

impl Turns {
    /// The class that runs: the top one, or a less urgent one that has earned its turn.
    fn class(&mut self, top: Class, first_token: bool) -> Class {
        let earned = Class::ALL
            .into_iter()
            .find(|class| *class > top && self.credit[class.index()] >= TURN);
        match earned {
            Some(_) if first_token && self.passed_class < FIRST_TOKENS_IN_A_ROW => {
                self.passed_class += 1;
                top
            }
            Some(class) => {
                self.passed_class = 0;
                self.credit[class.index()] -= TURN;
                class
            }
            None => {
                self.passed_class = 0;
                top
            }
        }
    }

    /// The model that runs: of those with work the one that waited longest; one that owes a
    /// first token passes the others.
    fn model(&mut self, class: Class, claim: &Claim, first_token: bool) -> Option<ModelName> {
        let last = |model: &ModelName| self.last_run.get(&(class, model.clone())).copied().unwrap_or(0);
        let (longest, _) = claim.models.iter().min_by_key(|(model, _)| last(model))?;
        let owing = claim.models.iter().filter(|(_, owes)| *owes && first_token);
        let owing = owing.min_by_key(|(model, _)| last(model)).map(|(model, _)| model);
        let chosen = match owing {
            Some(owing) if owing != longest && self.passed_model < FIRST_TOKENS_IN_A_ROW => {
                self.passed_model += 1;
                owing
            }
            _ => {
                self.passed_model = 0;
                longest
            }
        };
        self.steps += 1;
        self.last_run.insert((class, chosen.clone()), self.steps);
        Some(chosen.clone())
    }

    pub(crate) fn forget(&mut self, model: &ModelName) {
        self.last_run.retain(|(_, known), _| known != model);
    }
}

/// Whether a sequence of this class and phase takes part in a step of `class`.
pub(crate) fn takes_part(sequence: &Sequence, class: Class, rides: [bool; 3]) -> bool {
    match sequence.phase {
        Phase::Waiting => false,
        Phase::Decode => sequence.class == class || rides[sequence.class.index()],
        Phase::Prefill { .. } => sequence.class == class,
    }
}
