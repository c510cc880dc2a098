//! The IO around the engine: one task owns the engine, others feed it and do what it says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ebb_api::autoscaling::PodAutoscaler;
use ebb_component::leader::{Election, Standing};
use ebb_component::{Admin, Health, ListenError, listen};
use ebb_http::wire::{PokeResponse, StatBatch};
use ebb_mesh::Identity;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::WATCHES;
use crate::config::Config;
use crate::engine::{Effect, Engine, Event, Explanation, Key};
use pass_on::PassOn;

mod collect;
mod execute;
mod pass_on;
mod ports;
mod sources;

/// Why the autoscaler cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is not to be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The mesh's names cannot be formed.
    #[error("the mesh identity of the activator cannot be formed: {0}")]
    Mesh(#[from] ebb_mesh::Error),
}

/// What reaches the task that owns the engine.
pub(crate) enum Message {
    Event(Event),
    /// All watches have delivered what exists.
    Synced,
    Report(StatBatch, oneshot::Sender<PokeResponse>),
    Explain(Key, oneshot::Sender<Option<Explanation>>),
    Figures(oneshot::Sender<String>),
}

pub(crate) type Mailbox = mpsc::UnboundedSender<Message>;

/// The Unix time that never goes back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    started: Instant,
    epoch: Duration,
}

impl Clock {
    fn new() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), epoch }
    }

    fn now(self) -> Duration {
        self.epoch + self.started.elapsed()
    }

    fn instant(self, at: Duration) -> Instant {
        self.started + at.saturating_sub(self.epoch)
    }
}

/// Runs until `shutdown`. Revisions keep the pods they have when it ends.
///
/// # Errors
/// When a port is not to be had.
pub async fn run(
    config: Config,
    client: kube::Client,
    identity: Identity,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let admin = Admin::start("autoscaler", config.bind, config.ports, Health::new(&[WATCHES])).await?;
    serve(config, admin, client, identity, shutdown).await
}

/// As [`run`], with health and metrics served already.
pub(crate) async fn serve(
    config: Config,
    admin: Admin,
    client: kube::Client,
    identity: Identity,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    admin.send_metrics(client.clone(), &config.namespace);
    let reports = listen(SocketAddr::new(config.bind, config.mtls_port)).await?;
    let (mailbox, inbox) = mpsc::unbounded_channel();
    let synced = admin.health().condition(WATCHES);
    let tasks = TaskTracker::new();

    sources::spawn(&tasks, &client, &config.namespace, &mailbox, &synced, &shutdown);
    let ending = admin.health().ending(&shutdown);
    let (namespace, me) = (&config.namespace, config.candidate.clone());
    let election = Election::of(client.clone(), namespace, "autoscaler", me, ending);
    let pass_on = PassOn::new(identity.clone(), election.clone(), &config);
    tasks.spawn(ports::reports(
        reports,
        &config,
        identity.clone(),
        mailbox.clone(),
        pass_on,
        shutdown.clone(),
    )?);
    admin.also_serve(ports::explanations(mailbox.clone(), election.clone(), config.ports.health));
    admin.also_tell(ports::figures(mailbox.clone(), election.clone()));
    let executor = Arc::new(execute::Executor::new(client, identity, &config, mailbox));
    tasks.spawn(own(inbox, executor, election.clone(), tasks.clone(), shutdown));
    tasks.close();
    tasks.wait().await;
    election.released().await;
    Ok(())
}

/// Owns the engine, which decides while this replica leads. A leader that cannot reach the API server is none any more and writes
/// nothing, but goes on collecting: when it leads again and nobody did meanwhile, nothing is forgotten.
async fn own(
    mut inbox: mpsc::UnboundedReceiver<Message>,
    executor: Arc<execute::Executor>,
    mut election: Election,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    let clock = Clock::new();
    let mut engine = Engine::new();
    let mut synced = false;
    let start = |effects: Vec<Effect>| {
        for effect in effects {
            let executor = executor.clone();
            tasks.spawn(async move { executor.execute(effect).await });
        }
    };
    loop {
        let wake = engine.next_wake();
        let timer = async {
            match wake {
                Some(at) => tokio::time::sleep_until(clock.instant(at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            standing = election.changed() => match standing {
                Standing::Leads(term) => {
                    executor.begin(Some(term));
                    if synced {
                        start(engine.handle(Event::Start, clock.now()));
                    }
                }
                Standing::Unknown => executor.begin(None),
                Standing::Follows(_) => {
                    executor.begin(None);
                    start(engine.handle(Event::StandBy, clock.now()));
                }
            },
            message = inbox.recv() => match message {
                None => return,
                Some(Message::Synced) => {
                    synced = true;
                    if election.leads() {
                        start(engine.handle(Event::Start, clock.now()));
                    }
                }
                Some(Message::Figures(answer)) => {
                    let _ = answer.send(engine.figures());
                }
                Some(Message::Event(event)) => start(engine.handle(event, clock.now())),
                Some(Message::Report(batch, answer)) => {
                    let asleep = if election.leads() { Vec::new() } else { engine.asleep(&batch) };
                    if !asleep.is_empty() {
                        tasks.spawn(wake_all(executor.clone(), asleep, clock.now(), answer));
                    } else if engine.is_started() {
                        let (response, effects) = engine.report(&batch, clock.now());
                        // The write of the scale is on its way before the report is answered.
                        start(effects);
                        let _ = answer.send(response);
                    }
                    // Else nobody answers, which says that nobody decides here.
                }
                Some(Message::Explain(key, answer)) => {
                    let _ = answer.send(engine.explain(&key));
                }
            },
            () = timer => start(engine.tick(clock.now())),
        }
    }
}

/// Wakes what waits for it; answers only if all could be woken, so that the others are reported again.
async fn wake_all(
    executor: Arc<execute::Executor>,
    asleep: Vec<(Arc<PodAutoscaler>, u32)>,
    now: Duration,
    answer: oneshot::Sender<PokeResponse>,
) {
    let desired = asleep.last().and_then(|(_, replicas)| i32::try_from(*replicas).ok());
    let woken = asleep.iter().map(|(pa, replicas)| executor.wake(pa, *replicas));
    if futures::future::join_all(woken).await.into_iter().all(|woken| woken) {
        let reason = "woken from zero while no replica of the autoscaler decides".to_owned();
        let decided_at_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let _ = answer.send(PokeResponse { decided_at_us, desired, reason });
    }
}
