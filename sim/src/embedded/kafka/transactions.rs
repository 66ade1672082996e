//! Producer ids and transactions: who may write, and what counts as written.

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::{
    ResponseError,
    messages::{
        AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest,
        AddPartitionsToTxnResponse, EndTxnRequest, EndTxnResponse, InitProducerIdRequest,
        InitProducerIdResponse, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
        add_partitions_to_txn_response::{AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult},
        txn_offset_commit_response::{TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic},
    },
    protocol::StrBytes,
};

use super::cluster::{Cluster, CommittedOffset, TopicPartition};

/// What a `transactional.id` stands at.
#[derive(Debug)]
pub(super) struct Transaction {
    producer_id: i64,
    epoch: i16,
    timeout_ms: i64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// None so far.
    Empty,
    Ongoing {
        since_ms: i64,
        partitions: BTreeSet<TopicPartition>,
        offsets: BTreeMap<(StrBytes, TopicPartition), CommittedOffset>,
    },
    /// How the last one ended, for an `EndTxn` that comes twice.
    Ended { committed: bool },
}

impl Transaction {
    /// Whether a commit will write the offset of `key`.
    pub(super) fn will_commit(&self, key: &(StrBytes, TopicPartition)) -> bool {
        matches!(&self.state, State::Ongoing { offsets, .. } if offsets.contains_key(key))
    }
}

impl Cluster {
    /// Gives a producer its id and epoch. With a `transactional.id` it aborts what an earlier producer of that id left
    /// open, and fences it.
    pub(super) fn init_producer_id(
        &mut self,
        request: &InitProducerIdRequest,
        now_ms: i64,
    ) -> InitProducerIdResponse {
        let Some(id) = &request.transactional_id else {
            self.last_producer_id += 1;
            return InitProducerIdResponse::default()
                .with_producer_id(self.last_producer_id.into())
                .with_producer_epoch(0);
        };
        let id = &id.0;
        let known = self.transactions.get(id).map(|t| (t.producer_id, t.epoch));
        // A producer that asks for the next epoch of its own must not be fenced itself.
        let own = (request.producer_id.0, request.producer_epoch);
        if own.0 >= 0 && known.is_some_and(|known| known != own) {
            return InitProducerIdResponse::default()
                .with_error_code(ResponseError::ProducerFenced.code())
                .with_producer_id((-1).into())
                .with_producer_epoch(-1);
        }
        self.end(id, false, now_ms);
        let (producer_id, epoch) = match known {
            Some((producer_id, epoch)) if epoch < i16::MAX - 1 => (producer_id, epoch + 1),
            _ => {
                self.last_producer_id += 1;
                (self.last_producer_id, 0)
            }
        };
        self.epochs.insert(producer_id, epoch);
        let timeout_ms = request.transaction_timeout_ms.into();
        self.transactions
            .insert(id.clone(), Transaction { producer_id, epoch, timeout_ms, state: State::Empty });
        InitProducerIdResponse::default().with_producer_id(producer_id.into()).with_producer_epoch(epoch)
    }

