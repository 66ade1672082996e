//! The journey on one screen: builds the stages, joins them, and drains them in order at shutdown.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, mpsc::sync_channel},
    thread,
};

use prometheus_client::registry::Registry;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::{JoinSet, spawn_blocking},
};
use tracing::{error, info};

use crate::{
    commit::{
        self,
        metrics::CommitMetrics,
        owner::{Acknowledgers, GapMaker, Owner},
    },
    config::{Config, GAPS_STREAM},
    intake::{Intake, SourceIndex},
    log::{BatchGroup, Log, LogError, LogMetrics, LogOptions},
    parts::Parts,
    replicate::{self, Held, LogEnd, Replicate, ReplicateMetrics},
    source::{
        SourceContext,
        metrics::{SourceHealth, SourceMetrics},
    },
    telemetry::{
        backlog::BacklogCollector,
        clock::{self, ClockMetrics},
        health::{CommitReport, DropReport, HealthReport, LogReport, ReplicateReport, SourceReport},
        http,
        process::{ProcessCollector, capacity_bytes, free_bytes},
    },
};

/// Groups that may wait in memory for the replicator, of at most 64 KiB encoded each. Beyond, it reads them from the log.
const FEED_GROUPS_MAX: usize = 16;

/// Why the agent cannot run. All but the last stop it before it takes a frame.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// What the store keeps cannot even be listed.
    #[error("cannot open the log")]
    Log(#[from] LogError),
    /// The system has no thread for us.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A thread ended by itself, after the agent was running. Nothing is lost: what Kafka has not acknowledged is in the
    /// log, and what the log has not, its devices send again. The service manager starts the agent again.
    #[error("the thread that {0} has ended by a panic")]
    Panicked(&'static str),
}

/// Runs the agent until `asked_to_stop` turns true, then drains it: sources stop and wait for their acknowledgements, what
/// they submitted is committed, and Kafka gets `replicate.shutdown_flush_ms` for what is in the log. When `asked_to_reread`
/// changes, sources read their files of passwords, rights and certificates again.
///
/// # Errors
/// [`PipelineError`], before anything was taken from a source; [`PipelineError::Panicked`] later.
pub async fn run(
    config: Config,
    parts: Parts,
    mut asked_to_stop: watch::Receiver<bool>,
    asked_to_reread: watch::Receiver<()>,
) -> Result<(), PipelineError> {
    let config = Arc::new(config);
    let Parts { clock, entropy, store, cursor, cluster, sources, service_manager } = parts;
    let mut registry = Registry::with_prefix("wayside");
    registry.register_collector(Box::new(ProcessCollector));
    let source_metrics = SourceMetrics::register(&mut registry);
    let commit_metrics = CommitMetrics::register(&mut registry);
    let log_metrics = LogMetrics::register(&mut registry);
    let replicate_metrics = ReplicateMetrics::register(&mut registry);
    let guard = config.telemetry.token.clone().map(|token| http::Guard::register(token, &mut registry));
    let clock_metrics = ClockMetrics::register(&mut registry);

    // The sources' way in: one queue bounded in bytes, one watch per source for what became durable.
    let (events, submitted) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(config.commit.intake_bytes));
    let mut acknowledgers = Acknowledgers::new();
    let mut intakes = Vec::new();
    for source in sources {
        let index = SourceIndex(intakes.len());
        let (acknowledger, acknowledged) = watch::channel(None);
        acknowledgers.insert(index, acknowledger);
        let intake = Intake::new(
            index,
            source.name(),
            events.clone(),
            Arc::clone(&room),
            config.commit.intake_bytes,
            acknowledged,
        );
        intakes.push((source, intake));
    }
    drop(events); // the batch stage ends when the last source has dropped its intake

    // commit: the thread that owns the log. It goes on behind the cursor in any case.
    let (next_seq_min, offsets_min) = cursor.1.as_ref().map(replicate::Cursor::beyond).unwrap_or_default();
    let limit_bytes = config.log.limit_bytes.or_else(|| Some(capacity_bytes(&config.log.dir)? / 2));
    let options = LogOptions {
        limit_bytes: limit_bytes.unwrap_or(u64::MAX),
        reserve_bytes: config.log.reserve_bytes,
        compression: config.log.compression,
        retention: config.log.retention,
        policies: config.streams.iter().map(|(name, stream)| (name.clone(), stream.policy)).collect(),
        next_seq_min,
        offsets_min,
        ..LogOptions::default()
    };
    let (mut log, mut recovery) = Log::open(store, options, log_metrics.clone())?;
    log.forget_others(|name| intakes.iter().any(|(source, _)| source.name() == name));
    info!(
        epochs = recovery.epochs,
        quarantined = recovery.quarantined.len(),
        damaged_entries = recovery.damaged_entries,
        end = recovery.end.0,
        boot = recovery.boot,
        "the log is open"
    );
    let first = log.first();
    let (feed, fresh) = sync_channel::<Arc<BatchGroup>>(FEED_GROUPS_MAX);
    let gap_maker = GapMaker {
        environment: config.gateway.environment.clone(),
        partitions: config.partitions(GAPS_STREAM),
    };
    let held = {
        let of_this_log = cursor.1.as_ref().filter(|cursor| cursor.next <= recovery.end);
        Held::new(of_this_log.map(|cursor| cursor.begun).unwrap_or_default())
    };
    let owner = Owner::new(
        log,
        acknowledgers,
        feed,
        gap_maker,
        held.clone(),
        commit_metrics.clone(),
        log_metrics.clone(),
    );
    let (log_client, log_thread) =
        commit::owner::spawn(owner, Arc::clone(&clock)).map_err(PipelineError::Thread)?;

    // replicate: a thread of its own, from the cursor on.
    let replicate_health = replicate_metrics.health();
    let backlog = BacklogCollector { log: log_metrics.clone(), replicate: replicate_health.clone() };
    registry.register_collector(Box::new(backlog));
    let partitions = Arc::clone(&config);
    let replicate = Replicate {
        live: fresh,
        reader: Box::new(log_client.clone()),
        log_end: LogEnd { first, next: recovery.end, offsets: recovery.next_offsets },
        cluster,
        config: config.replicate.clone(),
        environment: config.gateway.environment.clone(),
        partitions: Arc::new(move |stream| partitions.partitions(stream)),
        held,
        log_drops: config.streams.values().any(|stream| stream.policy.drops_stored()),
        cursor,
        clock: Arc::clone(&clock),
        entropy: entropy(),
        metrics: replicate_metrics,
    };
    let (alive, replicate_ended) = oneshot::channel::<Infallible>();
    let replicator = thread::Builder::new()
        .name("wayside-replicate".into())
        .spawn(move || {
            let _alive = alive; // dropped however the thread ends
            replicate::run(replicate)
        })
        .map_err(PipelineError::Thread)?;

    // Stop when asked to, and rather than acknowledge what nobody sends any more.
    let (stop, stopping) = watch::channel(false);
    let stop = Arc::new(stop);
    let stop_all = Arc::clone(&stop);
    tokio::spawn(async move {
        tokio::select! {
            _ = asked_to_stop.wait_for(|asked| *asked) => {}
            _ = replicate_ended => error!("replication has ended by itself; the agent stops"),
        }
        stop_all.send_replace(true);
    });

    tokio::spawn(clock::watch(Arc::clone(&clock), clock_metrics, stopping.clone()));

    // source and decode: one task each.
    let mut tasks = JoinSet::new();
    let mut source_health = Vec::new();
    for (source, intake) in intakes {
        let name = source.name().to_owned();
        let health = SourceHealth::default();
        source_health.push((name.clone(), health.clone()));
        let context = SourceContext {
            intake,
            remembered: recovery.notes.remove(name.as_str()).unwrap_or_default(),
            clock: Arc::clone(&clock),
            entropy: entropy(),
            counters: source_metrics.source(&name),
            health,
            shutdown: stopping.clone(),
            reread: asked_to_reread.clone(),
        };
        tasks.spawn(source.run(context));
    }

    // telemetry
    let health = {
        let (config, clock) = (Arc::clone(&config), Arc::clone(&clock));
        let started = clock.monotonic();
        Arc::new(move || {
            let sources = source_health.iter().map(|(name, health)| {
                let state = health.state();
                SourceReport { name: name.clone(), connected: state.connected, last_error: state.error }
            });
            let commit = CommitReport {
                commits: commit_metrics.commits(),
                failures: commit_metrics.failures(),
                failing: commit_metrics.failing(),
                waiting: commit_metrics.waiting(),
                last_error: commit_metrics.last_error(),
            };
            let log = LogReport {
                epochs: log_metrics.epochs(),
                size_bytes: log_metrics.size_bytes(),
                limit_bytes,
                reserve_bytes: config.log.reserve_bytes,
                free_bytes: free_bytes(&config.log.dir),
            };
            let state = replicate_health.snapshot();
            let replicate = ReplicateReport {
                backlog_records: state.lag_records,
                backlog_bytes: log_metrics.size_bytes_of(state.lag_entries),
                backlog_age_seconds: state.oldest_age_seconds,
                last_error: state.last_error,
                fenced: state.fenced,
                waiting_topics: state.waiting_topics,
            };
            let dropped = DropReport::of_stage("source", source_metrics.drops())
                .chain(DropReport::of_stage("log", log_metrics.drops()))
                .chain(DropReport::of_stage("replicate", state.dropped));
            HealthReport::new(
                clock.monotonic().since(started),
                clock.wall().quality.into(),
                sources.collect(),
                commit,
                log,
                replicate,
                dropped.collect(),
            )
        })
    };
    if let Some(listen) = config.telemetry.listen {
        let router = http::router(Arc::new(registry), health.clone(), guard);
        tokio::spawn(http::serve(listen, router, stopping.clone()));
    }
    let log = log_client.clone();
    tokio::spawn(service_manager.report(move || log.answer(), move || health(), stopping.clone()));
    info!(gateway = config.gateway.id, version = env!("CARGO_PKG_VERSION"), "running");

    // batch and commit: returns when the sources have ended and all that they submitted is durable.
    commit::drive(&config, submitted, log_client.clone(), Arc::clone(&clock)).await;
    stop.send_replace(true);
    while let Some(ended) = tasks.join_next().await {
        if let Err(cause) = ended {
            error!(%cause, "a source ended by a panic; what it had not acknowledged comes again from its devices");
        }
    }

    // Then replicate, then the log.
    log_client.close_feed();
    let joined = spawn_blocking(move || {
        let replicated = replicator.join();
        log_client.stop();
        (replicated, log_thread.join())
    });
    match joined.await {
        Ok((Ok(summary), Ok(()))) => {
            info!(
                caught_up = summary.caught_up,
                backlog_records = summary.lag_records,
                cursor_is_durable = summary.cursor_is_durable,
                "stopped"
            );
            Ok(())
        }
        Ok((Ok(_), Err(_))) => Err(PipelineError::Panicked("owns the log")),
        _ => Err(PipelineError::Panicked("replicates")),
    }
}
