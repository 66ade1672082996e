//! Replicate: batches in order per partition from the log to Kafka, and the cursor that says how far.
