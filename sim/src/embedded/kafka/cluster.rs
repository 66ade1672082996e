//! What the broker holds: topics, their partitions, consumer groups' offsets; and the requests that are not about
//! transactions (those are in `transactions`).

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use kafka_protocol::{
    ResponseError,
    messages::{
        BrokerId, CreateTopicsRequest, CreateTopicsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
        FetchRequest, FetchResponse, FindCoordinatorResponse, ListOffsetsRequest, ListOffsetsResponse,
        MetadataRequest, MetadataResponse, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest,
        OffsetFetchResponse, ProduceRequest, ProduceResponse, TopicName,
        create_topics_response::CreatableTopicResult,
        describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult},
        fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData},
        list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse},
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
        offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
        offset_fetch_response::{OffsetFetchResponsePartition, OffsetFetchResponseTopic},
        produce_response::{PartitionProduceResponse, TopicProduceResponse},
    },
    protocol::StrBytes,
};

use super::{log::PartitionLog, transactions::Transaction};

/// The only broker.
const NODE: BrokerId = BrokerId(0);
/// `ListOffsets` for the end.
const LATEST: i64 = -1;
/// `ListOffsets` for the beginning.
const EARLIEST: i64 = -2;
/// `DescribeConfigs` of a topic.
const RESOURCE_TOPIC: i8 = 2;
/// A config that was set for the topic, as opposed to a default.
const SOURCE_TOPIC: i8 = 1;

/// A partition: topic and index.
pub(super) type TopicPartition = (TopicName, i32);

/// A consumer group's position in a partition.
#[derive(Clone, Debug)]
pub(super) struct CommittedOffset {
    pub(super) offset: i64,
    pub(super) leader_epoch: i32,
    pub(super) metadata: Option<StrBytes>,
}

#[derive(Debug, Default)]
struct Topic {
    partitions: Vec<PartitionLog>,
    configs: BTreeMap<StrBytes, StrBytes>,
}

/// The whole state. It outlives every connection, so that the broker can go away and come back with it.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    port: i32,
    topics: BTreeMap<TopicName, Topic>,
    pub(super) offsets: BTreeMap<(StrBytes, TopicPartition), CommittedOffset>,
    pub(super) last_producer_id: i64,
    /// The current epoch of every transactional producer id.
    pub(super) epochs: HashMap<i64, i16>,
    pub(super) transactions: BTreeMap<StrBytes, Transaction>,
}

impl Cluster {
    /// An empty one, reached at `port` of the loopback.
    pub(super) fn new(port: u16) -> Self {
        Self { port: port.into(), ..Self::default() }
    }

    pub(super) fn partition(&mut self, topic: &TopicName, index: i32) -> Option<&mut PartitionLog> {
        self.topics.get_mut(topic)?.partitions.get_mut(usize::try_from(index).ok()?)
    }

    /// Records in all topics, whether committed or not.
    pub(super) fn record_count(&self) -> u64 {
        self.topics.values().flat_map(|topic| &topic.partitions).map(PartitionLog::record_count).sum()
    }

    pub(super) fn metadata(&self, request: &MetadataRequest) -> MetadataResponse {
        let names: Vec<TopicName> = match &request.topics {
            None => self.topics.keys().cloned().collect(),
            Some(topics) => topics.iter().filter_map(|topic| topic.name.clone()).collect(),
        };
        let topics = names.into_iter().map(|name| {
            let Some(topic) = self.topics.get(&name) else {
                return MetadataResponseTopic::default()
                    .with_name(Some(name))
                    .with_error_code(ResponseError::UnknownTopicOrPartition.code());
            };
            let partitions = (0..).zip(&topic.partitions).map(|(index, _)| {
                MetadataResponsePartition::default()
                    .with_partition_index(index)
                    .with_leader_id(NODE)
                    .with_leader_epoch(0)
                    .with_replica_nodes(vec![NODE])
                    .with_isr_nodes(vec![NODE])
            });
            MetadataResponseTopic::default().with_name(Some(name)).with_partitions(partitions.collect())
        });
        let broker = MetadataResponseBroker::default()
            .with_node_id(NODE)
            .with_host(StrBytes::from_static_str("127.0.0.1"))
            .with_port(self.port);
        MetadataResponse::default()
            .with_brokers(vec![broker])
            .with_cluster_id(Some(StrBytes::from_static_str("embedded")))
            .with_controller_id(NODE)
            .with_topics(topics.collect())
    }

    pub(super) fn find_coordinator(&self) -> FindCoordinatorResponse {
        FindCoordinatorResponse::default()
            .with_node_id(NODE)
            .with_host(StrBytes::from_static_str("127.0.0.1"))
            .with_port(self.port)
    }

