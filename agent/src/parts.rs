//! What the pipeline is joined from: the system's own parts in production, others in a simulation.

use std::{io, sync::Arc};

use tracing::warn;

use crate::{
    config::{Config, HttpSource, Listener, MqttSource, SerialSource},
    env::{Clock, Entropy, SystemClock, SystemEntropy},
    log::{
        identity::{self, NotOurs},
        store::{
            EpochStore,
            disk::{DiskOptions, DiskStore, OpenError},
        },
    },
    replicate::{Cluster, Cursor, CursorFile, KafkaCluster},
    source::{self, Source, SourceContext, SourceFuture},
    telemetry::service::ServiceManager,
};

/// The parts behind the pipeline's traits.
pub struct Parts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Makes a generator of chance for each stage that needs one.
    pub entropy: Box<dyn Fn() -> Box<dyn Entropy> + Send>,
    /// Keeps the log's epochs.
    pub store: Box<dyn EpochStore>,
    /// The cursor's file and what was in it.
    pub cursor: (CursorFile, Option<Cursor>),
    /// Kafka.
    pub cluster: Box<dyn Cluster>,
    /// Where frames come from.
    pub sources: Vec<Box<dyn Source>>,
    /// Whoever restarts the agent when it hangs.
    pub service_manager: ServiceManager,
}

/// Why a part cannot be had. The agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// The data directory cannot be used: another agent has it, or the system says no.
    #[error("cannot use the data directory (log.dir)")]
    Directory(#[from] OpenError),
    /// What is in the data directory is not for this agent to touch.
    #[error("cannot use the data directory (log.dir)")]
    NotOurs(#[from] NotOurs),
    /// The cursor's file cannot be read or written: every start would send the whole log again.
    #[error("cannot keep the cursor of the replication in {dir}")]
    Cursor {
        /// `log.dir`.
        dir: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The Kafka client does not take its configuration.
    #[error("cannot set up the Kafka client ([replicate]): {0}")]
    Kafka(String),
}

impl Parts {
    /// The parts that `config` asks for: the store in its data directory, librdkafka, brokers and ports.
    ///
    /// # Errors
    /// [`PartsError`]; nothing was taken from a source.
    pub fn system(config: &Config) -> Result<Self, PartsError> {
        let dir = &config.log.dir;
        let is_known = identity::check(dir, &config.gateway.id)?;
        // The store comes next: it makes the directory and locks it against a second agent.
        let options = DiskOptions {
            engine: config.log.engine,
            reserve_bytes: config.log.reserve_bytes,
            ..DiskOptions::for_epoch_bytes(config.log.epoch_bytes)
        };
        let store = DiskStore::open(dir, options)?;
        if !is_known && let Err(error) = identity::write(dir, &config.gateway.id) {
            warn!(dir = %dir.display(), %error, "cannot note whose data directory it is; trying again at the next start");
        }
        let cursor = CursorFile::open(dir)
            .map_err(|source| PartsError::Cursor { dir: dir.display().to_string(), source })?;
        let cluster = KafkaCluster::new(&config.replicate, &config.gateway.id).map_err(PartsError::Kafka)?;
        let record_bytes_max = config.log.record_bytes_max;
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for mqtt in &config.mqtt {
            sources.push(Box::new(Mqtt { config: mqtt.clone(), record_bytes_max }));
        }
        for listener in &config.listener {
            sources.push(Box::new(MqttListener { config: listener.clone(), record_bytes_max }));
        }
        for serial in &config.serial {
            sources.push(Box::new(Serial { config: serial.clone(), record_bytes_max }));
        }
        for http in &config.http {
            sources.push(Box::new(Http { config: http.clone(), record_bytes_max }));
        }
        Ok(Self {
            clock: Arc::new(SystemClock::new()),
            entropy: Box::new(|| Box::new(SystemEntropy::new())),
            store: Box::new(store),
            cursor,
            cluster: Box::new(cluster),
            sources,
            service_manager: ServiceManager::from_environment(),
        })
    }
}

struct Mqtt {
    config: MqttSource,
    record_bytes_max: usize,
}

impl Source for Mqtt {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn run(self: Box<Self>, context: SourceContext) -> SourceFuture {
        Box::pin(source::mqtt::run(self.config, self.record_bytes_max, context))
    }
}

struct MqttListener {
    config: Listener,
    record_bytes_max: usize,
}

impl Source for MqttListener {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn run(self: Box<Self>, context: SourceContext) -> SourceFuture {
        Box::pin(source::listener::run(self.config, self.record_bytes_max, context))
    }
}

struct Serial {
    config: SerialSource,
    record_bytes_max: usize,
}

impl Source for Serial {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn run(self: Box<Self>, context: SourceContext) -> SourceFuture {
        Box::pin(source::serial::run(self.config, self.record_bytes_max, context))
    }
}

struct Http {
    config: HttpSource,
    record_bytes_max: usize,
}

impl Source for Http {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn run(self: Box<Self>, context: SourceContext) -> SourceFuture {
        Box::pin(source::http::run(self.config, self.record_bytes_max, context))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;
    use crate::{
        config::check,
        log::{EntrySeq, store::EpochId},
    };

    fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let file = |entry: fs::DirEntry| {
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("readable"))
        };
        fs::read_dir(dir).expect("readable").map(|entry| file(entry.expect("an entry"))).collect()
    }

    /// The parts of `gateway` whose log is in `dir`, with more lines about it.
    fn parts(gateway: &str, dir: &Path, lines: &str) -> Result<Parts, PartsError> {
        let text = format!(
            "gateway.id = \"{gateway}\"\nlog.dir = {dir:?}\n{lines}\n\
             replicate.bootstrap_servers = [\"127.0.0.1:1\"]\n\
             [[source.serial]]\nname = \"line\"\npath = \"/dev/null\"\nprotocol = \"native\""
        );
        Parts::system(&check::parse(&text, &[]).expect("good").config)
    }

    #[test]
    fn new_epochs_are_of_the_engine_that_the_configuration_names() {
        for (lines, file) in
            [("", "db"), ("log.engine = \"sled\"", "db"), ("log.engine = \"segment\"", "segment")]
        {
            let dir = tempfile::tempdir().expect("a directory");
            let mut parts = parts("gw", dir.path(), lines).expect("new");
            let epoch = EpochId(EntrySeq(0));
            parts.store.create(epoch).expect("there is none");
            assert!(dir.path().join(epoch.to_string()).join(file).is_file(), "{lines}");
        }
    }

    #[test]
    fn a_directory_of_another_gateway_is_left_as_it_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let parts = |gateway: &str| parts(gateway, dir.path(), "").map(drop);
        parts("gw-1").expect("new");
        parts("gw-1").expect("its own");
        let before = files(dir.path());
        let refused = parts("gw-2").expect_err("another gateway's");
        let said = format!("{:#}", anyhow::Error::new(refused));
        assert!(said.starts_with("cannot use the data directory (log.dir): "), "{said}");
        assert!(said.contains("that of gateway \"gw-1\""), "{said}");
        assert_eq!(files(dir.path()), before);
    }
}
