//! Serial ports.
use super::SourceContext;
use crate::config::SerialSource;
/// Placeholder until the merge of the real one.
pub async fn run(_config: SerialSource, _record_bytes_max: usize, _context: SourceContext) {}
