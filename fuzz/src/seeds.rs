//! Inputs that say something, from which the corpus was begun. `POMONA_WRITE_CORPUS=1 cargo test -p
//! pomona-fuzz` writes those that are missing.

use std::collections::BTreeMap;

use pomona_common::control::{CoordinatorMessage, NodeMessage, StreamRequest, TextBundle};
use pomona_common::engine::{EngineCommand, EngineEvent};
use pomona_common::gate::{Gate, Stage};
use pomona_common::join::{JoinAnswer, JoinRequest};
use pomona_common::key::{KeyHash, KeyLimits, KeyRecord, KeyTerms};
use pomona_common::plan::NodeTarget;
use pomona_common::renew::{RenewAnswer, RenewRequest};
use pomona_common::report::{EngineReport, NodeReport};
use pomona_common::signs::{FirstToken, Signs, Speeds};
use pomona_common::spending::{Account, Amount, Batch, EntryId, Spent, Windows};
use pomona_common::weights::{Manifest, ManifestFile, WeightsRequest};
use pomona_common::{
    Class, CloudName, ClusterId, Energy, EngineKnobs, Failure, Generation, GenerationEvent, KeyId, KeyPrint,
    KnobSet, MachineRole, ModelDigests, ModelRecord, Money, NodeId, Pools, Relief, RequestId, Rung, TextAsk,
    TextPrompt, TokenId, TokenVerifier, Watts,
};
use pomona_decide::gates::{Sample, Transition};
use pomona_decide::{
    Admits, Approval, Audited, Availability, ClusterState, Comfort, Command, Deed, Keep, Lease, Made,
    ModelPolicy, Move, PlanStep, Proposal, Relieved, Replicas, Reserved, Spill, SpillId, TokenRecord, Took,
    apply_proposal,
};
use pomona_wire::{Message, stored};

use crate::targets::TOKENIZER;

/// The inputs of a target, each with a name.
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    let named = |inputs: Vec<Vec<u8>>| -> Vec<(String, Vec<u8>)> {
        let numbered = inputs.into_iter().enumerate();
        numbered
            .map(|(i, bytes)| (format!("seed-{i:02}"), bytes))
            .collect()
    };
    let texts = |texts: &[&str]| named(texts.iter().map(|text| text.as_bytes().to_vec()).collect());
    match target {
        "frame" => named(frames()),
        "stored" => named(states()),
        "command" => named(vec![commands().iter().flat_map(lengthed).collect()]),
        "cloud_events" => texts(&[
            "\u{5}: hello\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n",
            "\u{1}event: x\r\ndata: {\"choices\":[{\"text\":\"b\",\"finish_reason\":\"length\"}]}\r\n\r\n",
            "\u{40}data: {\"error\":{\"message\":\"no\"}}\n\n",
        ]),
        "join_token" => texts(&["pomona-join-1-", "pomona-join-1-00000000000000000000000000000001-x"]),
        "request" => texts(&[
            r#" {"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":5}"#,
            "!{\"model\":\"m\",\"prompt\":\"hi\",\"temperature\":0.5,\"stop\":[\"a\"],\"n\":2,\"logprobs\":3}",
            r#" {"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"seed":-1}"#,
        ]),
        "template" => texts(&[
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}",
            "{%- macro x(a) -%}{{ a * 3 }}{%- endmacro -%}{{ x(bos_token) }}{{ raise_exception('no') }}",
            "{% for i in range(1000000) %}{% for j in range(1000000) %}{{ i }}{% endfor %}{% endfor %}",
        ]),
        "model_config" => texts(&[
            r#"{"model_type":"llama","hidden_size":64,"num_hidden_layers":2,"intermediate_size":128,"num_attention_heads":4,"num_key_value_heads":2,"rms_norm_eps":1e-5,"vocab_size":100,"rope_theta":10000.0,"max_position_embeddings":2048,"quantization":{"group_size":64,"bits":4}}"#,
            r#"{"model_type":"llama","hidden_size":18446744073709551615,"num_attention_heads":0}"#,
        ]),
        "safetensors_header" => named(vec![safetensors()]),
        "gguf" => named(vec![b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x14\0\0\0\0\0\0\0general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama".to_vec()]),
        "configuration" => texts(&[
            "[http]\nnode = \"127.0.0.1:7710\"\n[engine.batch]\nwindow_ms = 50\n[security]\napprove = \"manual\"\n",
            "[cloud.a]\nurl = \"https://a/v1\"\nmodels.m = { name = \"x\", input = 0.1, output = 1 }\n",
            "coordinators = [\"10.0.0.1:7712\"]\n[probe]\npower = false\n",
        ]),
        _ => Vec::new(),
    }
}

