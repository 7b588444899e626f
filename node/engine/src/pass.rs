//! One pass of some tokens through a model's layers: what is fed, and how far it is.

use mlx_rs::Array;
use mlx_rs::error::Exception;

use crate::backend::Backend;
use crate::blocks::attention::causal_mask;
use crate::blocks::{Embedding, Rope};
use crate::kv::LayerKv;
use crate::ops;

/// A pass, which may rest between two layers while others run.
#[derive(Debug)]
pub struct Pass {
    feeds: Vec<Feed>,
    /// Activations `[tokens, hidden]` before `layer`.
    pub(crate) x: Array,
    /// Cosines and sines of the tokens' positions.
    pub(crate) angles: (Array, Array),
    pub(crate) groups: Vec<Group>,
    /// The next layer.
    pub(crate) layer: usize,
}

/// Tokens of one sequence that are fed in a step.
#[derive(Debug, Clone)]
pub struct Feed {
    /// Slab.
    pub capacity: u32,
    /// Row of the slab.
    pub row: u32,
    /// Position of the first token.
    pub start: u32,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Whether the logits after the last token are wanted.
    pub wants_logits: bool,
}

/// Rows that attend together: consecutive single-token rows of one slab, or one chunk.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) capacity: u32,
    pub(crate) row: i32,
    pub(crate) rows: i32,
    pub(crate) len: i32,
    /// First token in the flat order of the step.
    pub(crate) first: i32,
    pub(crate) seen: i32,
    pub(crate) mask: Option<Array>,
    /// Rows and positions as arrays, for groups of single tokens.
    targets: Option<(Array, Array)>,
    start: i32,
}

impl Pass {
    pub(crate) fn new(
        feeds: Vec<Feed>,
        embedding: &Embedding,
        rope: &Rope,
        backend: &Backend,
    ) -> Result<Self, Exception> {
        let tokens: Vec<u32> = feeds
            .iter()
            .flat_map(|feed| feed.tokens.iter().copied())
            .collect();
        let positions: Vec<u32> = feeds
            .iter()
            .flat_map(|feed| (feed.start..).take(feed.tokens.len()))
            .collect();
        Ok(Self {
            x: embedding.lookup(&Array::from_slice(&tokens, &[tokens.len() as i32]))?,
            angles: rope.angles(&positions)?,
            groups: groups(&feeds, backend)?,
            layer: 0,
            feeds,
        })
    }

    /// Tokens that are fed.
    pub fn tokens(&self) -> usize {
        self.feeds.iter().map(|feed| feed.tokens.len()).sum()
    }

    /// Activations `[tokens, hidden]` after the layers so far.
    pub fn x(&self) -> &Array {
        &self.x
    }

    /// Whether it has not been through any layer yet.
    pub fn is_fresh(&self) -> bool {
        self.layer == 0
    }

    /// The slabs it touches.
    pub fn capacities(&self) -> std::collections::BTreeSet<u32> {
        self.feeds.iter().map(|feed| feed.capacity).collect()
    }

    /// After a rest: the feeds are where `places` says, slab and row of each; those without a
    /// place are gone, and so are their activations.
    ///
    /// # Errors
    /// MLX fails.
    pub fn relocate(&mut self, places: &[Option<(u32, u32)>], backend: &Backend) -> Result<(), Exception> {
        assert_eq!(places.len(), self.feeds.len(), "one place a feed");
        let unmoved = |(feed, place): (&Feed, &Option<(u32, u32)>)| *place == Some((feed.capacity, feed.row));
        if self.feeds.iter().zip(places).all(unmoved) {
            return Ok(());
        }
        let mut kept = Vec::new();
        let mut feeds = Vec::new();
        let mut first = 0;
        for (mut feed, place) in std::mem::take(&mut self.feeds).into_iter().zip(places) {
            let tokens = feed.tokens.len() as u32;
            if let Some((capacity, row)) = *place {
                (feed.capacity, feed.row) = (capacity, row);
                kept.extend(first..first + tokens);
                feeds.push(feed);
            }
            first += tokens;
        }
        if kept.len() < first as usize {
            let kept = Array::from_slice(&kept, &[kept.len() as i32]);
            self.x = self.x.take_axis(&kept, 0)?;
            self.angles = (
                self.angles.0.take_axis(&kept, 0)?,
                self.angles.1.take_axis(&kept, 0)?,
            );
        }
        self.groups = groups(&feeds, backend)?;
        self.feeds = feeds;
        Ok(())
    }

