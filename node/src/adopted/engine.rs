//! The go-between: it speaks the engine's protocol with the node, and HTTP with servers of other programs. How much
//! they do at once is decided here, by the same knobs as in `pomona-engine`: what a server has taken it makes to its
//! end, so relief keeps batch work from beginning, and takes it back from the queue.

mod load;
mod queue;
mod reported;
mod server;

use std::collections::BTreeMap;
use std::path::Path;

use pomona_common::engine::{EngineCommand, EngineEvent};
use pomona_common::generation::GenerationEvent;
use pomona_common::report::ClassReport;
use pomona_common::{
    Class, EngineKnobs, Failure, FinishReason, Generation, ModelName, SloSet, TextAsk, Turnover,
};
use pomona_wire::WireError;
use tokio::io::{AsyncWriteExt, BufReader, Stdout};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::adopted::Adopted;
use crate::pipes::read_frame;
use load::Others;
use queue::{Job, Queue};
use server::{Ended, Server};

/// Commands and news that may wait.
const WAITING: usize = 4096;

/// What happens while answers are made.
enum News {
    /// More of an answer; nothing while it is being thought about.
    Text(u64, String),
    /// An answer is over.
    Ended(u64, Ended),
    /// Whether a server is there, and its process.
    Server(ModelName, Result<Option<u32>, String>),
    /// The requests that a server has of a model, whoever asked, if it tells.
    Load(ModelName, Option<u64>),
}

/// An answer being made.
struct Running {
    job: Job,
    began: Instant,
    task: AbortHandle,
}

struct Adapter {
    knobs: EngineKnobs,
    slos: SloSet,
    /// Percent of its slots that batch may have.
    pace: u32,
    /// Whether the system is short of memory.
    is_short: bool,
    servers: BTreeMap<ModelName, Server>,
    queue: Queue,
    /// How fast each class goes on at each server, since this time.
    turnover: BTreeMap<(ModelName, Class), Turnover>,
    began: Instant,
    running: BTreeMap<u64, Running>,
    classes: BTreeMap<Class, ClassReport>,
    news: mpsc::Sender<News>,
    /// Answers and looks at servers; they end with it.
    tasks: JoinSet<()>,
    progress: u64,
    /// The process that was named last.
    serves: Option<u32>,
    output: Stdout,
}

/// Runs until the input ends.
///
/// # Errors
/// The pipes fail.
pub async fn run() -> Result<(), WireError> {
    let (sender, mut commands) = mpsc::channel::<EngineCommand>(WAITING);
    let mut readers = JoinSet::new();
    readers.spawn(async move {
        let mut input = BufReader::new(tokio::io::stdin());
        while let Ok(Some(command)) = read_frame(&mut input).await {
            if sender.send(command).await.is_err() {
                return;
            }
        }
    });
    let (news, mut incoming) = mpsc::channel(WAITING);
    let mut adapter = Adapter {
        knobs: EngineKnobs::default(),
        slos: SloSet::default(),
        pace: 100,
        is_short: false,
        servers: BTreeMap::new(),
        queue: Queue::default(),
        turnover: Default::default(),
        began: Instant::now(),
        running: BTreeMap::new(),
        classes: BTreeMap::new(),
        news,
        tasks: JoinSet::new(),
        progress: 0,
        serves: None,
        output: tokio::io::stdout(),
    };
    adapter.send(&EngineEvent::Ready(reported::build())).await?;
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => adapter.obey(command).await?,
                None => return Ok(()),
            },
            Some(news) = incoming.recv() => adapter.on_news(news).await?,
            Some(_) = adapter.tasks.join_next(), if !adapter.tasks.is_empty() => {}
        }
        adapter.start_what_may();
    }
}