fn framed<M: Message>(kind: u8, message: &M) -> Vec<u8> {
    let frame = pomona_wire::encode(message).expect("a message");
    [&[kind], frame.as_slice()].concat()
}

fn knob_set() -> KnobSet {
    KnobSet {
        version: 1,
        ..KnobSet::of(&EngineKnobs::default())
    }
}

fn model() -> ModelRecord {
    ModelRecord {
        name: "org/model".parse().expect("a name"),
        digests: ModelDigests::default(),
        weight_bytes: 1 << 30,
        dequantized_bytes: 1 << 31,
        kv_bytes_per_token: 1024,
        context: 4096,
        created_s: 1,
    }
}

fn frames() -> Vec<Vec<u8>> {
    let generation = Box::new(Generation::canary(model().name));
    let report = NodeReport {
        engine: Some(EngineReport {
            classes: [(Class::Batch, Default::default())].into(),
            ..EngineReport::default()
        }),
        ..NodeReport::default()
    };
    let target = NodeTarget {
        generation: 3,
        models: [(model().name, "stored here and fits".to_owned())].into(),
    };
    let node = NodeId::from_bits(7);
    vec![
        framed(0, &NodeMessage::Report(Box::new(report))),
        framed(
            0,
            &NodeMessage::Store {
                models: vec![model()],
            },
        ),
        framed(0, &NodeMessage::Woke { slept_ms: 7_200_000 }),
        framed(0, &NodeMessage::Room { free_bytes: 64 << 30 }),
        framed(0, &NodeMessage::Configured(Box::default())),
        framed(
            0,
            &NodeMessage::KillCauses([(model().name, "jetsam ended it: per-process-limit".into())].into()),
        ),
        framed(0, &NodeMessage::Signs(Box::new(signs()))),
        framed(
            0,
            &NodeMessage::Speeds(Speeds {
                answers: 30,
                slow: 2,
                steps_percent: Some(60),
            }),
        ),
        framed(1, &CoordinatorMessage::Target(target)),
        framed(
            1,
            &CoordinatorMessage::Coordinators(vec![(1, ([10, 0, 0, 1], 7712).into())]),
        ),
        framed(
            1,
            &CoordinatorMessage::Lease {
                applied: 9,
                ends_s: Some(1_000_000),
            },
        ),
        framed(1, &CoordinatorMessage::Through(model())),
        framed(1, &CoordinatorMessage::StoreKey(pomona_common::StoreKey([7; 32]))),
        framed(
            1,
            &CoordinatorMessage::Relief {
                applied: 9,
                relief: Relief::default(),
            },
        ),
        framed(1, &CoordinatorMessage::Knobs(Box::new(knob_set()))),
        framed(1, &CoordinatorMessage::Fallbacks(Box::default())),
        framed(1, &CoordinatorMessage::Slos(Box::default())),
        framed(
            1,
            &CoordinatorMessage::Comfort {
                applied: 9,
                watts: Some(Watts(35.0)),
            },
        ),
        framed(
            1,
            &CoordinatorMessage::Keys {
                applied: 9,
                ids: vec![KeyId::from_bits(7)],
                role: MachineRole::Rack,
            },
        ),
        framed(
            1,
            &CoordinatorMessage::Key {
                applied: 9,
                id: KeyId::from_bits(7),
                record: Box::new(key()),
            },
        ),
        framed(
            1,
            &CoordinatorMessage::Spent {
                applied: 9,
                spent: vec![(batch().spent[0].account.clone(), Windows::default())],
                charged: Some((3, 1)),
            },
        ),
        framed(0, &NodeMessage::Spent(batch())),
        framed(2, &StreamRequest::Generate(generation.clone())),
        framed(
            2,
            &StreamRequest::GenerateIn(generation.clone(), Pools::only([MachineRole::Rack])),
        ),
        framed(2, &StreamRequest::Spill(Box::new(text_ask()))),
        framed(
            2,
            &StreamRequest::GenerateText(generation.clone(), Pools::default(), Box::new(text_ask())),
        ),
        framed(
            2,
            &StreamRequest::GenerateBetter(generation.clone(), Pools::default(), Some(Box::new(text_ask()))),
        ),
        framed(3, &GenerationEvent::Text("apples".into())),
        framed(
            3,
            &GenerationEvent::Energy(Energy {
                joules: 12.5,
                source: "macmon".into(),
            }),
        ),
        framed(3, &GenerationEvent::GrantedByCloud(cloud())),
        framed(3, &GenerationEvent::Failed(Failure::EngineLost)),
        framed(4, &bundle()),
        framed(
            5,
            &EngineCommand::Start {
                sequence: 1,
                generation,
            },
        ),
        framed(6, &EngineEvent::Progress(1)),
        framed(7, &join_request()),
        framed(8, &JoinAnswer::Refused("no".into())),
        framed(9, &WeightsRequest::Manifest(model().name)),
        framed(10, &manifest()),
        framed(
            11,
            &RenewRequest {
                certificate: "-----BEGIN CERTIFICATE-----".into(),
                public_key: vec![4; 65],
                signature: vec![1; 70],
            },
        ),
        framed(12, &RenewAnswer::Refused(format!("no node {node}"))),
    ]
}

