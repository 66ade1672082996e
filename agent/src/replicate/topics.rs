//! Looks for topics and creates the missing ones, on a short-lived thread, since every step may wait for the network.

use std::{
    ffi::CString,
    io,
    num::NonZeroU16,
    ptr,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    bindings::rd_kafka_oauthbearer_set_token,
    client::{Client, OAuthToken},
    config::FromClientConfigAndContext,
    types::{RDKafkaErrorCode, RDKafkaRespErr},
};

use super::{
    access::Access,
    cluster::{ClusterEvent, TopicOutcome},
    kafka::{LogContext, NO_PERMISSION, client_error, token_source},
    token,
};
use crate::{
    config::Replicate,
    env::{Clock as _, SystemClock},
};

/// Longest wait for each answer. While a worker waits, replication of the ready topics goes on.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// What an admin client knows of a cluster that does not answer; the producer knows more.
pub(super) const UNREACHABLE: &str = "the cluster does not answer";

/// The largest value of Kafka's type `long`: no limit.
const NO_LIMIT: &str = "9223372036854775807";

/// A topic that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) topic: String,
    pub(super) partitions: NonZeroU16,
}

/// Ensures topics, one worker at a time.
pub(super) struct Topics {
    template: Worker,
    wanted: Vec<Wanted>,
    worker: Option<Receiver<ClusterEvent>>,
}

impl Topics {
    /// `config` without what [`Access`] adds.
    pub(super) fn new(settings: Replicate, config: ClientConfig) -> Self {
        Self { template: Worker::new(settings, config), wanted: Vec::new(), worker: None }
    }

    pub(super) fn ensure(&mut self, topic: &str, partitions: NonZeroU16) {
        self.wanted.push(Wanted { topic: topic.to_owned(), partitions });
    }

    /// Takes answers, and starts the next worker when the one before has ended.
    pub(super) fn poll(&mut self, events: &mut Vec<ClusterEvent>) {
        if let Some(answers) = &self.worker {
            loop {
                match answers.try_recv() {
                    Ok(event) => events.push(event),
                    Err(std::sync::mpsc::TryRecvError::Empty) => return,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => break,
                }
            }
            self.worker = None;
        }
        if self.wanted.is_empty() {
            return;
        }
        let (sender, answers) = channel();
        let wanted = std::mem::take(&mut self.wanted);
        match self.spawn(wanted.clone(), sender) {
            Ok(()) => self.worker = Some(answers),
            Err(error) => events.extend(wanted.into_iter().map(|w| ClusterEvent::Topic {
                topic: w.topic,
                outcome: TopicOutcome::Failed(format!("no thread: {error}")),
            })),
        }
    }

    fn spawn(&self, wanted: Vec<Wanted>, answers: Sender<ClusterEvent>) -> io::Result<()> {
        let worker = self.template.clone();
        // Not joined: it ends by itself within some timeouts, and at a shutdown nobody waits for its answer.
        thread::Builder::new().name("topics".into()).spawn(move || worker.run(wanted, &answers)).map(drop)
    }
}

/// The client that asks.
pub(super) type Admin = AdminClient<LogContext>;

/// Asks the cluster for topics and creates them.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) settings: Replicate,
    /// Without what [`Access`] adds.
    config: ClientConfig,
}

impl Worker {
    /// `config` without what [`Access`] adds.
    pub(super) fn new(settings: Replicate, config: ClientConfig) -> Self {
        Self { settings, config }
    }

    /// The same for clients with another property.
    pub(super) fn with(&self, property: &str, value: &str) -> Self {
        let mut other = self.clone();
        other.config.set(property, value);
        other
    }

    fn run(&self, wanted: Vec<Wanted>, answers: &Sender<ClusterEvent>) {
        let admin = self.client(LogContext, Admin::inner);
        let mut unreachable = admin.as_ref().err().cloned();
        for wanted in wanted {
            let outcome = match (&admin, &unreachable) {
                (Ok(admin), None) => self.ensure(admin, &wanted).unwrap_or_else(|reason| {
                    // The next ones would only wait for the same cluster.
                    unreachable = Some(reason.clone());
                    TopicOutcome::Failed(reason)
                }),
                (_, reason) => TopicOutcome::Failed(reason.clone().unwrap_or_default()),
            };
            if answers.send(ClusterEvent::Topic { topic: wanted.topic, outcome }).is_err() {
                return;
            }
        }
    }

    /// A client with the secrets and certificates as they are now. A token is given to what `inner` says, since nobody
    /// polls the client for its question for one.
    pub(super) fn client<C, T>(&self, context: C, inner: impl Fn(&T) -> &Client<C>) -> Result<T, String>
    where
        C: ClientContext,
        T: FromClientConfigAndContext<C>,
    {
        let access = Access::read(&self.settings).map_err(|error| error.to_string())?;
        let config = access.applied_to(&self.config);
        let client: T = config.create_with_context(context).map_err(|error| client_error(&error))?;
        if let Some(source) = token_source(&self.settings) {
            let token =
                token::get(source, SystemClock::new().wall().at).map_err(|error| error.to_string())?;
            set_token(inner(&client), token)?;
        }
        Ok(client)
    }

