//! What a made-up machine draws. Its numbers are those of no machine: big enough that a few rows of batch
//! work are more than a laptop's owner wants.

/// Watts of an idle machine, and more for every row that a step of the engine works on.
const IDLE: f32 = 10.0;
const ROW: f32 = 8.0;
/// Time constant in milliseconds with which the sensors follow.
const LAG: f32 = 3_000.0;

#[derive(Debug, Clone)]
pub struct Heat {
    pub watts: f32,
    /// What a person does there takes so many.
    pub person: f32,
}

impl Default for Heat {
    fn default() -> Self {
        Self {
            watts: IDLE,
            person: 0.0,
        }
    }
}

impl Heat {
    /// So many rows were worked on for so long.
    pub fn work(&mut self, rows: usize, milliseconds: u64) {
        let towards = IDLE + self.person + ROW * rows as f32;
        let share = 1.0 - (-(milliseconds as f32) / LAG).exp();
        self.watts += (towards - self.watts) * share;
    }
}
