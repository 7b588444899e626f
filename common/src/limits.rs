//! Bounds on everything that input can grow. One place, each with its reason.

use std::time::Duration;

use crate::class::Class;

/// Body of a chat or completion request. Long agent prompts stay below 1 MiB.
pub const CHAT_BODY_BYTES: usize = 2 * 1024 * 1024;
/// Of a body over its limit, so much is read and dropped so that the client sees the refusal.
pub const DRAIN_BYTES: usize = 32 * 1024 * 1024;
/// Body of an admin request.
pub const ADMIN_BODY_BYTES: usize = 64 * 1024;
/// All request headers together (vLLM CVE-2025-48956 was a flood of them).
pub const HEADER_BYTES: usize = 16 * 1024;
/// Number of request headers.
pub const HEADER_COUNT: usize = 64;
/// Request target.
pub const URI_BYTES: usize = 4 * 1024;
/// Nesting of a request body; `serde_json` stops at 128 by itself.
pub const JSON_DEPTH: usize = 32;
/// Keys of one JSON object.
pub const JSON_OBJECT_KEYS: usize = 1024;
/// Messages in one chat request.
pub const MESSAGES: usize = 1024;
/// Stop strings of one request.
pub const STOP_STRINGS: usize = 8;
/// Length of one stop string.
pub const STOP_STRING_BYTES: usize = 256;
/// Answers to one prompt (`n`).
pub const CHOICES: u32 = 4;
/// Alternatives reported per token (`top_logprobs`).
pub const TOP_LOGPROBS: u32 = 20;
/// Entries of `logit_bias`.
pub const LOGIT_BIAS_ENTRIES: usize = 1024;
/// Answer length when the client names none: long enough for chat, short enough that one
/// request cannot reserve a whole context of KV cache by omission.
pub const DEFAULT_MAX_TOKENS: u32 = 1024;
/// Characters of a model name; hub names are far shorter.
pub const MODEL_NAME_CHARS: usize = 128;
/// Models in the catalogue.
pub const MODELS: usize = 256;
/// Nodes in a cluster.
pub const NODES: usize = 256;
/// Files of a model.
pub const MODEL_FILES: usize = 512;
/// Bytes of a model.
pub const MODEL_BYTES: u64 = 2 << 40;
/// A manifest of the largest model.
pub const MANIFEST_FRAME_BYTES: usize = 24 * 1024 * 1024;
/// Interactive answers in the signs of one report: more begin in a second at no node.
pub const FIRST_TOKENS: usize = 32;
/// Power rails in a report.
pub const RAILS: usize = 16;

/// A client sends its headers within this time.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// A client sends its body within this time.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(60);
/// A client takes some of a response within this time, else its connection is closed.
pub const IDLE_WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that a request may take that somebody waits for, queue included.
pub const REQUEST_WALL_CLOCK: Duration = Duration::from_secs(600);
/// As that, of batch: it queues behind everybody, and stands still where its machine is needed. Ended after ten
/// minutes, prompts were prefilled in vain again and again (`cargo xtask sim day`: half of all work at 70 % load).
pub const BATCH_WALL_CLOCK: Duration = Duration::from_secs(3600);
/// The longest that a request of this class may take, queue included.
pub const fn wall_clock(class: Class) -> Duration {
    match class {
        Class::Interactive | Class::Background => REQUEST_WALL_CLOCK,
        Class::Batch => BATCH_WALL_CLOCK,
    }
}

/// An SSE comment goes out when nothing else did for this long.
pub const SSE_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Open HTTP connections of one listener.
pub const HTTP_CONNECTIONS: usize = 512;
/// Requests waiting for a slot in one process, and how long one waits before its 429.
pub const QUEUE: QueueBound = QueueBound {
    capacity: 256,
    wait: Duration::from_secs(30),
};
/// Events buffered for one stream before its sequence is cancelled: at one token an event this
/// is several times the 256 KiB a client may lag behind.
pub const STREAM_EVENTS: usize = 4096;

