//! One pass of connector reconciliation, then exit.
pub mod access;
pub mod config;
pub mod desired;
pub mod key;
pub mod model;
pub mod plan;
pub mod platform;
pub mod secret;
pub mod stop;