impl Adapter {
    async fn obey(&mut self, command: EngineCommand) -> Result<(), WireError> {
        match command {
            EngineCommand::Load { model, folder } => self.load(model, &folder).await,
            EngineCommand::Unload(model) => {
                self.servers.remove(&model);
                self.end_all_of(&model, "it was given up").await?;
                self.send(&EngineEvent::Unloaded(model)).await?;
                self.say_who_serves().await
            }
            EngineCommand::StartText {
                sequence,
                generation,
                text,
            } => self.take(sequence, *generation, *text).await,
            // Whoever asks has the tokenizer of another model.
            EngineCommand::Start { sequence, generation } => {
                let failure = Failure::ModelNotLoaded {
                    model: generation.model.to_string(),
                    detail: "the engine here is a server that takes text".into(),
                };
                self.tell(sequence, GenerationEvent::Failed(failure)).await
            }
            EngineCommand::Cancel { sequence } => {
                self.queue.remove(sequence);
                let Some(Running { job, began, task }) = self.running.remove(&sequence) else {
                    return Ok(());
                };
                task.abort();
                self.class(job.generation.class).cancelled += 1;
                let (reason, usage) = (FinishReason::Cancelled, None);
                let event = Ended::Whole { reason, usage }.event(&job, began, self.knobs.version);
                self.tell(sequence, event).await
            }
            EngineCommand::Knobs(knobs) => {
                self.knobs = knobs;
                Ok(())
            }
            // Its servers do not rest when they are told to; they are given less to do at once.
            EngineCommand::Pace(percent) => {
                self.pace = percent;
                Ok(())
            }
            EngineCommand::Short(is_short) => {
                self.is_short = is_short;
                Ok(())
            }
            EngineCommand::Slos(slos) => {
                self.slos = *slos;
                Ok(())
            }
            EngineCommand::Report => {
                // It is alive whatever the servers do, which have times of their own.
                self.progress += 1;
                self.look_at_folders().await?;
                self.refuse_what_waited_too_long().await?;
                self.send(&EngineEvent::Progress(self.progress)).await?;
                let report = Box::new(self.report());
                self.send(&EngineEvent::Report(report)).await
            }
        }
    }

    /// Looks for a model's server from now on; asked again, it says how that stands.
    async fn load(&mut self, model: ModelName, folder: &str) -> Result<(), WireError> {
        let adopted = match Adopted::read(Path::new(folder)) {
            Some(Ok(adopted)) => adopted,
            Some(Err(error)) => return self.not_loaded(model, error.to_string()).await,
            None => {
                let why = "the GPU is lent to a server of another program: `pomona engine show`";
                return self.not_loaded(model, why.to_owned()).await;
            }
        };
        if let Some(server) = self.servers.get(&model) {
            return match server.why_not.clone() {
                Some(why) => self.not_loaded(model, why).await,
                None => Ok(()),
            };
        }
        match Server::new(adopted, Path::new(folder)) {
            Ok(server) => {
                let look = server.look(model.clone(), self.news.clone());
                let look = self.tasks.spawn(look);
                self.servers.insert(model, server.looked_at_by(look));
                Ok(())
            }
            Err(why) => self.not_loaded(model, why).await,
        }
    }

    async fn not_loaded(&mut self, model: ModelName, reason: String) -> Result<(), WireError> {
        self.send(&EngineEvent::LoadFailed { model, reason }).await
    }

    async fn take(&mut self, sequence: u64, generation: Generation, text: TextAsk) -> Result<(), WireError> {
        let server = self.servers.get(&generation.model);
        let slo = *self.slos.class(generation.class);
        let failure = if server.is_none_or(|server| !server.is_up) {
            Failure::ModelNotLoaded {
                model: generation.model.to_string(),
                detail: "its server does not answer".into(),
            }
        } else if self.queue.ahead_of(&generation) >= slo.queue {
            Failure::Overloaded {
                detail: "the queue for the server is full".into(),
                retry_after_s: self.comes_in(&generation, 1),
            }
        } else {
            let job = Job {
                wait: slo.queue_bound().wait,
                generation,
                text,
                since: Instant::now(),
                first: None,
                texts: 0,
            };
            self.queue.push(sequence, job);
            return self.tell(sequence, GenerationEvent::Granted).await;
        };
        self.tell(sequence, GenerationEvent::Failed(failure)).await
    }

