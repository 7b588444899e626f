//! An answer as text, token by token: whole characters only, and nothing that might turn out to
//! be the beginning of a stop string.

use std::sync::Arc;

use tokenizers::Tokenizer;

/// What a token added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text that is final.
    pub text: String,
    /// A stop string was completed: the answer ends before it.
    pub stopped: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct AnswerText {
    tokenizer: Arc<Tokenizer>,
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
    /// Decoded, but perhaps the beginning of a stop string.
    held: String,
    stops: Vec<String>,
    stopped: bool,
}

impl AnswerText {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>) -> Self {
        Self {
            tokenizer,
            ids: Vec::new(),
            prefix: String::new(),
            prefix_index: 0,
            held: String::new(),
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            stopped: false,
        }
    }

    /// Adds a token.
    pub fn push(&mut self, token: u32) -> Piece {
        if self.stopped {
            return Piece::default();
        }
        let decoded = tokenizers::step_decode_stream(
            &**self.tokenizer,
            vec![token],
            true,
            &mut self.ids,
            &mut self.prefix,
            &mut self.prefix_index,
        );
        // A token that does not decode adds nothing; the next one may complete it.
        self.held.push_str(&decoded.ok().flatten().unwrap_or_default());
        self.release()
    }

    /// What was held back, when the answer ends without a stop string.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        // Bytes of an unfinished character become U+FFFD, once, at the very end.
        let rest = self.tokenizer.decode(&self.ids, true).unwrap_or_default();
        if let Some(tail) = rest.strip_prefix(&self.prefix) {
            self.held.push_str(tail);
        }
        std::mem::take(&mut self.held)
    }

    fn release(&mut self) -> Piece {
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop)).min();
        if let Some(at) = found {
            self.stopped = true;
            self.held.truncate(at);
            return Piece {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| longest_overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Piece {
            text: std::mem::replace(&mut self.held, rest),
            stopped: false,
        }
    }
}

/// Bytes at the end of `text` that are a proper beginning of `stop`.
fn longest_overlap(text: &str, stop: &str) -> usize {
    (1..stop.len())
        .rev()
        .filter(|len| stop.is_char_boundary(*len))
        .find(|len| text.ends_with(&stop[..*len]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer of single bytes, so that characters and stop strings cross token borders.
    fn bytes() -> Result<Arc<Tokenizer>, tokenizers::Error> {
        use tokenizers::models::bpe::{BPE, Vocab};
        use tokenizers::pre_tokenizers::byte_level::ByteLevel;
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let vocab: Vocab = alphabet
            .iter()
            .enumerate()
            .map(|(id, c)| (c.to_string(), id as u32))
            .collect();
        let bpe = BPE::builder().vocab_and_merges(vocab, Vec::new()).build()?;
        let mut tokenizer = Tokenizer::new(bpe);
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        Ok(Arc::new(tokenizer))
    }

    fn run(text: &str, stops: &[&str]) -> Result<(Vec<Piece>, String), tokenizers::Error> {
        let tokenizer = bytes()?;
        let ids = tokenizer.encode(text, false)?.get_ids().to_vec();
        let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut answer = AnswerText::new(tokenizer, stops);
        let pieces = ids.into_iter().map(|id| answer.push(id)).collect();
        Ok((pieces, answer.finish()))
    }

    fn joined(pieces: &[Piece]) -> String {
        pieces.iter().map(|piece| piece.text.as_str()).collect()
    }

    #[test]
    fn characters_arrive_whole() -> Result<(), tokenizers::Error> {
        let text = "añ🦀 日本";
        let (pieces, rest) = run(text, &[])?;
        assert!(pieces.iter().all(|piece| !piece.text.contains('\u{fffd}')));
        assert_eq!(joined(&pieces) + &rest, text);
        Ok(())
    }

    #[test]
    fn a_stop_string_over_many_tokens_ends_the_answer_before_it() -> Result<(), tokenizers::Error> {
        let (pieces, rest) = run("one END two", &["END"])?;
        assert_eq!(joined(&pieces) + &rest, "one ");
        assert!(pieces.iter().any(|piece| piece.stopped));
        Ok(())
    }

    #[test]
    fn a_beginning_that_comes_to_nothing_is_not_lost() -> Result<(), tokenizers::Error> {
        let (pieces, rest) = run("ENENDIVE EN", &["ENDIVES"])?;
        assert_eq!(joined(&pieces) + &rest, "ENENDIVE EN");
        Ok(())
    }
}
