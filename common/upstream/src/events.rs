//! The server-sent events of a streamed answer, from bytes as they come. Bounded, and total on any bytes.

use pomona_common::{FinishReason, Usage};
use serde_json::Value;

use crate::answer::Piece;
use crate::error::UpstreamError;

/// One event: a token with everything that servers add to it is far shorter.
const EVENT_BYTES: usize = 128 * 1024;
/// A whole answer, with what servers put around its tokens.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Bytes in, pieces of the answer out.
#[derive(Debug, Default)]
pub struct Events {
    /// What has come of the line that is not over.
    line: Vec<u8>,
    /// Data of the event that is not over.
    data: String,
    taken: usize,
    reason: Option<FinishReason>,
    usage: Option<Usage>,
    ended: bool,
}

impl Events {
    /// Takes what has come.
    ///
    /// # Errors
    /// It is no answer, or longer than any.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Piece>, UpstreamError> {
        self.taken = self.taken.saturating_add(bytes.len());
        if self.taken > ANSWER_BYTES {
            return Err(garbage("more bytes than any answer has"));
        }
        let mut pieces = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.data.len() > EVENT_BYTES {
                return Err(garbage("an event that does not end"));
            }
            if part.ends_with(b"\n") && !self.ended {
                let line = std::mem::take(&mut self.line);
                let line = std::str::from_utf8(&line).map_err(|_| garbage("bytes that are no text"))?;
                self.on_line(line.trim_end_matches(['\r', '\n']), &mut pieces)?;
            }
        }
        Ok(pieces)
    }

    /// No more comes.
    ///
    /// # Errors
    /// The answer was not over.
    pub fn finish(&mut self) -> Result<Option<Piece>, UpstreamError> {
        if self.ended {
            return Ok(None);
        }
        match self.reason {
            // Some servers leave the last line out.
            Some(_) => Ok(Some(self.end())),
            None => Err(UpstreamError::BrokeOff),
        }
    }

    fn end(&mut self) -> Piece {
        self.ended = true;
        Piece::End {
            reason: self.reason.unwrap_or(FinishReason::Stop),
            usage: self.usage,
        }
    }

    fn on_line(&mut self, line: &str, pieces: &mut Vec<Piece>) -> Result<(), UpstreamError> {
        if let Some(data) = line.strip_prefix("data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
        // Comments keep the line open, and other fields say nothing here.
        if line.is_empty() && !self.data.is_empty() {
            let data = std::mem::take(&mut self.data);
            return self.on_event(data.trim(), pieces);
        }
        Ok(())
    }

    fn on_event(&mut self, data: &str, pieces: &mut Vec<Piece>) -> Result<(), UpstreamError> {
        if data == "[DONE]" {
            if self.reason.is_none() {
                return Err(UpstreamError::BrokeOff);
            }
            pieces.push(self.end());
            return Ok(());
        }
        let event: Value = serde_json::from_str(data).map_err(|_| garbage("events that are not JSON"))?;
        if event.get("error").is_some_and(|error| !error.is_null()) {
            return Err(garbage("an error in the middle"));
        }
        let count = |name: &str| event["usage"][name].as_u64();
        if let (Some(prompt), Some(answer)) = (count("prompt_tokens"), count("completion_tokens")) {
            let cached = &event["usage"]["prompt_tokens_details"]["cached_tokens"];
            self.usage = Some(Usage {
                prompt,
                answer,
                cached: cached.as_u64().unwrap_or(0),
            });
        }
        let choice = &event["choices"][0];
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        // What models think before they answer: by the names of DeepSeek's API and of OpenRouter's.
        let thought = ["reasoning_content", "reasoning"];
        let thinks = thought.iter().any(|name| {
            choice["delta"][*name]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        });
        match text.filter(|text| !text.is_empty()) {
            Some(text) => pieces.push(Piece::Text(text.to_owned())),
            None if thinks => pieces.push(Piece::Thought),
            None => {}
        }
        match choice["finish_reason"].as_str() {
            None => {}
            Some("length") => self.reason = Some(FinishReason::Length),
            Some("content_filter") => return Err(UpstreamError::Filtered),
            Some(_) => self.reason = Some(FinishReason::Stop),
        }
        Ok(())
    }
}

fn garbage(what: &str) -> UpstreamError {
    UpstreamError::Garbage(what.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER: &str = ": keep-alive\r\n\r\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"Äp\"},\"finish_reason\":null}],\"usage\":null}\n\n\
        data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n\
        event: message\ndata: {\"choices\":[{\"text\":\"fel\",\"finish_reason\":\"length\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\
        \"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\ndata: [DONE]\n\n";

    fn pieces() -> Vec<Piece> {
        vec![
            Piece::Text("Äp".into()),
            Piece::Thought,
            Piece::Text("fel".into()),
            Piece::End {
                reason: FinishReason::Length,
                usage: Some(Usage {
                    prompt: 7,
                    answer: 2,
                    cached: 4,
                }),
            },
        ]
    }

    proptest! {
        #[test]
        fn an_answer_is_the_same_however_it_is_cut(cuts in prop::collection::vec(0..400usize, 0..12)) {
            let bytes = ANSWER.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let (mut events, mut got) = (Events::default(), Vec::new());
            for pair in cuts.windows(2) {
                got.extend(events.push(&bytes[pair[0]..pair[1]]).map_err(|error| TestCaseError::fail(error.to_string()))?);
            }
            prop_assert_eq!(got, pieces());
            prop_assert_eq!(events.finish(), Ok(None));
        }

        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut events = Events::default();
            let _ = events.push(&bytes);
            let _ = events.finish();
        }
    }

    #[test]
    fn what_is_no_answer_is_named() {
        for (text, why) in [
            ("data: <html>\n\n", "not JSON"),
            (
                "data: {\"error\":{\"message\":\"no\"}}\n\n",
                "an error in the middle",
            ),
            (
                "data: {\"choices\":[{\"finish_reason\":\"content_filter\"}]}\n\n",
                "filtered",
            ),
            ("data: [DONE]\n\n", "broke off"),
        ] {
            let outcome = Events::default().push(text.as_bytes());
            assert!(
                outcome.is_err_and(|error| error.to_string().contains(why)),
                "{text}"
            );
        }
        let outcome = Events::default().push(&[0xff, b'\n']);
        assert!(outcome.is_err());
        let endless = vec![b'a'; EVENT_BYTES + 1];
        assert!(Events::default().push(&endless).is_err());
        // Cut off, and over although nobody said so.
        let mut events = Events::default();
        assert!(
            events
                .push(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n")
                .is_ok()
        );
        assert_eq!(events.finish(), Err(UpstreamError::BrokeOff));
        assert!(
            events
                .push(b"data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n")
                .is_ok()
        );
        assert!(matches!(events.finish(), Ok(Some(Piece::End { .. }))));
    }
}
