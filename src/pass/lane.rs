//! One platform with everything that is its own in a pass.

use crate::orchestrator::OrchestratorSettings;
use crate::plan::Policy;
use crate::platform::PlatformSettings;
use crate::render::{ConnectorProxy, Registry};

/// Everything that one lane needs to know.
#[derive(Debug)]
pub struct LaneSettings {
    /// How to reach the platform.
    pub platform: PlatformSettings,
    /// What connectors get of the proxy, when they are to use it.
    pub connector_proxy: Option<ConnectorProxy>,
    /// Where images come from.
    pub registry: Registry,
    /// Where connectors run, and what every workload gets.
    pub orchestrator: OrchestratorSettings,
    /// What decides between steps.
    pub policy: Policy,
}
