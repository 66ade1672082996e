//! Telemetry: logs, metrics, health.
