//! The targets.

use std::collections::BTreeMap;
use std::path::Path;

use pomona_common::control::{CoordinatorMessage, NodeMessage, StreamRequest, TextBundle};
use pomona_common::engine::{EngineCommand, EngineEvent};
use pomona_common::generation::GenerationEvent;
use pomona_common::join::{JoinAnswer, JoinRequest};
use pomona_common::renew::{RenewAnswer, RenewRequest};
use pomona_common::weights::{Manifest, WeightsRequest};
use pomona_decide::{ClusterState, Command, Proposal, apply_proposal};
use pomona_link::JoinToken;
use pomona_store::config::LlamaConfig;
use pomona_text::{Message as ChatMessage, ModelText};
use pomona_upstream::Events;
use pomona_wire::{Message, WireError, stored};

/// A tokenizer of four words.
pub(crate) const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"a":0,"b":1,"c":2,"[UNK]":3},"unk_token":"[UNK]"}}"#;

/// A frame of a kind that the first byte chooses, as it comes from a peer.
pub(crate) fn frame(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    match kind % 13 {
        0 => read::<NodeMessage>(bytes),
        1 => read::<CoordinatorMessage>(bytes),
        2 => read::<StreamRequest>(bytes),
        3 => read::<GenerationEvent>(bytes),
        4 => read::<TextBundle>(bytes),
        5 => read::<EngineCommand>(bytes),
        6 => read::<EngineEvent>(bytes),
        7 => read::<JoinRequest>(bytes),
        8 => read::<JoinAnswer>(bytes),
        9 => read::<WeightsRequest>(bytes),
        10 => read::<Manifest>(bytes),
        11 => read::<RenewRequest>(bytes),
        _ => read::<RenewAnswer>(bytes),
    }
}

fn read<M: Message>(mut bytes: &[u8]) {
    let Ok(Some(message)) = pomona_wire::read_from::<M>(&mut bytes) else {
        return;
    };
    let written = match pomona_wire::encode(&message) {
        Ok(written) => written,
        // Numbers may be written in more bytes than they need: what came was within the limit.
        Err(WireError::TooLong { .. }) => return,
        Err(error) => panic!("what was read cannot be written: {error}"),
    };
    let again = pomona_wire::read_from::<M>(&mut written.as_slice());
    let again = again.expect("what was written is read").expect("a frame");
    // Compared as bytes: not every float equals itself.
    assert_eq!(pomona_wire::encode(&again).expect("as before"), written);
}

/// What a cloud sends, in pieces of as many bytes as the first one says.
pub(crate) fn cloud_events(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else {
        return;
    };
    let (mut whole, mut cut) = (Events::default(), Events::default());
    let expected = whole.push(bytes).and_then(|pieces| Ok((pieces, whole.finish()?)));
    let mut pieces = Vec::new();
    for part in bytes.chunks(usize::from(*size).max(1)) {
        match cut.push(part) {
            Ok(more) => pieces.extend(more),
            Err(_) => return assert!(expected.is_err(), "it was whole in one piece"),
        }
    }
    assert_eq!(cut.finish().map(|end| (pieces, end)), expected);
}

/// A state as a snapshot has it, from a peer or the disk.
pub(crate) fn stored(data: &[u8]) {
    let Ok(state) = pomona_raft::decode_state(data) else {
        return;
    };
    let written = pomona_raft::encode_state(&state).expect("what was read can be written");
    let again = pomona_raft::decode_state(&written).expect("what was written is read");
    // Compared as bytes, as above.
    assert_eq!(pomona_raft::encode_state(&again).expect("as before"), written);
}

/// Proposals one after the other, each with its length in front, applied as the log does.
pub(crate) fn command(mut data: &[u8]) {
    let mut state = ClusterState::default();
    let mut index = 0;
    while let Some((length, rest)) = data.split_first() {
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        data = rest;
        let proposal = stored::decode::<Command>(bytes).map(|command| Proposal {
            id: u128::from(index),
            seen: index,
            command,
        });
        let Ok(proposal) = proposal else {
            continue;
        };
        index += 1;
        let reply = apply_proposal(&mut state, index, &proposal);
        let before = state.clone();
        assert_eq!(
            apply_proposal(&mut state, index + 1, &proposal),
            reply,
            "it acts once"
        );
        assert!(state == before, "it acts once");
    }
    assert!(state.nodes.len() <= pomona_common::limits::NODES);
    assert!(state.tokens.len() <= pomona_common::limits::TOKENS);
    assert!(state.catalogue.len() <= pomona_common::limits::MODELS);
}

/// What somebody types after `pomona join`.
pub(crate) fn join_token(data: &[u8]) {
    let Ok(token) = String::from_utf8_lossy(data).parse::<JoinToken>() else {
        return;
    };
    let again = token
        .to_string()
        .parse::<JoinToken>()
        .expect("a token as it is shown");
    assert_eq!(again.to_string(), token.to_string());
}

/// The body of a request to `/v1`.
pub(crate) fn request(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else {
        return;
    };
    // Whether it is accepted does not matter here, and that it is answered does.
    let _ = pomona_api::check_body(kind % 2 == 0, body);
}

/// A chat template, as it comes with a model.
pub(crate) fn template(data: &[u8]) {
    let bundle = TextBundle {
        tokenizer_json: TOKENIZER.as_bytes().to_vec(),
        chat_template: String::from_utf8_lossy(data).into_owned(),
        stop_tokens: vec![0],
        bos_token: "a".into(),
        eos_token: "b".into(),
        add_bos: false,
        vocab: 4,
    };
    let Ok(text) = ModelText::new(bundle) else {
        return;
    };
    let message = |role: &str, content: &str| ChatMessage {
        role: role.into(),
        content: content.into(),
    };
    let messages = [message("system", "be brief"), message("user", "{{ 7 * 7 }}")];
    if let Ok(text) = text.render_chat(&messages) {
        assert!(text.len() <= 16 << 20, "fuel bounds what comes out");
    }
}

/// `config.json` of a model folder.
pub(crate) fn model_config(data: &[u8]) {
    if let Ok(config) = LlamaConfig::parse(data) {
        // What sizes are computed from must not overflow.
        let _ = config.kv_numbers_per_token();
    }
}

/// The beginning of a safetensors file.
pub(crate) fn safetensors_header(data: &[u8]) {
    in_file(data, |path| {
        if let Ok(tensors) = pomona_store::header::read(path) {
            assert!(tensors.len() <= data.len());
        }
    });
}

/// A GGUF file.
pub(crate) fn gguf(data: &[u8]) {
    in_file(data, |path| {
        if let Ok(file) = pomona_store::gguf::Gguf::open(path) {
            let _ = file.text("general.architecture");
            let _ = file.number("llama.block_count");
        }
    });
}

/// The configuration file.
pub(crate) fn configuration(data: &[u8]) {
    let environment = BTreeMap::<String, String>::new();
    let text = String::from_utf8_lossy(data);
    if let Err(error) = pomona_cluster_config::Config::load(&text, &environment) {
        assert!(!error.problems.is_empty());
    }
}

fn in_file(data: &[u8], look: impl FnOnce(&Path)) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), data).expect("a temporary file");
    look(file.path());
}