fn bundle() -> TextBundle {
    TextBundle {
        tokenizer_json: TOKENIZER.as_bytes().to_vec(),
        chat_template: "{{ messages[0].content }}".into(),
        stop_tokens: vec![2],
        bos_token: "a".into(),
        eos_token: "b".into(),
        add_bos: true,
        vocab: 4,
    }
}

fn join_request() -> JoinRequest {
    JoinRequest {
        token: TokenId::from_bits(1),
        node: NodeId::from_bits(2),
        name: "mini".into(),
        public_key: vec![4; 65],
        proof: [7; 32],
        signature: vec![1; 70],
    }
}

fn manifest() -> Manifest {
    Manifest {
        files: vec![ManifestFile {
            name: "model.safetensors".into(),
            bytes: 5 << 20,
            chunks: vec![[1; 32], [2; 32]],
        }],
    }
}

fn commands() -> Vec<Command> {
    let (node, token, now_s) = (NodeId::from_bits(7), TokenId::from_bits(4), 100);
    let name = model().name;
    vec![
        Command::Found(ClusterId::from_bits(1)),
        Command::OpenToken {
            id: token,
            token: TokenRecord {
                verifier: TokenVerifier([0; 32]),
                admits: Admits::Node(MachineRole::Rented),
                name: "mini".into(),
                expires_s: 700,
                used_by: None,
            },
            lease: Some(Lease::until(90_000, 600)),
            now_s,
        },
        Command::ConsumeToken {
            token,
            node,
            name: "other".into(),
            key: KeyPrint([1; 32]),
            approved: true,
            now_s,
        },
        Command::AddModel(model()),
        Command::SetPolicy {
            model: name.clone(),
            policy: ModelPolicy {
                replicas: Replicas::Count(2),
                pins: [node].into(),
                keep: Keep::Ttl(60),
                ..ModelPolicy::default()
            },
        },
        Command::UseModels {
            models: vec![name.clone()],
            now_s,
        },
        Command::Replan {
            step: PlanStep {
                parent: 0,
                moves: vec![Move {
                    model: name,
                    node,
                    load: true,
                    reason: "pinned here".into(),
                }],
                welcome: vec![node],
            },
            now_s,
        },
        Command::Relieve {
            node,
            seen: Rung::Normal,
            relieved: Relieved::default(),
        },
        Command::Unload {
            node,
            model: model().name,
            until_s: now_s + 3600,
            seen: Rung::MoveRunning,
            relieved: Relieved::default(),
        },
        Command::SetComfort {
            node,
            comfort: Comfort::Watts(30),
        },
        Command::SetKnobs(Made {
            set: knob_set(),
            by: "anna".into(),
            at_s: 9,
        }),
        Command::SetFallbacks(Made {
            set: pomona_common::Fallbacks::default(),
            by: "anna".into(),
            at_s: 9,
        }),
        Command::SetSlos(Made {
            set: pomona_common::SloSet::default(),
            by: "anna".into(),
            at_s: 9,
        }),
        Command::CountKills {
            node,
            instance: 1,
            totals: signs().kills,
            now_s,
        },
        Command::PassGate(Box::new(transition(node, now_s))),
        Command::CloseTicket(1),
        Command::ForgiveKills {
            node,
            model: model().name,
        },
        Command::SetAvailability {
            node,
            availability: Availability::Draining { until_s: 200 },
        },
        Command::RecordKills {
            node,
            instance: 1,
            total: 3,
            now_s,
        },
        Command::AnnounceCoordinator {
            number: 1,
            name: "rack".into(),
            laptop: false,
            address: ([10, 0, 0, 1], 7712).into(),
        },
        Command::Evict {
            node,
            seen: None,
            now_s,
        },
        Command::MakeKey {
            id: KeyId::from_bits(3),
            record: Box::new(key()),
        },
        Command::ChangeKey {
            id: KeyId::from_bits(3),
            terms: Box::default(),
        },
        Command::RotateKey {
            id: KeyId::from_bits(3),
            secret: KeyHash([4; 32]),
            grace_until_s: now_s + 60,
            now_s,
        },
        Command::ChargeKeys {
            charges: vec![(EntryId::Coordinator(1), batch())],
            now_s,
        },
        Command::SetBudget {
            key: KeyId::from_bits(3),
            monthly: Some(Money(5_000_000)),
        },
        Command::ApproveCloud {
            cloud: cloud(),
            approval: Approval {
                address: "https://a.example/v1".into(),
                by: "anna".into(),
                at_s: now_s,
                until_s: now_s + 60,
                monthly_money: Money(9_000_000),
                monthly_tokens: 1000,
            },
        },
        Command::ReserveSpill(Box::new(spill(now_s))),
        Command::SettleSpill {
            id: spill(now_s).id,
            took: Took {
                money: Money(7),
                tokens: 7,
            },
        },
        Command::SetPrivate {
            model: model().name,
            private: true,
        },
        Command::RevokeKey(KeyId::from_bits(8)),
        Command::Audited(Box::new(Audited {
            deed: Deed::default(),
            command: Command::RevokeKey(KeyId::from_bits(8)),
        })),
        Command::DoubtNode(node),
        Command::ApproveNode(node),
        Command::TrustNode(node),
        Command::RevokeNode { node, now_s },
    ]
}

