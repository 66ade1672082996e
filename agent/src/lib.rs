//! Wayside agent.