    /// `Err` where the cluster does not answer.
    fn ensure(&self, admin: &Admin, wanted: &Wanted) -> Result<TopicOutcome, String> {
        let Wanted { topic, partitions } = wanted;
        let metadata =
            admin.inner().fetch_metadata(Some(topic), TIMEOUT).map_err(|_| UNREACHABLE.to_owned())?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(TopicOutcome::Failed("no answer about the topic".into()));
        };
        match found.error().map(RDKafkaErrorCode::from) {
            None if found.partitions().len() == usize::from(partitions.get()) => Ok(TopicOutcome::Ready),
            None => Ok(TopicOutcome::PartitionMismatch { found: found.partitions().len() }),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                self.create(admin, wanted)
            }
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                Ok(TopicOutcome::Failed(NO_PERMISSION.to_owned()))
            }
            Some(code) => Ok(TopicOutcome::Failed(code.to_string())),
        }
    }

    /// Asks for a new topic, or with `validate_only` whether it could be had. The outer error is that of the request, the
    /// inner one that of the topic.
    pub(super) fn request(
        &self,
        admin: &Admin,
        wanted: &Wanted,
        validate_only: bool,
    ) -> Result<Result<(), RDKafkaErrorCode>, String> {
        let min_insync_replicas = self.settings.min_insync_replicas.to_string();
        let new = NewTopic::new(
            &wanted.topic,
            i32::from(wanted.partitions.get()),
            TopicReplication::Fixed(self.settings.replication_factor),
        )
        .set("min.insync.replicas", &min_insync_replicas);
        // Since 4.0 brokers refuse timestamps of more than an hour ahead, and with them the whole batch; a device whose
        // clock is wrong is the consumer's to judge. Brokers before 3.6 do not know the setting.
        let unlimited = new.set("message.timestamp.after.max.ms", NO_LIMIT);
        let result = submit(admin, &unlimited, validate_only)?;
        if result != Err(RDKafkaErrorCode::InvalidConfig) {
            return Ok(result);
        }
        let mut plain = unlimited;
        plain.config.pop();
        submit(admin, &plain, validate_only)
    }

    fn create(&self, admin: &AdminClient<LogContext>, wanted: &Wanted) -> Result<TopicOutcome, String> {
        let Wanted { topic, partitions } = wanted;
        let result = self.request(admin, wanted, false)?;
        match result {
            Ok(()) => {
                tracing::info!(
                    topic,
                    partitions = partitions.get(),
                    replication_factor = self.settings.replication_factor,
                    min_insync_replicas = self.settings.min_insync_replicas,
                    "topic created"
                );
                Ok(TopicOutcome::Ready)
            }
            // Another gateway was faster: its number of partitions is checked at the next attempt.
            Err(RDKafkaErrorCode::TopicAlreadyExists) => {
                Ok(TopicOutcome::Failed("created by somebody else".into()))
            }
            Err(
                RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed,
            ) => Ok(TopicOutcome::Failed(NO_PERMISSION.to_owned())),
            Err(code) => Ok(TopicOutcome::Failed(format!("not created: {code}"))),
        }
    }
}

fn submit(
    admin: &Admin,
    topic: &NewTopic<'_>,
    validate_only: bool,
) -> Result<Result<(), RDKafkaErrorCode>, String> {
    let options = AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT))
        .validate_only(validate_only);
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| e.to_string())?;
    let results = runtime.block_on(admin.create_topics([topic], &options)).map_err(|e| e.to_string())?;
    match results.into_iter().next() {
        Some(Err((_, code))) => Ok(Err(code)),
        Some(Ok(_)) => Ok(Ok(())),
        None => Err("no answer about the new topic".into()),
    }
}

/// Gives `client` a token. The binding lets a client ask for one only through events that an admin client does not poll.
#[allow(unsafe_code, reason = "rdkafka has no safe way to it")]
fn set_token<C: ClientContext>(client: &Client<C>, token: OAuthToken) -> Result<(), String> {
    let no_nul = |_| "the token contains a NUL byte".to_owned();
    let value = CString::new(token.token).map_err(no_nul)?;
    let principal = CString::new(token.principal_name).map_err(no_nul)?;
    // SAFETY: the client lives for the whole call, the strings too, and they are copied; there are no extensions and no
    // room for an error's text, whose sizes say so.
    let code = unsafe {
        rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            value.as_ptr(),
            token.lifetime_ms,
            principal.as_ptr(),
            ptr::null_mut(),
            0,
            ptr::null_mut(),
            0,
        )
    };
    match code {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        _ => Err("the token of replicate.sasl is no token, or has expired".to_owned()),
    }
}