    /// Whether any feed wants the logits after its last token.
    pub fn wants_logits(&self) -> bool {
        self.feeds.iter().any(|feed| feed.wants_logits)
    }

    /// Where the last token of each feed that wants logits is, in the flat order of the pass.
    pub(crate) fn last_tokens_of_wanted(&self) -> Vec<i32> {
        let mut wanted = Vec::new();
        let mut end = 0;
        for feed in &self.feeds {
            end += feed.tokens.len() as i32;
            if feed.wants_logits {
                wanted.push(end - 1);
            }
        }
        wanted
    }
}

fn groups(feeds: &[Feed], backend: &Backend) -> Result<Vec<Group>, Exception> {
    let mut groups = Vec::new();
    let mut first = 0;
    let mut rest = feeds;
    while let Some(head) = rest.first() {
        let run = if head.tokens.len() == 1 {
            rest.iter()
                .zip(head.row..)
                .take_while(|(feed, row)| {
                    feed.tokens.len() == 1 && feed.capacity == head.capacity && feed.row == *row
                })
                .count()
        } else {
            1
        };
        let (members, tail) = rest.split_at(run);
        let group = group(members, first, backend)?;
        first += group.rows * group.len;
        groups.push(group);
        rest = tail;
    }
    Ok(groups)
}

fn group(members: &[Feed], first: i32, backend: &Backend) -> Result<Group, Exception> {
    let head = &members[0];
    let len = head.tokens.len() as i32;
    let starts: Vec<u32> = members.iter().map(|feed| feed.start).collect();
    let longest = starts.iter().max().map_or(0, |start| *start as i32) + len;
    let step = backend.length_step;
    let seen = ((longest + step - 1) / step * step).min(head.capacity as i32);
    let targets = (len == 1 && members.len() > 1).then(|| {
        let rows: Vec<u32> = members.iter().map(|feed| feed.row).collect();
        let shape = [members.len() as i32];
        (
            Array::from_slice(&rows, &shape),
            Array::from_slice(&starts, &shape),
        )
    });
    Ok(Group {
        capacity: head.capacity,
        row: head.row as i32,
        rows: members.len() as i32,
        len,
        first,
        seen,
        mask: causal_mask(&starts, len, seen, backend.dtype)?,
        targets,
        start: head.start as i32,
    })
}

impl Group {
    /// Writes the new keys and values, `[rows·len, kv_heads, dim]`, to their places.
    pub(crate) fn write(&self, slab: &mut LayerKv, keys: &Array, values: &Array) -> Result<(), Exception> {
        let (kv_heads, dim) = (keys.dim(1), keys.dim(2));
        let put = |slab: &Array, new: &Array| match &self.targets {
            Some((rows, positions)) => {
                let new = new.reshape(&[self.rows, 1, kv_heads, 1, dim])?;
                ops::scatter_rows(slab, rows, positions, &new)
            }
            None => {
                let new = new
                    .reshape(&[1, self.len, kv_heads, dim])?
                    .transpose_axes(&[0, 2, 1, 3])?;
                let start = [self.row, 0, self.start, 0];
                let stop = [self.row + 1, kv_heads, self.start + self.len, dim];
                ops::slice_update(slab, &new, &start, &stop)
            }
        };
        slab.keys = put(&slab.keys, keys)?;
        slab.values = put(&slab.values, values)?;
        Ok(())
    }
}
