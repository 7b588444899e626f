//! Writes and reads that any coordinator takes: what only the leader can do is asked of it, for
//! as long as a caller waits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::EmptyNode;
use pomona_decide::{ClusterState, Command, Proposal, Reply, TOO_LATE};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use crate::network::{CallError, RpcKind};
use crate::replica::{RaftError, Replica};
use crate::tables::{decode, encode, encode_since};

/// A caller waits so long for a command to be committed: longer than an election takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// One attempt at one leader; a leader that died is noticed sooner, by the election.
const ATTEMPT: Duration = Duration::from_millis(1000);
/// Between two attempts, when there is no leader or the other one did not know of its luck yet.
const PAUSE: Duration = Duration::from_millis(20);

/// What the leader says of a call.
#[derive(Debug, Serialize, Deserialize)]
enum Told<T> {
    /// Done.
    Done(T),
    /// It does not lead, and has done nothing.
    NotLeader,
    /// It tried and does not know, or is stopping.
    Failed(String),
}

/// A reply, and where its command is in the log.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    reply: Reply,
    index: u64,
}

impl Replica {
    /// Commits a command through whichever coordinator leads, and gives what it did. The command
    /// is carried out once, however often it had to be sent; the local state has it then.
    ///
    /// # Errors
    /// There was no leader to be had, or [`RaftError::Unknown`].
    pub async fn write(&self, command: Command) -> Result<Reply, RaftError> {
        if let Some(why) = self.too_new(&command) {
            return Ok(Reply::Refused(why));
        }
        // Not what is applied here: one that has just joined is behind, and a leader that was
        // started again is too, and does not know yet that it leads no more.
        let seen = self.read_index().await?;
        let proposal = Proposal {
            id: draw()?,
            seen,
            command,
        };
        let body = encode_since(&proposal, proposal.command.since()).map_err(RaftError::Message)?;
        let written: Written = self
            .through_leader(RpcKind::Write, &body, || self.write_here(proposal.clone()))
            .await?;
        // It is done, and not here yet: nobody may take that for not done.
        self.wait_applied(written.index)
            .await
            .map_err(|_| RaftError::Unknown)?;
        match written.reply {
            // An attempt before this one may have done it, and been forgotten.
            Reply::Refused(why) if why == TOO_LATE => Err(RaftError::Unknown),
            reply => Ok(reply),
        }
    }

    /// The state, with everything in it that was acknowledged anywhere before this call
    /// (ReadIndex; Ongaro, Raft, §6.4).
    ///
    /// # Errors
    /// No quorum, or no leader.
    pub async fn read(&self) -> Result<Arc<ClusterState>, RaftError> {
        let index = self.read_index().await?;
        self.wait_applied(index).await?;
        Ok(self.known())
    }

    async fn read_index(&self) -> Result<u64, RaftError> {
        self.through_leader(RpcKind::ReadIndex, &[], || self.read_index_here())
            .await
    }

    /// Answers another coordinator's [`RpcKind::Write`].
    pub(crate) async fn serve_write(&self, body: &[u8]) -> io::Result<Vec<u8>> {
        let proposal = decode(body)?;
        encode(&in_time(self.write_here(proposal)).await)
    }

    /// Answers another coordinator's [`RpcKind::ReadIndex`].
    pub(crate) async fn serve_read_index(&self) -> io::Result<Vec<u8>> {
        encode(&in_time(self.read_index_here()).await)
    }

    /// Why some coordinator could not read a command; it is not written then.
    pub fn too_new(&self, command: &Command) -> Option<String> {
        let metrics = self.metrics();
        let members = metrics.membership_config.nodes().map(|(number, _)| *number);
        let others = members.filter(|number| *number != metrics.id);
        let versions = others.map(|number| (number, self.caller.version(number)));
        // The leader knows who is there; others need not have met everybody.
        let leads = self.is_leader();
        let versions = versions.filter(|(_, version)| leads || version.is_some());
        pomona_decide::too_new(command, &self.known(), versions)
    }

