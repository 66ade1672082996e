//! Wayside wire protocol.
#![cfg_attr(not(test), no_std)]