    pub(super) fn add_partitions_to_txn(
        &mut self,
        request: AddPartitionsToTxnRequest,
        now_ms: i64,
    ) -> AddPartitionsToTxnResponse {
        let producer = (request.v3_and_below_producer_id.0, request.v3_and_below_producer_epoch);
        let added: Vec<TopicPartition> = request
            .v3_and_below_topics
            .iter()
            .flat_map(|t| t.partitions.iter().map(|index| (t.name.clone(), *index)))
            .collect();
        let all_there = added.iter().all(|(topic, index)| self.partition(topic, *index).is_some());
        let outcome = if all_there {
            self.ongoing(&request.v3_and_below_transactional_id.0, producer, now_ms)
                .map(|(partitions, _)| partitions.extend(added))
        } else {
            Err(ResponseError::UnknownTopicOrPartition)
        };
        let code = code(outcome);
        let topics = request.v3_and_below_topics.into_iter().map(|topic| {
            let results = topic.partitions.iter().map(|index| {
                AddPartitionsToTxnPartitionResult::default()
                    .with_partition_index(*index)
                    .with_partition_error_code(code)
            });
            let results = results.collect();
            AddPartitionsToTxnTopicResult::default().with_name(topic.name).with_results_by_partition(results)
        });
        AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics.collect())
    }

    pub(super) fn add_offsets_to_txn(
        &mut self,
        request: &AddOffsetsToTxnRequest,
        now_ms: i64,
    ) -> AddOffsetsToTxnResponse {
        let producer = (request.producer_id.0, request.producer_epoch);
        let outcome = self.ongoing(&request.transactional_id.0, producer, now_ms).map(|_| ());
        AddOffsetsToTxnResponse::default().with_error_code(code(outcome))
    }

    pub(super) fn txn_offset_commit(
        &mut self,
        request: TxnOffsetCommitRequest,
        now_ms: i64,
    ) -> TxnOffsetCommitResponse {
        let producer = (request.producer_id.0, request.producer_epoch);
        let outcome = self.ongoing(&request.transactional_id.0, producer, now_ms).map(|(_, offsets)| {
            for topic in &request.topics {
                for p in &topic.partitions {
                    let key = (request.group_id.0.clone(), (topic.name.clone(), p.partition_index));
                    let committed = CommittedOffset {
                        offset: p.committed_offset,
                        leader_epoch: p.committed_leader_epoch,
                        metadata: p.committed_metadata.clone(),
                    };
                    offsets.insert(key, committed);
                }
            }
        });
        let code = code(outcome);
        let topics = request.topics.into_iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|p| {
                TxnOffsetCommitResponsePartition::default()
                    .with_partition_index(p.partition_index)
                    .with_error_code(code)
            });
            let partitions = partitions.collect();
            TxnOffsetCommitResponseTopic::default().with_name(topic.name).with_partitions(partitions)
        });
        TxnOffsetCommitResponse::default().with_topics(topics.collect())
    }

    pub(super) fn end_txn(&mut self, request: &EndTxnRequest, now_ms: i64) -> EndTxnResponse {
        let id = &request.transactional_id.0;
        let producer = (request.producer_id.0, request.producer_epoch);
        let outcome = self.owned(id, producer).and_then(|transaction| match transaction.state {
            State::Ongoing { .. } => Ok(true),
            State::Ended { committed } if committed == request.committed => Ok(false),
            State::Ended { .. } | State::Empty => Err(ResponseError::InvalidTxnState),
        });
        if outcome == Ok(true) {
            self.end(id, request.committed, now_ms);
        }
        EndTxnResponse::default().with_error_code(code(outcome.map(|_| ())))
    }

    /// Aborts every transaction that has been open for longer than its producer's `transaction.timeout.ms`, and fences
    /// the producer.
    pub(super) fn expire_transactions(&mut self, now_ms: i64) {
        let overdue: Vec<StrBytes> = self
            .transactions
            .iter()
            .filter(|(_, t)| match t.state {
                State::Ongoing { since_ms, .. } => now_ms - since_ms > t.timeout_ms,
                State::Empty | State::Ended { .. } => false,
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in overdue {
            self.end(&id, false, now_ms);
            if let Some(transaction) = self.transactions.get_mut(&id) {
                transaction.epoch = transaction.epoch.saturating_add(1);
                self.epochs.insert(transaction.producer_id, transaction.epoch);
            }
        }
    }

    /// The transaction of `id` if `producer` is its current owner.
    fn owned(&mut self, id: &StrBytes, producer: (i64, i16)) -> Result<&mut Transaction, ResponseError> {
        let transaction = self.transactions.get_mut(id).ok_or(ResponseError::InvalidProducerIdMapping)?;
        match producer {
            (id, _) if id != transaction.producer_id => Err(ResponseError::InvalidProducerIdMapping),
            (_, epoch) if epoch != transaction.epoch => Err(ResponseError::ProducerFenced),
            _ => Ok(transaction),
        }
    }

    /// The open transaction of `id`, opened now if there is none: its partitions and its offsets.
    #[allow(clippy::type_complexity)]
    fn ongoing(
        &mut self,
        id: &StrBytes,
        producer: (i64, i16),
        now_ms: i64,
    ) -> Result<
        (&mut BTreeSet<TopicPartition>, &mut BTreeMap<(StrBytes, TopicPartition), CommittedOffset>),
        ResponseError,
    > {
        let transaction = self.owned(id, producer)?;
        if !matches!(transaction.state, State::Ongoing { .. }) {
            transaction.state =
                State::Ongoing { since_ms: now_ms, partitions: BTreeSet::new(), offsets: BTreeMap::new() };
        }
        match &mut transaction.state {
            State::Ongoing { partitions, offsets, .. } => Ok((partitions, offsets)),
            State::Empty | State::Ended { .. } => unreachable!("it was opened just now"),
        }
    }

    /// Ends the open transaction of `id`, if there is one: markers into its partitions, its offsets into the group.
    fn end(&mut self, id: &StrBytes, commit: bool, now_ms: i64) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        if !matches!(transaction.state, State::Ongoing { .. }) {
            return;
        }
        let (producer_id, epoch) = (transaction.producer_id, transaction.epoch);
        let ended = std::mem::replace(&mut transaction.state, State::Ended { committed: commit });
        let State::Ongoing { partitions, offsets, .. } = ended else { return };
        for (topic, index) in partitions {
            if let Some(log) = self.partition(&topic, index) {
                log.end_transaction(producer_id, epoch, commit, now_ms);
            }
        }
        if commit {
            self.offsets.extend(offsets);
        }
    }
}

fn code(outcome: Result<(), ResponseError>) -> i16 {
    outcome.err().map_or(0, |error| error.code())
}