    async fn write_here(&self, proposal: Proposal) -> Told<Written> {
        // The leader knows best who is there.
        if let Some(why) = self.too_new(&proposal.command) {
            return Told::Done(Written {
                reply: Reply::Refused(why),
                index: 0,
            });
        }
        match self.raft.client_write(proposal).await {
            Ok(response) => Told::Done(Written {
                reply: response.data,
                index: response.log_id.index,
            }),
            Err(error) => match error.forward_to_leader::<EmptyNode>() {
                Some(_) => Told::NotLeader,
                None => Told::Failed(error.to_string()),
            },
        }
    }

    async fn read_index_here(&self) -> Told<u64> {
        match self.raft.get_read_log_id().await {
            Ok((read, _)) => Told::Done(read.map_or(0, |id| id.index)),
            Err(error) => match error.forward_to_leader::<EmptyNode>() {
                Some(_) => Told::NotLeader,
                None => Told::Failed(error.to_string()),
            },
        }
    }

    /// Asks the leader, here or elsewhere, until it answers or patience ends. What is asked must
    /// be safe to ask again.
    async fn through_leader<T, F>(
        &self,
        kind: RpcKind,
        body: &[u8],
        here: impl Fn() -> F,
    ) -> Result<T, RaftError>
    where
        T: for<'a> Deserialize<'a>,
        F: Future<Output = Told<T>>,
    {
        let deadline = Instant::now() + PATIENCE;
        // Whether the command may be in a log somewhere.
        let mut sent = false;
        loop {
            let told = match self.leader() {
                None => self.ask_around(kind, body).await,
                Some(own) if own == self.config.id => in_time(here()).await,
                Some(other) => {
                    let asked = in_time(self.ask(other, kind, body));
                    tokio::select! {
                        told = asked => told,
                        // A leader that died answers nothing: the next one is asked at once.
                        () = self.leader_other_than(other) => Told::Failed("it leads no more".into()),
                    }
                }
            };
            match told {
                Told::Done(value) => return Ok(value),
                Told::NotLeader => {}
                Told::Failed(_) => sent = true,
            }
            if let Some(why) = self.stopped() {
                return Err(RaftError::Stopped(why));
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(if sent && kind == RpcKind::Write {
                    RaftError::Unknown
                } else {
                    RaftError::NoLeader
                });
            }
            sleep(PAUSE).await;
        }
    }

    async fn ask<T: for<'a> Deserialize<'a>>(&self, leader: u64, kind: RpcKind, body: &[u8]) -> Told<T> {
        match self.caller.call(leader, kind, body.to_vec()).await {
            Ok(answer) => decode(&answer).unwrap_or_else(|error| Told::Failed(error.to_string())),
            Err(CallError::NotConnected) => Told::NotLeader,
            Err(CallError::Unanswered(error)) => Told::Failed(error.to_string()),
        }
    }

    /// Who has just joined hears of no leader until the leader hears of it.
    async fn ask_around<T: for<'a> Deserialize<'a>>(&self, kind: RpcKind, body: &[u8]) -> Told<T> {
        let mut answer = Told::NotLeader;
        for peer in self.caller.peers() {
            match in_time(self.ask(peer, kind, body)).await {
                Told::NotLeader => {}
                Told::Done(value) => return Told::Done(value),
                // Its disk may be full: the others know better.
                failed => answer = failed,
            }
        }
        answer
    }

    async fn leader_other_than(&self, leader: u64) {
        let mut metrics = self.raft.metrics();
        // Fails only when Raft has stopped, which is a change as well.
        let _ = metrics
            .wait_for(|metrics| metrics.current_leader != Some(leader))
            .await;
    }

    async fn wait_applied(&self, index: u64) -> Result<(), RaftError> {
        self.raft
            .wait(Some(PATIENCE))
            .applied_index_at_least(Some(index), "what the leader has said")
            .await
            .map(|_| ())
            .map_err(|_| RaftError::NoLeader)
    }
}

fn draw() -> Result<u128, RaftError> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(|error| RaftError::Message(io::Error::other(error.to_string())))?;
    Ok(u128::from_le_bytes(bits))
}

/// One attempt's answer, or that there was none.
async fn in_time<T>(attempt: impl Future<Output = Told<T>>) -> Told<T> {
    let told = timeout(ATTEMPT, attempt).await;
    told.unwrap_or_else(|_| Told::Failed("no quorum in time".into()))
}
