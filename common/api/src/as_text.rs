//! A request as text, for where no machine answers it: as far as it means the same elsewhere.

use pomona_common::{Class, ModelRecord, RequestId, Sampling, TextAsk, TextPrompt};

use crate::access::Caller;
use crate::request::{Ask, Prompt};

/// What a request is, apart from what it asks.
pub(crate) struct Context<'a> {
    pub(crate) request: RequestId,
    pub(crate) caller: &'a Caller,
    pub(crate) class: Class,
    pub(crate) model: &'a ModelRecord,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
}

/// The request as text; the prompt is taken out of it.
///
/// # Errors
/// Why it must not, or cannot, be answered by a server that is not ours.
pub(crate) fn as_text(context: &Context<'_>, ask: &mut Ask) -> Result<TextAsk, &'static str> {
    means_the_same(ask)?;
    let prompt = match std::mem::replace(&mut ask.prompt, Prompt::Tokens(Vec::new())) {
        Prompt::Chat(messages) => {
            let messages = messages.into_iter();
            TextPrompt::Chat(messages.map(|message| (message.role, message.content)).collect())
        }
        Prompt::Text(text) => TextPrompt::Text(text),
        Prompt::Tokens(_) => return Err("the prompt is token ids"),
    };
    let caller = context.caller;
    Ok(TextAsk {
        request: context.request,
        choice: 0,
        model: context.model.name.clone(),
        digests: context.model.digests.clone(),
        class: context.class,
        key: caller.key(),
        pools: caller.reach(),
        prompt,
        prompt_tokens: context.prompt_tokens,
        max_tokens: context.max_tokens,
        stops: ask.stops.clone(),
        temperature: ask.sampling.temperature,
        top_p: ask.sampling.top_p,
        presence_penalty: ask.sampling.presence_penalty,
        frequency_penalty: ask.sampling.frequency_penalty,
        seed: ask.seeded.then_some(ask.sampling.seed),
    })
}

/// No capability is left out in silence.
fn means_the_same(ask: &Ask) -> Result<(), &'static str> {
    let usual = Sampling::default();
    let sampling = &ask.sampling;
    for (differs, why) in [
        (sampling.top_k != usual.top_k, "`top_k` is not known everywhere"),
        (sampling.min_p != usual.min_p, "`min_p` is not known everywhere"),
        (
            sampling.repetition_penalty != usual.repetition_penalty,
            "`repetition_penalty` is not known everywhere",
        ),
        (
            !sampling.logit_bias.is_empty(),
            "`logit_bias` means other tokens there",
        ),
        (
            sampling.top_logprobs.is_some(),
            "`logprobs` are of other tokens there",
        ),
        (ask.ignore_eos, "`ignore_eos` is not known everywhere"),
        (ask.echo, "`echo` is not known everywhere"),
        (
            ask.stops.len() > 4,
            "`stop` has more than the 4 texts that are taken everywhere",
        ),
    ] {
        if differs {
            return Err(why);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pomona_common::{Failure, ModelDigests};

    use super::*;
    use crate::request::{Kind, parse};

    #[test]
    fn what_would_mean_something_else_stays_here() -> Result<(), Failure> {
        let model = ModelRecord {
            name: "org/a".parse().map_err(|_| Failure::NodeLost)?,
            digests: ModelDigests::default(),
            weight_bytes: 1,
            dequantized_bytes: 1,
            kv_bytes_per_token: 1,
            context: 99,
            created_s: 0,
        };
        let asked = |more: &str| {
            let body = format!(
                "{{\"model\":\"org/a\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hi\"}}]{more}}}"
            );
            let mut ask = parse(Kind::Chat, body.as_bytes())?;
            let context = Context {
                request: RequestId::from_bits(1),
                caller: &Caller::default(),
                class: Class::Batch,
                model: &model,
                prompt_tokens: 3,
                max_tokens: 9,
            };
            Ok::<_, Failure>(as_text(&context, &mut ask))
        };
        let text = asked(",\"temperature\":0.5,\"seed\":7")?;
        let text = text.map_err(|_| Failure::NodeLost)?;
        assert_eq!((text.temperature, text.seed), (0.5, Some(7)));
        assert_eq!(text.prompt, TextPrompt::Chat(vec![("user".into(), "Hi".into())]));
        for (more, why) in [
            (",\"top_k\":5", "top_k"),
            (",\"min_p\":0.1", "min_p"),
            (",\"repetition_penalty\":1.1", "repetition_penalty"),
            (",\"logit_bias\":{\"5\":1}", "logit_bias"),
            (",\"logprobs\":true", "logprobs"),
            (",\"ignore_eos\":true", "ignore_eos"),
            (",\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]", "stop"),
        ] {
            assert!(asked(more)?.is_err_and(|said| said.contains(why)), "{more}");
        }
        Ok(())
    }
}