/// Handshakes under way at once; above half of it clients must prove their address.
pub const QUIC_HANDSHAKES: usize = 64;
/// A QUIC handshake is finished within this time.
pub const QUIC_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Streams the peer may have open: one per request in flight, of each class as many as a queue takes, and the control
/// stream and others of its kind.
pub const QUIC_BIDI_STREAMS: u32 = 3 * QUEUE.capacity as u32 + 64;
/// Flow-control window of one stream.
pub const QUIC_STREAM_WINDOW: u32 = 1024 * 1024;
/// Flow-control window of one connection.
pub const QUIC_CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Keep-alives keep an idle session open: five of them fit in the silence of a LAN.
pub const QUIC_KEEP_ALIVE: Duration = Duration::from_millis(500);

/// One frame of a machine that joins: it has proved nothing yet.
pub const JOIN_FRAME_BYTES: usize = 16 * 1024;
/// Joins under way at once at one coordinator.
pub const JOINS: usize = 16;
/// API keys of a cluster.
pub const KEYS: usize = 4096;
/// Models that an API key names, for its scope and for limits of their own.
pub const KEY_MODELS: usize = 16;
/// Entries of one batch of what was spent: 48 KiB at most, of a command's 64.
pub const BATCH_ENTRIES: usize = 256;
/// The longest time for which the secret before a rotation still opens; longer ones are shortened to it.
pub const KEY_GRACE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Entries of the audit log in the replicated state, which is written with every command.
pub const AUDIT_KEPT: usize = 256;
/// Characters that an entry of the audit log says of what was changed, and how.
pub const AUDIT_DETAIL_CHARS: usize = 512;
/// Open join tokens of a cluster.
pub const TOKENS: usize = 64;
/// Nodes ever revoked; beyond it nobody joins any more.
pub const REVOKED_NODES: usize = 16_384;
/// A join token is good for this long, unless its maker says otherwise.
pub const TOKEN_LIFE: Duration = Duration::from_secs(600);
/// The longest life a join token may be given.
pub const TOKEN_LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Coordinators of a cluster: more make writes slower and nothing safer.
pub const COORDINATORS: usize = 5;
/// Commands that are remembered, so that one whose answer was lost can be sent again without
/// being carried out twice: far more than a cluster writes in the seconds that this takes.
pub const RAFT_RECENT: u64 = 256;
/// Addresses of coordinators that a process keeps in mind, hints included.
pub const CONTACTS: usize = 256;
/// Characters of a node's name.
pub const NODE_NAME_CHARS: usize = 64;

/// One control frame.
pub const CONTROL_FRAME_BYTES: usize = 256 * 1024;
/// One frame of a token stream, prompts included: 2 MiB of text is at most 2 Mi tokens, and a
/// prompt longer than any context is refused before it is framed.
pub const STREAM_FRAME_BYTES: usize = 4 * 1024 * 1024;
/// One frame between node and engine.
pub const ENGINE_FRAME_BYTES: usize = 4 * 1024 * 1024;
/// Tokenizer and template of one model: the largest published tokenizers are 35 MB.
pub const TEXT_BUNDLE_BYTES: usize = 64 * 1024 * 1024;
/// Raft log entries between snapshots (openraft's own default).
pub const RAFT_LOG_ENTRIES: u64 = 5000;
/// One Raft snapshot.
pub const RAFT_SNAPSHOT_BYTES: usize = 64 * 1024 * 1024;
/// One chunk of a snapshot on its way to another coordinator.
pub const RAFT_SNAPSHOT_CHUNK_BYTES: u64 = 1024 * 1024;
/// Attempts on other grants or after an engine crash, per request.
pub const RETRIES: u32 = 2;

/// A queue has a capacity and a longest wait, always both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueBound {
    /// Entries; one more is refused at once.
    pub capacity: usize,
    /// Time after which a waiting entry is refused.
    pub wait: Duration,
}
