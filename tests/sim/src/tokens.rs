//! Tokens of answers: a function of prompt and position, as with the echo engine of `pomona-node`, so that
//! everybody can tell which one comes next.

/// What the tokens of an answer to this prompt begin from.
pub fn seed(prompt: &[u32]) -> u32 {
    let add = |sum: u32, token: &u32| sum.wrapping_mul(31).wrapping_add(*token);
    prompt.iter().fold(17, add)
}

/// Token `i` of the answer to a prompt with this [`seed`].
pub fn token(seed: u32, i: u32) -> u32 {
    40 + seed.wrapping_add(i.wrapping_mul(7)) % 50
}