    pub(super) fn create_topics(&mut self, request: CreateTopicsRequest) -> CreateTopicsResponse {
        let results = request.topics.into_iter().map(|wanted| {
            let result = CreatableTopicResult::default().with_name(wanted.name.clone());
            if self.topics.contains_key(&wanted.name) {
                return result.with_error_code(ResponseError::TopicAlreadyExists.code());
            }
            let count = if wanted.num_partitions == -1 { 1 } else { wanted.num_partitions };
            let Ok(count @ 1..) = usize::try_from(count) else {
                return result.with_error_code(ResponseError::InvalidPartitions.code());
            };
            if !request.validate_only {
                let topic = Topic {
                    partitions: (0..count).map(|_| PartitionLog::default()).collect(),
                    configs: wanted.configs.into_iter().filter_map(|c| Some((c.name, c.value?))).collect(),
                };
                self.topics.insert(wanted.name, topic);
            }
            result.with_num_partitions(i32::try_from(count).unwrap_or(i32::MAX)).with_replication_factor(1)
        });
        CreateTopicsResponse::default().with_topics(results.collect())
    }

    /// The configs that topics were created with.
    pub(super) fn describe_configs(&self, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
        let results = request.resources.into_iter().map(|resource| {
            let topic = self.topics.get(&TopicName(resource.resource_name.clone()));
            let topic = topic.filter(|_| resource.resource_type == RESOURCE_TOPIC);
            let result = DescribeConfigsResult::default()
                .with_resource_type(resource.resource_type)
                .with_resource_name(resource.resource_name);
            let Some(topic) = topic else {
                return result.with_error_code(ResponseError::UnknownTopicOrPartition.code());
            };
            let wanted = resource.configuration_keys;
            let is_wanted = |name: &StrBytes| wanted.as_ref().is_none_or(|wanted| wanted.contains(name));
            let configs = topic.configs.iter().filter(|(name, _)| is_wanted(name)).map(|(name, value)| {
                DescribeConfigsResourceResult::default()
                    .with_name(name.clone())
                    .with_value(Some(value.clone()))
                    .with_config_source(SOURCE_TOPIC)
            });
            result.with_configs(configs.collect())
        });
        DescribeConfigsResponse::default().with_results(results.collect())
    }

    pub(super) fn produce(&mut self, request: ProduceRequest) -> ProduceResponse {
        let responses = request.topic_data.into_iter().map(|topic| {
            let partitions = topic.partition_data.into_iter().map(|data| {
                let response = PartitionProduceResponse::default()
                    .with_index(data.index)
                    .with_log_append_time_ms(-1)
                    .with_log_start_offset(0);
                match self.append(&topic.name, data.index, data.records.unwrap_or_default()) {
                    Ok(base_offset) => response.with_base_offset(base_offset),
                    Err(error) => response.with_base_offset(-1).with_error_code(error.code()),
                }
            });
            let partitions = partitions.collect();
            TopicProduceResponse::default().with_name(topic.name).with_partition_responses(partitions)
        });
        ProduceResponse::default().with_responses(responses.collect())
    }

    fn append(&mut self, topic: &TopicName, index: i32, records: Bytes) -> Result<i64, ResponseError> {
        let topic = self.topics.get_mut(topic).ok_or(ResponseError::UnknownTopicOrPartition)?;
        let partition = usize::try_from(index).ok().and_then(|index| topic.partitions.get_mut(index));
        let partition = partition.ok_or(ResponseError::UnknownTopicOrPartition)?;
        partition.append(records, |producer_id| self.epochs.get(&producer_id).copied())
    }

    /// What there is now, and its size in bytes; waiting for more is the connection's task.
    pub(super) fn fetch(&mut self, request: &FetchRequest) -> (FetchResponse, usize) {
        let read_committed = request.isolation_level == 1;
        let mut size = 0;
        let size_max = usize::try_from(request.max_bytes).unwrap_or(0);
        let mut responses = Vec::new();
        for topic in &request.topics {
            let mut partitions = Vec::new();
            for wanted in &topic.partitions {
                let data = PartitionData::default().with_partition_index(wanted.partition);
                let Some(log) = self.partition(&topic.topic, wanted.partition) else {
                    size += 1; // An error does not wait.
                    partitions.push(data.with_error_code(ResponseError::UnknownTopicOrPartition.code()));
                    continue;
                };
                let data = data
                    .with_high_watermark(log.high_watermark())
                    .with_last_stable_offset(log.last_stable_offset())
                    .with_log_start_offset(0);
                let room = usize::try_from(wanted.partition_max_bytes).unwrap_or(0);
                let room = room.min(size_max.saturating_sub(size));
                partitions.push(match log.fetch(wanted.fetch_offset, room, read_committed) {
                    Ok(fetched) => {
                        size += fetched.records.len();
                        let aborted = fetched.aborted.iter().map(|a| {
                            AbortedTransaction::default()
                                .with_producer_id(a.producer_id.into())
                                .with_first_offset(a.first_offset)
                        });
                        data.with_aborted_transactions(Some(aborted.collect()))
                            .with_records(Some(fetched.records))
                    }
                    Err(error) => {
                        size += 1;
                        data.with_error_code(error.code())
                    }
                });
            }
            let response = FetchableTopicResponse::default().with_topic(topic.topic.clone());
            responses.push(response.with_partitions(partitions));
        }
        (FetchResponse::default().with_responses(responses), size)
    }

