//! From [`super::raw::RawConfig`] to [`super::Config`]: every range and relation checked, all errors at once.