    /// Starts what has a slot, the most urgent class first.
    fn start_what_may(&mut self) {
        loop {
            let running = self
                .running
                .values()
                .map(|one| (&one.job.generation.model, one.job.generation.class));
            let running: Vec<(ModelName, Class)> =
                running.map(|(model, class)| (model.clone(), class)).collect();
            let servers = &self.servers;
            let slots = |model: &ModelName| servers.get(model).map(Server::slots).unwrap_or_default();
            let knobs = self.knobs.entered(self.pace, self.is_short);
            let Some((sequence, job)) = self.queue.next(&knobs, &running, slots) else {
                return;
            };
            let queue = (job.generation.model.clone(), job.generation.class);
            self.turnover.entry(queue).or_default().left(self.began.elapsed());
            let Some(server) = self.servers.get(&job.generation.model) else {
                continue;
            };
            let answer = server.answer(sequence, job.text.clone(), self.news.clone());
            let running = Running {
                task: self.tasks.spawn(answer),
                began: Instant::now(),
                job,
            };
            self.running.insert(sequence, running);
        }
    }

    async fn on_news(&mut self, news: News) -> Result<(), WireError> {
        match news {
            News::Text(sequence, text) => {
                let Some(running) = self.running.get_mut(&sequence) else {
                    return Ok(());
                };
                let first = running.job.first.get_or_insert_with(Instant::now);
                let waited = first.duration_since(running.job.since);
                running.job.texts += 1;
                let (class, model) = (running.job.generation.class, running.job.generation.model.clone());
                let is_first = running.job.texts == 1;
                let counted = self.class(class);
                counted.tokens += 1;
                if is_first {
                    counted.ttft_ms.record(waited.as_secs_f64() * 1e3);
                }
                if let Some(server) = self.servers.get_mut(&model) {
                    server.tokens += 1;
                }
                self.tell(sequence, GenerationEvent::Text(text)).await
            }
            News::Ended(sequence, ended) => {
                let Some(running) = self.running.remove(&sequence) else {
                    return Ok(());
                };
                let class = running.job.generation.class;
                if matches!(ended, Ended::Whole { .. }) {
                    self.class(class).finished += 1;
                }
                let gone = ended.is_gone();
                let event = ended.event(&running.job, running.began, self.knobs.version);
                self.tell(sequence, event).await?;
                match gone {
                    Some(why) => self.on_server(running.job.generation.model, Err(why)).await,
                    None => Ok(()),
                }
            }
            News::Server(model, state) => self.on_server(model, state).await,
            News::Load(model, load) => {
                let ours = self.count(|generation| generation.model == model);
                if let Some(server) = self.servers.get_mut(&model) {
                    server.others.note(load, ours);
                }
                Ok(())
            }
        }
    }

    /// A server came, or went: what it had not answered goes elsewhere.
    async fn on_server(
        &mut self,
        model: ModelName,
        state: Result<Option<u32>, String>,
    ) -> Result<(), WireError> {
        let Some(server) = self.servers.get_mut(&model) else {
            return Ok(());
        };
        let was_up = std::mem::replace(&mut server.is_up, state.is_ok());
        if !server.is_up {
            server.others = Others::default();
        }
        match state {
            Ok(pid) => {
                server.why_not = None;
                server.pid = pid;
                self.say_who_serves().await?;
                if was_up {
                    return Ok(());
                }
                self.send(&EngineEvent::Loaded { model }).await
            }
            Err(why) => {
                let is_news = server.why_not.as_ref() != Some(&why);
                server.why_not = Some(why.clone());
                if was_up {
                    self.end_all_of(&model, "its server is gone").await?;
                    // While the model counts as loaded: it is the one to blame for what became of its server.
                    self.say_who_serves().await?;
                    self.send(&EngineEvent::Unloaded(model.clone())).await?;
                }
                if is_news {
                    self.not_loaded(model, why).await
                } else {
                    Ok(())
                }
            }
        }
    }

