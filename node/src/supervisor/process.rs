//! One run of the engine process and its pipes.

use std::process::{ExitStatus, Stdio};

use pomona_common::engine::{EngineCommand, EngineEvent};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::pipes::read_frame;
use crate::supervisor::EngineProgram;

/// Commands on their way to the engine, which takes them between two steps.
const COMMANDS: usize = 4096;
/// Events on their way from it.
const EVENTS: usize = 4096;

/// A killed process is waited for so long.
const REAP: std::time::Duration = std::time::Duration::from_secs(5);

/// A running engine. Dropping it kills the process.
pub(super) struct EngineProcess {
    child: Child,
    commands: mpsc::Sender<EngineCommand>,
    pub(super) events: mpsc::Receiver<EngineEvent>,
    /// Reader and writer of the pipes; they end with it.
    _tasks: JoinSet<()>,
}

impl EngineProcess {
    pub(super) fn spawn(program: &EngineProgram) -> std::io::Result<Self> {
        let mut command = match program {
            EngineProgram::Mlx(path) => Command::new(path),
            EngineProgram::Echo { step_ms } => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["echo-engine", "--step-ms", &step_ms.to_string()]);
                command
            }
            EngineProgram::Adopted => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("adopted-engine");
                command
            }
            EngineProgram::None => return Err(std::io::Error::other("no engine is configured")),
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(std::io::Error::other("the engine has no pipes"));
        };
        let (commands, mut outgoing) = mpsc::channel::<EngineCommand>(COMMANDS);
        let (incoming, events) = mpsc::channel(EVENTS);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some(command) = outgoing.recv().await {
                let Ok(frame) = pomona_wire::encode(&command) else {
                    continue;
                };
                if stdin.write_all(&frame).await.is_err() {
                    return;
                }
            }
        });
        tasks.spawn(async move {
            let mut reader = BufReader::new(stdout);
            loop {
                match read_frame::<EngineEvent>(&mut reader).await {
                    Ok(Some(event)) => {
                        if incoming.send(event).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        tracing::error!(%error, "engine sent a bad frame");
                        return;
                    }
                }
            }
        });
        Ok(Self {
            child,
            commands,
            events,
            _tasks: tasks,
        })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Passes a command on; false when the engine does not take any more.
    pub(super) fn send(&self, command: EngineCommand) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// Takes its input away, on which it ends by itself; the end of its pipe tells when it has.
    pub(super) fn close(&mut self) {
        self.commands = mpsc::channel(1).0;
    }

    /// Ends the process at once; the end of its pipe tells when it has.
    pub(super) fn kill(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.start_kill();
    }

    /// Waits for the end after the pipe closed, and enforces it; whether it had to is told as well.
    pub(super) async fn end(mut self) -> (Option<ExitStatus>, bool) {
        let patience = std::time::Duration::from_secs(2);
        if let Ok(status) = tokio::time::timeout(patience, self.child.wait()).await {
            return (status.ok(), false);
        }
        let _ = self.child.start_kill();
        // One that the kernel holds is left to it: dropping the handle reaps it later.
        let status = tokio::time::timeout(REAP, self.child.wait()).await;
        (status.ok().and_then(Result::ok), true)
    }
}