fn cloud() -> CloudName {
    "openai".parse().expect("a name")
}

fn text_ask() -> TextAsk {
    TextAsk {
        request: RequestId::from_bits(5),
        choice: 0,
        model: model().name,
        digests: ModelDigests::default(),
        class: Class::Batch,
        key: Some(KeyId::from_bits(3)),
        pools: Pools::default(),
        prompt: TextPrompt::Chat(vec![("user".into(), "hi".into())]),
        prompt_tokens: 3,
        max_tokens: 9,
        stops: vec!["END".into()],
        temperature: 0.5,
        top_p: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: Some(7),
    }
}

fn spill(at_s: u64) -> Spill {
    Spill {
        id: SpillId {
            request: RequestId::from_bits(5),
            choice: 0,
            attempt: 1,
        },
        reserved: Reserved {
            cloud: cloud(),
            key: Some(KeyId::from_bits(3)),
            money: Money(12),
            tokens: 12,
            at_s,
        },
        address: "https://a.example/v1".into(),
        model: model().name,
        class: Class::Batch,
        pools: Pools::default(),
        deed: Deed::default(),
    }
}

fn key() -> KeyRecord {
    KeyRecord {
        expires_s: Some(900),
        terms: KeyTerms {
            class: Some(Class::Batch),
            models: [model().name].into(),
            private: true,
            limits: KeyLimits {
                tokens_per_day: Some(1000),
                ..KeyLimits::default()
            },
            of_models: [(model().name, KeyLimits::default())].into(),
            ..KeyTerms::default()
        },
        ..KeyRecord::new("ci", KeyHash([3; 32]), 5)
    }
}

fn batch() -> Batch {
    let account = Account {
        key: KeyId::from_bits(3),
        model: None,
    };
    let amount = Amount {
        requests: 1,
        tokens: 40,
    };
    Batch {
        instance: 1,
        number: 1,
        spent: vec![Spent {
            account,
            at_s: 5,
            amount,
        }],
    }
}

fn signs() -> Signs {
    Signs {
        kills: [(model().name, 2)].into(),
        answers: 9,
        first_tokens: vec![FirstToken {
            model: model().name,
            uncached: 20,
            ttft_ms: 300.0,
            took_ms: 900,
            given_up: false,
        }],
        ..Signs::default()
    }
}

fn transition(node: NodeId, at_s: u64) -> Transition {
    Transition {
        number: 0,
        node,
        subject: (Gate::Residency, None),
        from: Stage::Clear,
        to: Stage::Escalated,
        at_s,
        reason: "83.0 % for 300 s, the limit is 82".into(),
        samples: vec![Sample {
            ago_s: 3,
            value: 83.0,
        }],
        relocates: Some(model().name),
        ticket: Some("give it smaller models".into()),
    }
}

fn lengthed(command: &Command) -> Vec<u8> {
    let bytes = stored::encode_since(command, command.since()).expect("a command");
    [&[bytes.len() as u8], bytes.as_slice()].concat()
}

/// A state on its way, after every command.
fn states() -> Vec<Vec<u8>> {
    let mut state = ClusterState::default();
    let mut states = vec![pomona_raft::encode_state(&state).expect("a state")];
    for (index, command) in (1..).zip(commands()) {
        let proposal = Proposal {
            id: u128::from(index),
            seen: index - 1,
            command,
        };
        apply_proposal(&mut state, index, &proposal);
        states.push(pomona_raft::encode_state(&state).expect("a state"));
    }
    states
}

fn safetensors() -> Vec<u8> {
    let header =
        r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"__metadata__":{"format":"pt"}}"#;
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), &[0; 16]].concat()
}

/// All inputs, by target.
pub fn all() -> BTreeMap<&'static str, Vec<(String, Vec<u8>)>> {
    crate::TARGETS.iter().map(|(name, _)| (*name, of(name))).collect()
}
