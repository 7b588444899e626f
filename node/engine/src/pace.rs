//! How many layers make a slice of a step.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::ModelName;

/// What a layer was seen to take, by model and number of tokens (rounded up to a power of two).
#[derive(Debug, Default)]
pub struct Pace {
    per_layer: BTreeMap<(ModelName, usize), Duration>,
}

impl Pace {
    /// Layers that take about `slice`; one when nothing is known yet, so that the first look is
    /// a short one.
    pub fn layers(&self, model: &ModelName, tokens: usize, slice: Duration) -> usize {
        let known = self.per_layer.get(&(model.clone(), tokens.next_power_of_two()));
        known
            .map_or(1, |layer| {
                (slice.as_secs_f64() / layer.as_secs_f64().max(1e-9)) as usize
            })
            .max(1)
    }

    /// Learns from a slice: a moving average, of which the last slice makes a quarter.
    pub fn record(&mut self, model: &ModelName, tokens: usize, layers: usize, took: Duration) {
        let seen = took / layers.max(1) as u32;
        self.per_layer
            .entry((model.clone(), tokens.next_power_of_two()))
            .and_modify(|known| *known = (*known * 3 + seen) / 4)
            .or_insert(seen);
    }

    /// Forgets a model that is gone.
    pub fn forget(&mut self, model: &ModelName) {
        self.per_layer.retain(|(known, _), _| known != model);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_grow_and_shrink_with_what_layers_take() -> Result<(), pomona_common::id::IdError> {
        let (model, slice) = ("m".parse()?, Duration::from_millis(30));
        let mut pace = Pace::default();
        assert_eq!(pace.layers(&model, 100, slice), 1);
        pace.record(&model, 100, 2, Duration::from_millis(12));
        assert_eq!(pace.layers(&model, 128, slice), 5);
        assert_eq!(pace.layers(&model, 129, slice), 1);
        for _ in 0..20 {
            pace.record(&model, 128, 1, Duration::from_millis(60));
        }
        assert_eq!(pace.layers(&model, 128, slice), 1);
        Ok(())
    }
}
