//! A working day of a team: eight laptops with a person each and four Mac minis, under Pomona and under others.

pub mod capacity;
pub mod figures;
pub mod fleet;
pub mod load;
pub mod people;
pub mod report;
mod run;
pub mod traces;

pub use run::{Case, run};
