//! What can be wrong with a workload, in plain words and with what to do about it.

use serde::Serialize;

/// Why a workload does not run as it should, in the orchestrator's own terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TroubleKind {
    /// It ends again and again.
    CrashLoop,
    /// It was ended for using more memory than it may.
    OutOfMemory,
    /// Its image cannot be pulled.
    ImagePull,
    /// Its settings name something that is not there.
    Settings,
    /// The node cannot start it.
    WontStart,
    /// No node takes it.
    Unschedulable,
    /// A node threw it out.
    Evicted,
    /// The orchestrator is not allowed to run it: a quota or an admission policy.
    NotAdmitted,
    /// It has not come to run for long, and nothing says why.
    Stuck,
    /// Its rollout is paused: changes do not reach what runs.
    Paused,
    /// Somebody changed it since it was applied.
    Drifted,
}

/// Something wrong with a workload that no step of this pass mends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// What kind.
    pub kind: TroubleKind,
    /// The orchestrator's words.
    pub detail: String,
}

impl TroubleKind {
    /// Whether the connector does not run at all for it.
    #[must_use]
    pub fn blocks(self) -> bool {
        !matches!(self, Self::CrashLoop | Self::OutOfMemory | Self::Evicted | Self::Paused | Self::Drifted)
    }

    /// What it is, in plain words.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::CrashLoop => "it crashes again and again",
            Self::OutOfMemory => "it was ended for using more memory than its limit",
            Self::ImagePull => "its image cannot be pulled",
            Self::Settings => "its pod refers to something that is not there",
            Self::WontStart => "the node cannot start its container",
            Self::Unschedulable => "no node can take it",
            Self::Evicted => "a node evicted it",
            Self::NotAdmitted => "its pod may not be created",
            Self::Stuck => "its pod does not get on",
            Self::Paused => "the rollout of its Deployment is paused, so that changes do not reach it",
            Self::Drifted => "its Deployment was changed by somebody else",
        }
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn cure(self) -> &'static str {
        match self {
            Self::CrashLoop => "read its log on the platform: it is that of the run that crashed",
            Self::OutOfMemory => "raise resources.limits.memory in OPENCTI__DAEMON__KUBERNETES__IMAGE_RESOURCES",
            Self::ImagePull => {
                "see that the image exists and that OPENCTI__DAEMON__REGISTRY__* or ..KUBERNETES__IMAGE_PULL_SECRETS has a login where one is needed"
            }
            Self::Settings => "create what is missing; the base deployment may name it",
            Self::WontStart => "see that the image and the base deployment fit this node",
            Self::Unschedulable => "add nodes, or mend requests, nodeSelector and tolerations of the base deployment",
            Self::Evicted => "free memory or disk on that node, or set resource requests",
            Self::NotAdmitted => "raise the quota, or mend the base deployment as the policy asks",
            Self::Stuck => {
                "look at its events (kubectl describe pod); of a node that is gone, kubectl delete pod --force"
            }
            Self::Paused => "resume it: kubectl rollout resume deployment",
            Self::Drifted => "nothing has to be done: it is put right when this connector changes next",
        }
    }
}