    /// The process that is watched: of several servers, the first one's.
    async fn say_who_serves(&mut self) -> Result<(), WireError> {
        let up = self.servers.values().filter(|server| server.is_up);
        let pid = up.filter_map(|server| server.pid).next();
        if std::mem::replace(&mut self.serves, pid) == pid {
            return Ok(());
        }
        self.send(&EngineEvent::Serves(pid)).await
    }

    /// What was adopted anew, with other slots, another key or at another address, is so from now on.
    async fn look_at_folders(&mut self) -> Result<(), WireError> {
        let changed = |(model, server): (&ModelName, &Server)| {
            let adopted = Adopted::read(&server.folder)?.ok()?;
            (adopted != server.adopted).then(|| (model.clone(), adopted))
        };
        let changed: Vec<(ModelName, Adopted)> = self.servers.iter().filter_map(changed).collect();
        for (model, adopted) in changed {
            let Some(server) = self.servers.get_mut(&model) else {
                continue;
            };
            let is_same = (&adopted.url, &adopted.model) == (&server.adopted.url, &server.adopted.model);
            // A key is read anew: the file may have another one, or the same file a new one.
            if is_same && adopted.key_file.is_none() && server.adopted.key_file.is_none() {
                server.adopted = adopted;
                continue;
            }
            let (folder, was_up) = (server.folder.clone(), server.is_up);
            self.servers.remove(&model);
            self.end_all_of(&model, "it was adopted anew").await?;
            if was_up {
                self.send(&EngineEvent::Unloaded(model.clone())).await?;
            }
            self.load(model, &folder.to_string_lossy()).await?;
        }
        self.say_who_serves().await
    }

    /// As the scheduler of `pomona-engine` has it.
    async fn refuse_what_waited_too_long(&mut self) -> Result<(), WireError> {
        let is_over = |job: &Job| job.since.elapsed() > job.wait;
        for (sequence, generation) in self.queue.remove_all(is_over) {
            let is_like = |one: &Generation| (&one.model, one.class) == (&generation.model, generation.class);
            let waiting = self.queue.count(is_like) as usize;
            let failure = Failure::Overloaded {
                detail: "no slot of the server came free in time".into(),
                retry_after_s: self.comes_in(&generation, waiting + 1),
            };
            self.tell(sequence, GenerationEvent::Failed(failure)).await?;
        }
        Ok(())
    }

    /// In how many seconds so many like this one will have left the queue, by how fast it went on lately.
    fn comes_in(&self, generation: &Generation, places: usize) -> u32 {
        let turnover = self.turnover.get(&(generation.model.clone(), generation.class));
        let unknown = Turnover::default();
        turnover
            .unwrap_or(&unknown)
            .seconds_for(places, self.began.elapsed())
    }

    async fn end_all_of(&mut self, model: &ModelName, detail: &str) -> Result<(), WireError> {
        let is_its = |job: &Job| job.generation.model == *model;
        let ended = self.queue.remove_all(is_its).into_iter();
        let mut ended: Vec<u64> = ended.map(|(sequence, _)| sequence).collect();
        let running = self.running.iter().filter(|(_, running)| is_its(&running.job));
        let running: Vec<u64> = running.map(|(sequence, _)| *sequence).collect();
        for sequence in &running {
            if let Some(running) = self.running.remove(sequence) {
                running.task.abort();
            }
        }
        ended.extend(running);
        for sequence in ended {
            let failure = Failure::ModelNotLoaded {
                model: model.to_string(),
                detail: detail.to_owned(),
            };
            self.tell(sequence, GenerationEvent::Failed(failure)).await?;
        }
        Ok(())
    }

    fn class(&mut self, class: Class) -> &mut ClassReport {
        self.classes.entry(class).or_default()
    }

    async fn tell(&mut self, sequence: u64, event: GenerationEvent) -> Result<(), WireError> {
        self.send(&EngineEvent::Sequence { sequence, event }).await
    }

    async fn send(&mut self, event: &EngineEvent) -> Result<(), WireError> {
        let frame = pomona_wire::encode(event)?;
        self.output.write_all(&frame).await.map_err(WireError::Io)?;
        self.output.flush().await.map_err(WireError::Io)
    }
}