    pub(super) fn list_offsets(&mut self, request: ListOffsetsRequest) -> ListOffsetsResponse {
        let read_committed = request.isolation_level == 1;
        let topics = request.topics.into_iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|wanted| {
                let response =
                    ListOffsetsPartitionResponse::default().with_partition_index(wanted.partition_index);
                let Some(log) = self.partition(&topic.name, wanted.partition_index) else {
                    return response.with_error_code(ResponseError::UnknownTopicOrPartition.code());
                };
                let (offset, timestamp) = match wanted.timestamp {
                    LATEST if read_committed => (log.last_stable_offset(), -1),
                    LATEST => (log.high_watermark(), -1),
                    EARLIEST => (0, -1),
                    timestamp => log.offset_at(timestamp).unwrap_or((-1, -1)),
                };
                response.with_offset(offset).with_timestamp(timestamp).with_leader_epoch(0)
            });
            let partitions = partitions.collect();
            ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions)
        });
        ListOffsetsResponse::default().with_topics(topics.collect())
    }

    pub(super) fn offset_commit(&mut self, request: OffsetCommitRequest) -> OffsetCommitResponse {
        let topics = request.topics.into_iter().map(|topic| {
            let partitions = topic.partitions.into_iter().map(|p| {
                let committed = CommittedOffset {
                    offset: p.committed_offset,
                    leader_epoch: p.committed_leader_epoch,
                    metadata: p.committed_metadata,
                };
                let partition = (topic.name.clone(), p.partition_index);
                self.offsets.insert((request.group_id.0.clone(), partition), committed);
                OffsetCommitResponsePartition::default().with_partition_index(p.partition_index)
            });
            let partitions = partitions.collect();
            OffsetCommitResponseTopic::default().with_name(topic.name).with_partitions(partitions)
        });
        OffsetCommitResponse::default().with_topics(topics.collect())
    }

    /// The group's offsets. With `require_stable`, a partition that an open transaction will commit an offset for is
    /// answered with an error that makes the client ask again.
    pub(super) fn offset_fetch(&self, request: OffsetFetchRequest) -> OffsetFetchResponse {
        let group = request.group_id.0;
        let wanted: Vec<(TopicName, Vec<i32>)> = match request.topics {
            Some(topics) => topics.into_iter().map(|t| (t.name, t.partition_indexes)).collect(),
            None => {
                let mut all = BTreeMap::<TopicName, Vec<i32>>::new();
                for (of_group, (topic, index)) in self.offsets.keys() {
                    if *of_group == group {
                        all.entry(topic.clone()).or_default().push(*index);
                    }
                }
                all.into_iter().collect()
            }
        };
        let topics = wanted.into_iter().map(|(name, indexes)| {
            let partitions = indexes.into_iter().map(|index| {
                let key = (group.clone(), (name.clone(), index));
                let response = OffsetFetchResponsePartition::default()
                    .with_partition_index(index)
                    .with_committed_offset(-1)
                    .with_committed_leader_epoch(-1)
                    .with_metadata(Some(StrBytes::default()));
                if request.require_stable && self.transactions.values().any(|t| t.will_commit(&key)) {
                    return response.with_error_code(ResponseError::UnstableOffsetCommit.code());
                }
                match self.offsets.get(&key) {
                    Some(committed) => response
                        .with_committed_offset(committed.offset)
                        .with_committed_leader_epoch(committed.leader_epoch)
                        .with_metadata(committed.metadata.clone()),
                    None => response,
                }
            });
            let partitions = partitions.collect();
            OffsetFetchResponseTopic::default().with_name(name).with_partitions(partitions)
        });
        OffsetFetchResponse::default().with_topics(topics.collect())
    }
}
